"""Several outputs that a job compares at once, as far as intake can tell: pure, no torch."""

from collections.abc import Mapping
from dataclasses import dataclass

from app.errors import InvalidRequest
from app.jobs.outputs import with_output_first
from app.jobs.rules import has_classes
from workers.contracts import Estimator, Metric, ModelDescription
from workers.mixtures import WeightedOutput, mixture_text

ESTIMATORS = (Estimator.PROBE.value, Estimator.WEIGHT_MSE.value, Estimator.WEIGHT_SQNR.value)
"""Those that several outputs are no obstacle to."""


@dataclass(frozen=True, kw_only=True)
class OutputShare:
    """What a request says of one output: its weight, and what it is compared by (``None``: by the rule)."""

    weight: float
    compare: str | None = None


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """What is compared.

    Args:
        text: Of all outputs; stands in a request in the place of one output's name.
        compare: What the sum is called: ``kl`` if any output is compared so.
        description: The model with the output first that decides what else may be asked.
    """

    text: str
    compare: Metric
    description: ModelDescription


def check_outputs(
    description: ModelDescription, shares: Mapping[str, OutputShare], metric: str, compare: str | None
) -> Mixture:
    """Several outputs, each compared by what is said of it, or by ``kl`` where it may hold a distribution, else ``mse``.

    Args:
        description: As intake gave it.
        shares: By name or index of an output.
        metric: Of the request.
        compare: Of the request; ``mse`` compares all outputs so.

    Raises:
        InvalidRequest: An output is not there, is named twice or cannot be compared so, or the metric does not go with
            several.
        RequestRefused: A weight is no finite number above 0.
    """
    _check_metric(metric)
    if compare is None and metric in (Metric.KL, Metric.MSE):
        compare = metric
    found: dict[str, tuple[WeightedOutput, ModelDescription]] = {}
    for wanted, share in shares.items():
        first = _first(description, wanted)
        name = first.outputs[0].name
        if name in found:
            raise InvalidRequest(f"output {name!r} is named twice", "outputs", wanted, "each output once")
        chosen = _comparison(first, share, compare)
        found[name] = WeightedOutput(name=name, weight=share.weight, metric=chosen), first
    kept = [found[output.name] for output in description.outputs if output.name in found]
    by_divergence = [first for output, first in kept if output.metric is Metric.KL]
    if compare == Metric.KL and not by_divergence:
        raise InvalidRequest(
            "no output is compared by 'kl'", "compare" if metric != compare else "metric", compare, ["mse"]
        )
    return Mixture(
        text=mixture_text([output for output, _ in kept]),
        compare=Metric.KL if by_divergence else Metric.MSE,
        description=by_divergence[0] if by_divergence else kept[0][1],
    )


def _check_metric(metric: str) -> None:
    allowed = ["auto", Metric.KL.value, Metric.MSE.value, *ESTIMATORS]
    if metric not in allowed:
        raise InvalidRequest(f"metric {metric!r} does not go with several outputs", "metric", metric, allowed)


def _first(description: ModelDescription, wanted: str) -> ModelDescription:
    try:
        return with_output_first(description, wanted)
    except InvalidRequest as refused:
        raise InvalidRequest(refused.message, "outputs", refused.value, refused.allowed) from None


def _comparison(first: ModelDescription, share: OutputShare, compare: str | None) -> Metric:
    name, classes = first.outputs[0].name, has_classes(first)
    if share.compare is None:
        return Metric.KL if classes and compare != Metric.MSE else Metric.MSE
    allowed = (
        [Metric.MSE.value] if compare == Metric.MSE or not classes else [Metric.KL.value, Metric.MSE.value]
    )
    if share.compare not in allowed:
        why = "all are to be compared by 'mse'" if classes else "it holds no distribution over its last axis"
        raise InvalidRequest(
            f"output {name!r} cannot be compared by {share.compare!r}: {why}",
            "outputs",
            share.compare,
            allowed,
        )
    return Metric(share.compare)
