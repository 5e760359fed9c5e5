"""Measuring by prefix reuse against the plain loop: time, equality, memory.

Every entry (unit, candidate) is measured both ways, one right after the other, so that a busy machine
disturbs both alike. Times are given in units of one float pass over the calibration samples, passes being
timed now and then in between. The costs must be equal bit for bit; the program ends with 1 if they are not.
Without arguments it builds EfficientNet-Lite0 and photos from installed packages (see
``examples/efficientnet_lite0.py``)::

    python benchmarks/measure.py --samples 8 --json measure.json
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from workers.contracts import Candidate, MeasureRequest, Metric, Scheme
from workers.graph.allocator import keep_freed_memory
from workers.graph.describe import describe
from workers.intake.models import read_model
from workers.sensitivity.exact import Setup, exact_costs, quantized
from workers.sensitivity.naive import naive_costs
from workers.sensitivity.prefixes import Prefixes
from workers.sensitivity.session import prepare
from workers.sensitivity.sharding import work

MIB = 1 << 20
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
ENTRIES_PER_PASS = 20


@dataclass
class Clock:
    """Wall-clock and CPU seconds of something done repeatedly."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def time(self, action: Callable[[], Any]) -> Any:
        """Run something once."""
        wall, cpu = time.perf_counter(), time.process_time()
        result = action()
        self.cpu_s.append(time.process_time() - cpu)
        self.wall_s.append(time.perf_counter() - wall)
        return result


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run found. Passes are in units of one float pass over the samples."""

    samples: int
    units: int
    entries: int
    threads: int
    pass_wall_s: float
    pass_cpu_s: float
    naive_passes_per_entry_wall: float
    naive_passes_per_entry_cpu: float
    ours_passes_per_entry_wall: float
    ours_passes_per_entry_cpu: float
    expected_passes_per_entry: float
    quantizing_passes_per_entry_cpu: float
    speedup_wall: float
    speedup_cpu: float
    equal_entries: int
    kept_values_mib: float
    kept_outputs_mib: float
    peak_process_mib: float


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="a .pt2 file (default: EfficientNet-Lite0)")
    parser.add_argument("--calibration", type=Path, help="its safetensors file (default: photos)")
    parser.add_argument("--samples", type=int, default=8, help="calibration samples to use (default: 8)")
    parser.add_argument("--batch-size", type=int, default=4, help="samples per pass (default: 4)")
    parser.add_argument("--candidates", default="2,3,4,5,6,8", help="bit-widths (default: 2,3,4,5,6,8)")
    parser.add_argument(
        "--scheme", default="channel-asymmetric", help="quantizer (default: channel-asymmetric)"
    )
    parser.add_argument("--metric", default="kl", choices=[m.value for m in Metric], help="default: kl")
    parser.add_argument("--memory", type=int, default=2048, help="MiB for values kept between passes (2048)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    if (options.model is None) != (options.calibration is None):
        parser.error("--model and --calibration belong together")
    return options


def request_of(options: argparse.Namespace, folder: Path) -> MeasureRequest:
    """What is to be measured: every candidate of every unit."""
    model, calibration = options.model, options.calibration
    if model is None:
        sys.path.insert(0, str(EXAMPLES))
        import efficientnet_lite0  # noqa: PLC0415 - from the folder just added

        assets = efficientnet_lite0.build(folder)
        model, calibration = assets.model, assets.calibration
    scheme = Scheme.parse(options.scheme)
    candidates = [Candidate(bits=int(bits), scheme=scheme) for bits in options.candidates.split(",")]
    units = describe(read_model(model)).units
    return MeasureRequest(
        model_path=str(model),
        calibration_path=str(calibration),
        metric=Metric(options.metric),
        wanted=tuple((unit.name, candidate) for unit in units for candidate in candidates),
        samples=options.samples,
        batch_size=options.batch_size,
        memory_bytes=options.memory * MIB,
    )


def float_pass(setup: Setup) -> None:
    """The unit of time."""
    for batch in range(len(setup.batches)):
        setup.program.run(setup.batches.inputs_of(batch))


def compare(request: MeasureRequest, console: Console) -> Result:
    """Measure every entry both ways."""
    setup = prepare(request)
    room = max(0, request.memory_bytes - setup.reference.kept_bytes)
    prefixes = Prefixes(setup.program, setup.batches, memory_bytes=room)
    passes, plain, ours, quantizing = Clock(), Clock(), Clock(), Clock()
    float_pass(setup)
    expected_costs = naive_costs(setup, request.wanted)
    measured = exact_costs(setup, request.wanted, prefixes)
    equal = 0
    with console.status("measuring") as status:
        for number, entry in enumerate(request.wanted):
            if number % ENTRIES_PER_PASS == 0:
                passes.time(lambda: float_pass(setup))
                status.update(f"{number} of {len(request.wanted)} entries")
            expected = plain.time(lambda: next(expected_costs))
            equal += int(torch.equal(expected, ours.time(lambda: next(measured)).costs))
            quantizing.time(lambda entry=entry: quantized(setup.program, setup.table, [entry]))
    one_wall, one_cpu = statistics.median(passes.wall_s), statistics.median(passes.cpu_s)
    count = len(request.wanted)
    description = describe(read_model(Path(request.model_path)))
    return Result(
        samples=len(setup.batches.samples),
        units=len(setup.table.units),
        entries=count,
        threads=torch.get_num_threads(),
        pass_wall_s=one_wall,
        pass_cpu_s=one_cpu,
        naive_passes_per_entry_wall=sum(plain.wall_s) / count / one_wall,
        naive_passes_per_entry_cpu=sum(plain.cpu_s) / count / one_cpu,
        ours_passes_per_entry_wall=sum(ours.wall_s) / count / one_wall,
        ours_passes_per_entry_cpu=sum(ours.cpu_s) / count / one_cpu,
        expected_passes_per_entry=sum(work(description, request.wanted)) / count,
        quantizing_passes_per_entry_cpu=sum(quantizing.cpu_s) / count / one_cpu,
        speedup_wall=sum(plain.wall_s) / sum(ours.wall_s),
        speedup_cpu=sum(plain.cpu_s) / sum(ours.cpu_s),
        equal_entries=equal,
        kept_values_mib=prefixes.peak_bytes / MIB,
        kept_outputs_mib=setup.reference.kept_bytes / MIB,
        peak_process_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def show(result: Result, console: Console) -> None:
    """Print the result."""
    console.print(
        f"{result.entries} entries of {result.units} units, {result.samples} samples, {result.threads} threads"
    )
    console.print(f"one float pass: {result.pass_wall_s:.3f} s, CPU {result.pass_cpu_s:.3f} s")
    table = Table("passes per entry", "CPU time", "wall clock")
    naive = (result.naive_passes_per_entry_cpu, result.naive_passes_per_entry_wall)
    ours = (result.ours_passes_per_entry_cpu, result.ours_passes_per_entry_wall)
    table.add_row("plain loop", *(f"{value:.3f}" for value in naive))
    table.add_row("prefix reuse", *(f"{value:.3f}" for value in ours))
    table.add_row("  of it quantizing", f"{result.quantizing_passes_per_entry_cpu:.3f}", "")
    table.add_row("  as planned", f"{result.expected_passes_per_entry:.3f}", "")
    table.add_row("speed-up", f"{result.speedup_cpu:.2f}", f"{result.speedup_wall:.2f}")
    console.print(table)
    console.print(f"equal bit for bit: {result.equal_entries} of {result.entries} entries")
    kept = f"values {result.kept_values_mib:.1f} MiB, outputs {result.kept_outputs_mib:.2f} MiB"
    console.print(f"kept between passes: {kept}; peak of the process: {result.peak_process_mib:.0f} MiB")


def main() -> int:
    """Run the comparison; 0 if all entries are equal."""
    options = arguments()
    keep_freed_memory()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        result = compare(request_of(options, Path(folder)), console)
    show(result, console)
    if options.json is not None:
        options.json.write_text(json.dumps(asdict(result), indent=2) + "\n")
    return 0 if result.equal_entries == result.entries else 1


if __name__ == "__main__":
    sys.exit(main())
