"""One call for every estimator, to compare them."""

from collections.abc import Callable, Sequence

from torch import Tensor

from workers.contracts import Candidate, Estimator
from workers.sensitivity.estimators.entries import Entries
from workers.sensitivity.estimators.fisher import diagonal_fisher, fit
from workers.sensitivity.estimators.hessian_trace import hessian_trace
from workers.sensitivity.estimators.output_errors import output_error, output_hessian
from workers.sensitivity.estimators.probe import ProbeOptions, probe
from workers.sensitivity.estimators.summary import summarize
from workers.sensitivity.estimators.weight_errors import weight_mse, weight_noise_ratio
from workers.sensitivity.exact import Setup

_WITH_DATA: dict[Estimator, Callable[[Setup, Entries, ProbeOptions], Tensor]] = {
    Estimator.OUTPUT_ERROR: output_error,
    Estimator.OUTPUT_HESSIAN: output_hessian,
    Estimator.HESSIAN_TRACE: hessian_trace,
    Estimator.FISHER: diagonal_fisher,
    Estimator.FIT: fit,
}


def scores(
    setup: Setup,
    wanted: Sequence[tuple[str, Candidate]],
    estimator: Estimator,
    options: ProbeOptions | None = None,
) -> Tensor:
    """Score entries by an estimator; higher is worse.

    Args:
        setup: What to work on.
        wanted: Unit names and candidates.
        estimator: Which.
        options: Seed, quantizer, masks, memory; what an estimator does not need is ignored.

    Returns:
        ``[entries]``, float64. In the metric's unit for the probe, the output Hessian and the diagonal Fisher
        information; others have a scale of their own, and order entries only.

    Raises:
        WorkerError: See the estimators.
    """
    options = options or ProbeOptions()
    if estimator is Estimator.PROBE:
        return summarize(probe(setup, wanted, options)).weights.mean
    entries = Entries.of(setup.table, wanted)
    if estimator is Estimator.WEIGHT_MSE:
        return weight_mse(setup.program, entries, options.quantize)
    if estimator is Estimator.WEIGHT_SQNR:
        return weight_noise_ratio(setup.program, entries, options.quantize)
    return _WITH_DATA[estimator](setup, entries, options)
