"""What a search may ask for, checked against the model: pure, no database, no torch."""

from collections.abc import Iterable, Mapping, Sequence

from app.errors import InvalidRequest
from app.plans.planner import BudgetCounts, PlanSpec, joined
from workers.contracts import MAX_BITS, MIN_BITS, Candidate, Metric, ModelDescription, Scheme, UnitInfo

MAX_HOLDOUT = 0.9
_SHOWN = 20


def check_candidates(bits: Sequence[int], scheme: str) -> tuple[Candidate, ...]:
    """Bit-widths with their scheme, ascending.

    Raises:
        InvalidRequest: None, or the same one twice.
        RequestRefused: A bit-width outside 2 to 16, or an unknown scheme.
    """
    if not bits:
        raise InvalidRequest(
            "no candidate bit-width is given",
            "candidates",
            [],
            f"one or more whole numbers from {MIN_BITS} to {MAX_BITS}",
        )
    twice = sorted({b for b in bits if bits.count(b) > 1})
    if twice:
        raise InvalidRequest(
            f"bit-width {twice[0]} is given twice", "candidates", list(bits), "each bit-width once"
        )
    parsed = Scheme.parse(scheme)
    return tuple(Candidate(bits=b, scheme=parsed) for b in sorted(bits))


def check_metric(text: str, description: ModelDescription) -> Metric:
    """The metric of this name, if the model's outputs can be compared by it.

    Raises:
        InvalidRequest: There is none, or the model's first output holds no distribution to compare.
    """
    try:
        metric = Metric(text)
    except ValueError:
        raise InvalidRequest(f"unknown metric {text!r}", "metric", text, [m.value for m in Metric]) from None
    shape = description.outputs[0].shape if description.outputs else ()
    no_classes = len(shape) == 1 or (len(shape) > 1 and shape[-1] is not None and shape[-1] < 2)
    if metric is not Metric.MSE and no_classes:
        raise InvalidRequest(
            f"{text!r} compares distributions over the last axis; the model's first output has shape {list(shape)}",
            "metric",
            text,
            [Metric.MSE.value],
        )
    return metric


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
