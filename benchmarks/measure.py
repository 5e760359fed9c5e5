"""Measuring by prefix reuse against the plain loop: time, equality, memory.

Every entry (unit, candidate) is measured in all ways, unit by unit, one right after the other, so that a busy machine
disturbs all alike: by the plain loop; by prefix reuse; with candidates stacked in one pass where that is faster;
with output changes kept. Times are also given in units of one float pass over the calibration samples, passes being
timed in between. The costs must be equal bit for bit; the program ends with 1 if they are not.
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
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from workers.contracts import Candidate, MeasureRequest, Metric, Scheme
from workers.graph.allocator import keep_freed_memory
from workers.graph.describe import describe
from workers.intake.models import read_model
from workers.sampling import SketchRequest
from workers.sensitivity.exact import Setup, exact_costs, quantized
from workers.sensitivity.naive import naive_costs
from workers.sensitivity.prefixes import Prefixes
from workers.sensitivity.session import prepare
from workers.sensitivity.sharding import work
from workers.sensitivity.stacking import Stacking

MIB = 1 << 20
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
WAYS = {
    "naive": "plain loop",
    "exact": "prefix reuse",
    "stacked": "  and stacking",
    "sketched": "  and sketches",
}


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
class Way:
    """One way of measuring. Passes are in units of one float pass over the samples."""

    wall_s: float
    cpu_s: float
    passes_per_entry_wall: float
    passes_per_entry_cpu: float
    speedup_wall: float
    speedup_cpu: float
    equal_entries: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run found."""

    samples: int
    batch_size: int
    units: int
    entries: int
    threads: int
    pass_wall_s: float
    pass_cpu_s: float
    naive: Way
    exact: Way
    stacked: Way
    sketched: Way
    stacked_batches: int
    sketch_numbers: int
    expected_passes_per_entry: float
    quantizing_passes_per_entry_cpu: float
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
    parser.add_argument("--units", type=int, help="measure only so many units, evenly spread (default: all)")
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
    if options.units is not None:
        units = units[:: max(1, len(units) // options.units)]
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


@dataclass
class Comparison:
    """Entries measured in several ways, unit by unit."""

    setup: Setup
    request: MeasureRequest
    clocks: dict[str, Clock] = field(default_factory=lambda: {way: Clock() for way in WAYS})
    equal: dict[str, int] = field(default_factory=lambda: dict.fromkeys(WAYS, 0))
    passes: Clock = field(default_factory=Clock)
    quantizing: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        memory, setup = self.request.memory_bytes, self.setup
        room = max(0, memory - setup.reference.kept_bytes)
        self.stacking = Stacking(setup.program, setup.batches, memory_bytes=memory)
        self.prefixes = {
            way: Prefixes(setup.program, setup.batches, memory_bytes=room) for way in WAYS if way != "naive"
        }
        sketching = setup.reference.with_sketches(SketchRequest(), self.request.seed)
        self.sketching = replace(setup, reference=sketching)

    def measure(self, entries: list[tuple[str, Candidate]]) -> None:
        """All candidates of one unit, in all ways, one right after the other."""
        self.passes.time(lambda: float_pass(self.setup))
        expected = self.clocks["naive"].time(lambda: list(naive_costs(self.setup, entries)))
        for way in WAYS:
            if way != "naive":
                found = self.clocks[way].time(partial(self._exact, way, entries))
                self.equal[way] += sum(map(torch.equal, found, expected))
        self.equal["naive"] += len(entries)
        for entry in entries:
            self.quantizing.time(partial(quantized, self.setup.program, self.setup.table, [entry]))

    def _exact(self, way: str, entries: list[tuple[str, Candidate]]) -> list[torch.Tensor]:
        setup = self.sketching if way == "sketched" else self.setup
        stacking = self.stacking if way == "stacked" else None
        return [found.costs for found in exact_costs(setup, entries, self.prefixes[way], stacking)]

    def way(self, name: str) -> Way:
        """Figures of one way."""
        clock, naive, count = self.clocks[name], self.clocks["naive"], len(self.request.wanted)
        wall, cpu = sum(clock.wall_s), sum(clock.cpu_s)
        return Way(
            wall_s=wall,
            cpu_s=cpu,
            passes_per_entry_wall=wall / count / statistics.median(self.passes.wall_s),
            passes_per_entry_cpu=cpu / count / statistics.median(self.passes.cpu_s),
            speedup_wall=sum(naive.wall_s) / wall,
            speedup_cpu=sum(naive.cpu_s) / cpu,
            equal_entries=self.equal[name],
        )


def compare(request: MeasureRequest, console: Console) -> Result:
    """Measure every entry in every way."""
    setup = prepare(request)
    comparison = Comparison(setup, request)
    float_pass(setup)
    groups = [list(entries) for _, entries in groupby(request.wanted, key=lambda entry: entry[0])]
    with console.status("measuring") as status:
        for number, entries in enumerate(groups):
            status.update(f"{number} of {len(groups)} units")
            comparison.measure(entries)
    projection = comparison.sketching.reference.projection
    assert projection is not None
    count = len(request.wanted)
    pass_cpu = statistics.median(comparison.passes.cpu_s)
    description = describe(read_model(Path(request.model_path)))
    return Result(
        samples=len(setup.batches.samples),
        batch_size=setup.batches.size,
        units=len(groups),
        entries=count,
        threads=torch.get_num_threads(),
        pass_wall_s=statistics.median(comparison.passes.wall_s),
        pass_cpu_s=pass_cpu,
        naive=comparison.way("naive"),
        exact=comparison.way("exact"),
        stacked=comparison.way("stacked"),
        sketched=comparison.way("sketched"),
        stacked_batches=comparison.stacking.stacked,
        sketch_numbers=projection.groups * projection.width,
        expected_passes_per_entry=sum(work(description, request.wanted)) / count,
        quantizing_passes_per_entry_cpu=sum(comparison.quantizing.cpu_s) / count / pass_cpu,
        kept_values_mib=comparison.prefixes["exact"].peak_bytes / MIB,
        kept_outputs_mib=setup.reference.kept_bytes / MIB,
        peak_process_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def show(result: Result, console: Console) -> None:
    """Print the result."""
    console.print(
        f"{result.entries} entries of {result.units} units, {result.samples} samples in batches of "
        f"{result.batch_size}, {result.threads} threads"
    )
    console.print(f"one float pass: {result.pass_wall_s:.3f} s, CPU {result.pass_cpu_s:.3f} s")
    table = Table("", "seconds", "CPU", "passes", "CPU", "speed-up", "CPU", "equal")
    for name, title in WAYS.items():
        way: Way = getattr(result, name)
        numbers = (
            f"{way.wall_s:.1f}",
            f"{way.cpu_s:.1f}",
            f"{way.passes_per_entry_wall:.3f}",
            f"{way.passes_per_entry_cpu:.3f}",
            f"{way.speedup_wall:.2f}",
            f"{way.speedup_cpu:.2f}",
            f"{way.equal_entries}/{result.entries}",
        )
        table.add_row(title, *numbers)
    console.print(table)
    console.print(
        f"passes are per entry: {result.expected_passes_per_entry:.3f} as planned, of it quantizing "
        f"{result.quantizing_passes_per_entry_cpu:.3f} (CPU); {result.stacked_batches} batches stacked; "
        f"{result.sketch_numbers} numbers a sketch"
    )
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
    ways = (result.exact, result.stacked, result.sketched)
    return 0 if all(way.equal_entries == result.entries for way in ways) else 1


if __name__ == "__main__":
    sys.exit(main())
