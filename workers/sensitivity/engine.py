"""Measuring sensitivities: what each candidate of each unit costs, everything else float."""

from collections.abc import Iterator

from workers.contracts import Candidate, Entry, MeasureRequest
from workers.graph.units import Unit
from workers.quant import storage_bits
from workers.sensitivity.exact import exact_costs
from workers.sensitivity.session import keep_prefixes, load_model, load_stacking, prepare, take_prefixes
from workers.sensitivity.statistics import moments, require_samples, run_means


def measure(request: MeasureRequest) -> Iterator[Entry]:
    """Measure entries exactly, one after the other.

    Each entry is finished when it is yielded, over all samples (of the request's block), so that the caller can store it and go on
    later with what is missing. Costs are equal bit for bit whatever else is measured in the same run, and to
    the plain loop's (`workers.sensitivity.naive`). Closing the generator early is fine.

    Args:
        request: What to measure. Entries come in the order of ``request.wanted``; execution order is cheapest.

    Yields:
        One entry per wanted unit and candidate. Broken candidates (outputs not finite) cost
        `workers.sensitivity.metrics.COST_LIMIT` per broken sample.

    Raises:
        ModelRefused: The model file breaks a rule, or a weight is not finite.
        DatasetRefused: The data does not fit the model, or labels do not fit the outputs.
        RequestRefused: Unknown unit, more samples than there are, or a metric that model or data cannot give.
        MeasurementFailed: The float model's outputs are not finite, or an operator failed.
        OSError: A file cannot be read.
    """
    table = load_model(request.model_path, request.device, request.output, request.compute_dtype).table
    units = {name: table.unit(name) for name, _ in request.wanted}
    setup = prepare(request)
    prefixes = take_prefixes(request, setup)
    stacking = load_stacking(request, setup)
    found = exact_costs(setup, request.wanted, prefixes, stacking)
    for (name, candidate), measurement in zip(request.wanted, found, strict=True):
        costs = measurement.costs.numpy()
        measured = moments(costs)
        if request.block is None:
            require_samples(measured)
        size, storage = sizes(units[name], candidate)
        yield Entry(
            unit=name,
            bits=candidate.bits,
            scheme=str(candidate.scheme),
            metric=request.metric,
            size_bits=size,
            storage_bits=storage,
            mean=measured.mean,
            standard_error=measured.standard_error,
            samples=measured.samples,
            seconds=measurement.seconds,
            squares=measured.squares,
            block=request.block,
            runs=run_means(costs).astype("<f8").tobytes(),
            sketch=measurement.sketch,
        )
    keep_prefixes(request, prefixes)


def sizes(unit: Unit, candidate: Candidate) -> tuple[int, int]:
    """Bits of a unit under a candidate: codes alone, and with scales and zero points."""
    info = unit.info
    storage = storage_bits(
        info.shape,
        candidate,
        output_channel_axis=info.output_channel_axis,
        group_axis=info.group_axis,
    )
    return info.weights * candidate.bits, storage
