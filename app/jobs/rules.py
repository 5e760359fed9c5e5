"""What a search may ask for, checked against the model: pure, no database, no torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from app.errors import InvalidRequest
from app.plans.spec import BudgetCounts, PlanSpec, joined
from workers.contracts import (
    ComputeDtype,
    Estimator,
    Metric,
    ModelDescription,
    UnitInfo,
)
from workers.sensitivity.operations import parse_bit_operations

MAX_HOLDOUT = 0.9
ESTIMATORS = tuple(e.value for e in Estimator)
METRICS = ("auto", *(m.value for m in Metric), *ESTIMATORS)
"""What `metric` may be: all, then what is measured, then what is estimated only."""
_ESTIMATED = (Metric.KL, Metric.MSE)
_SHOWN = 20

BIT_OPERATIONS = "bit_operations"
AUTO = "auto"
_MEASURING = "none; or metric 'auto', or one that measures everything (kl, mse, loss), with a regret"
PROBE = Estimator.PROBE.value
DEFAULT_REGRET = 0.01
"""Share of a plan's cost that `auto` may lose, unless the request says another."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a job comes by its costs.

    Args:
        compare: What is compared between models, and what plans are judged by.
        estimator: What estimates all candidates at once; ``None`` when all are measured.
        regret: Expected loss, as a share of a plan's cost, at which measuring ends; ``None`` when everything is measured on
            all samples, or nothing.
        max_passes: Where there is a regret: measuring ends here in any case.
    """

    compare: Metric
    estimator: str | None = None
    regret: float | None = None
    max_passes: float | None = None

    @property
    def predicts(self) -> str:
        """What costs are in: what is compared, or a score of its own unit where an estimator gives nothing else."""
        return self.compare.value if self.estimator in (None, PROBE) else str(self.estimator)


def check_limits(limits: Mapping[str, str]) -> dict[str, str]:
    """Limits by name, those of rows that are known.

    Raises:
        InvalidRequest: A limit on something that is not known.
        RequestRefused: A text that is no such quantity.
    """
    for name, text in limits.items():
        if name != BIT_OPERATIONS:
            raise InvalidRequest(f"there is no limit on {name!r}", f"limits.{name}", text, [BIT_OPERATIONS])
        parse_bit_operations(text)
    return dict(sorted(limits.items()))


def check_method(
    metric: str,
    compare: str | None,
    description: ModelDescription,
    *,
    regret: float | None = None,
    max_passes: float | None = None,
) -> Method:
    """How costs are come by under this name, if the model's outputs can be compared so.

    Args:
        metric: As asked for.
        compare: What is compared, where ``metric`` leaves that open.
        description: Of the model, with the output that is compared first.
        regret: As asked for.
        max_passes: As asked for.

    Raises:
        InvalidRequest: There is no such metric, it contradicts ``compare``, the output that comes first holds no
            distribution to compare, or it is said how much to measure where all or nothing is.
    """
    if metric not in METRICS:
        raise InvalidRequest(f"unknown metric {metric!r}", "metric", metric, list(METRICS))
    method = _named(metric, compare, description)
    if metric in ESTIMATORS and regret is not None:
        raise InvalidRequest(
            f"metric {metric!r} measures nothing, whatever the regret", "regret", regret, _MEASURING
        )
    if metric == AUTO and regret is None:
        regret = DEFAULT_REGRET
    if max_passes is not None and regret is None:
        raise InvalidRequest(
            f"metric {metric!r} without a regret measures all or nothing",
            "max_passes",
            max_passes,
            _MEASURING,
        )
    return replace(method, regret=regret, max_passes=max_passes)


def _named(metric: str, compare: str | None, description: ModelDescription) -> Method:
    """What a metric's name says of how costs are come by.

    Raises:
        InvalidRequest: As `check_method`.
    """
    estimated = metric in (AUTO, *ESTIMATORS)
    if not estimated:
        if compare not in (None, metric):
            raise InvalidRequest(
                f"metric {metric!r} compares {metric!r}, not {compare!r}",
                "compare",
                compare,
                f"{metric!r}, or none; another one goes with metric {AUTO!r} or an estimate",
            )
        return Method(compare=_comparison("metric", metric, description))
    if compare not in (None, *_ESTIMATED):
        raise InvalidRequest(
            f"{metric!r} cannot estimate {compare!r}", "compare", compare, [m.value for m in _ESTIMATED]
        )
    named = compare or (Metric.KL.value if has_classes(description) else Metric.MSE.value)
    if metric == Estimator.HESSIAN_TRACE and named == Metric.MSE:
        raise InvalidRequest(f"{metric!r} is that of a cross entropy", "compare", named, [Metric.KL.value])
    return Method(
        compare=_comparison("compare", named, description),
        estimator=PROBE if metric == AUTO else metric,
    )


def check_compute_dtype(text: str) -> dict[str, str]:
    """The request's member, where it is not the default: what was asked for before there was one stays the same.

    Raises:
        InvalidRequest: There is no such choice.
    """
    if text not in [d.value for d in ComputeDtype]:
        raise InvalidRequest(
            f"unknown compute_dtype {text!r}", "compute_dtype", text, [d.value for d in ComputeDtype]
        )
    return {} if text == ComputeDtype.FLOAT32 else {"compute_dtype": text}


def _comparison(field: str, text: str, description: ModelDescription) -> Metric:
    metric = Metric(text)
    if metric is not Metric.MSE and not has_classes(description):
        output = description.outputs[0]
        raise InvalidRequest(
            f"{text!r} compares distributions over the last axis; output {output.name!r} has shape "
            f"{list(output.shape)}",
            field,
            text,
            [Metric.MSE.value],
        )
    return metric


def has_classes(description: ModelDescription) -> bool:
    """Whether the first output, which is compared, may hold a distribution for each sample; sizes that vary are taken to."""
    shape = description.outputs[0].shape if description.outputs else ()
    return not (len(shape) == 1 or (len(shape) > 1 and shape[-1] is not None and shape[-1] < 2))


def check_budget_counts(text: str) -> BudgetCounts:
    """What budgets bind.

    Raises:
        InvalidRequest: Nothing of this name.
    """
    try:
        return BudgetCounts(text)
    except ValueError:
        raise InvalidRequest(
            f"budget_counts {text!r} is not known", "budget_counts", text, [c.value for c in BudgetCounts]
        ) from None


def check_spec(
    description: ModelDescription, spec: PlanSpec, candidates: Sequence[int], *, field: str = "budget"
) -> None:
    """Pins, ties, exclusions and the budget's text against the model.

    Args:
        description: Of the model.
        spec: What is asked for.
        candidates: Bit-widths on offer.
        field: What the request calls the budget.

    Raises:
        InvalidRequest: An unknown or unsuitable unit, a width that is not offered, rules that contradict each other.
    """
    units = {u.name: u for u in description.units}
    _check_exclusions(units, spec.exclude)
    _check_pins(units, spec.pins, candidates, frozenset(spec.exclude))
    _check_ties(units, spec.ties, spec.pins, frozenset(spec.exclude))
    check_limits(spec.limits)
    if len(spec.budget) > 64:
        raise InvalidRequest(f"a budget of {len(spec.budget)} characters", field, spec.budget, "at most 64")


def split_sizes(samples: int, holdout: float) -> tuple[int, int]:
    """How many samples are for calibration and how many are set aside for evaluation.

    At least one of each when anything is to be set aside; the caller has checked that there are two or more.
    """
    if not holdout:
        return samples, 0
    evaluation = min(max(round(samples * holdout), 1), samples - 1)
    return samples - evaluation, evaluation


def check_samples(samples: int | None, holdout: float, available: int, *, has_evaluation: bool) -> None:
    """Number of samples and the fraction set aside, against what the dataset holds.

    Raises:
        InvalidRequest: Out of range, or an evaluation dataset and a holdout at once.
    """
    if not 0 <= holdout <= MAX_HOLDOUT:
        raise InvalidRequest(
            f"holdout {holdout} is out of range", "holdout", holdout, f"a fraction from 0 to {MAX_HOLDOUT}"
        )
    if holdout and has_evaluation:
        raise InvalidRequest(
            "a holdout and an evaluation dataset are given",
            "holdout",
            holdout,
            "0 together with an evaluation dataset",
        )
    if holdout and available < 2:
        raise InvalidRequest(
            f"the dataset has {available} sample; none can be set aside",
            "holdout",
            holdout,
            "0, or a dataset with 2 samples or more",
        )
    calibration, _ = split_sizes(available, holdout)
    if samples is not None and not 1 <= samples <= calibration:
        raise InvalidRequest(
            f"{samples} samples are asked for, {calibration} are there for calibration",
            "samples",
            samples,
            f"a whole number from 1 to {calibration}, or null for all",
        )


def _check_exclusions(units: Mapping[str, UnitInfo], exclude: Sequence[str]) -> None:
    for index, name in enumerate(exclude):
        _known(units, name, f"exclude.{index}")
    if units and set(units) <= set(exclude):
        raise InvalidRequest(
            f"all {len(units)} units are excluded; nothing is left to search",
            "exclude",
            list(exclude)[:_SHOWN],
            "fewer units",
        )


def _check_pins(
    units: Mapping[str, UnitInfo], pins: Mapping[str, int], candidates: Sequence[int], exclude: frozenset[str]
) -> None:
    for name, bits in pins.items():
        field = f"pins.{name}"
        _known(units, name, field)
        if bits not in candidates:
            raise InvalidRequest(
                f"unit {name!r} is pinned to {bits} bits, which is not offered",
                field,
                bits,
                sorted(candidates),
            )
        if name in exclude:
            raise InvalidRequest(
                f"unit {name!r} is pinned and excluded", field, bits, "either a pin or an exclusion"
            )


def _check_ties(
    units: Mapping[str, UnitInfo],
    ties: Sequence[Sequence[str]],
    pins: Mapping[str, int],
    exclude: frozenset[str],
) -> None:
    for index, group in enumerate(ties):
        field = f"ties.{index}"
        if len(set(group)) < 2:
            raise InvalidRequest(
                f"tie {index} has {len(set(group))} different units",
                field,
                list(group),
                "two units or more",
            )
        for position, name in enumerate(group):
            _known(units, name, f"{field}.{position}")
            if name in exclude:
                raise InvalidRequest(
                    f"unit {name!r} is tied and excluded",
                    f"{field}.{position}",
                    name,
                    "either a tie or an exclusion",
                )
        _check_shapes(field, [units[name] for name in group])
    for tied in joined(ties):
        pinned = sorted({pins[name] for name in tied if name in pins})
        if len(pinned) > 1:
            raise InvalidRequest(
                f"units that are tied are pinned to different bit-widths: {pinned}",
                "ties",
                sorted(tied)[:_SHOWN],
                "one bit-width for all units of a tie",
            )


def _check_shapes(field: str, group: Sequence[UnitInfo]) -> None:
    """Tied weights run as one fused weight: they may differ along the output-channel axis only."""
    first = group[0]
    for other in group[1:]:
        if (first.operator, _shape_rule(first)) != (other.operator, _shape_rule(other)):
            raise InvalidRequest(
                f"units {first.name!r} ({first.operator}, shape {list(first.shape)}) and {other.name!r} "
                f"({other.operator}, shape {list(other.shape)}) cannot be tied",
                field,
                [u.name for u in group],
                "units of the same operator whose shapes differ along the output-channel axis at most",
            )


def _shape_rule(unit: UnitInfo) -> tuple[object, ...]:
    shape: list[object] = list(unit.shape)
    shape[unit.output_channel_axis] = "any"
    return (*shape, unit.output_channel_axis, unit.group_axis)


def _known(units: Iterable[str], name: str, field: str) -> None:
    names = list(units)
    if name not in names:
        shown = names[:_SHOWN] + ([f"… {len(names) - _SHOWN} more"] if len(names) > _SHOWN else [])
        raise InvalidRequest(f"the model has no unit {name!r}", field, name, shown)
