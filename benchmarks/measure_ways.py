"""The ways of coming by costs that ``measure.py`` compares, each run once, with what it took of seconds and memory."""

import math
import random
import statistics
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from os import getpid, sysconf
from pathlib import Path
from typing import Any, Self

from rich.console import Console

from app.cli.progress import job_progress
from app.client import JobUpdate
from app.local import Files, search
from app.settings import Settings
from benchmarks.foretold import Error, Foretold
from workers.contracts import Candidate, MeasureRequest, Metric, Scheme

MIB = 1 << 20
PASSES = 3
_LOOK_S = 0.2
_MEASURING = ("probe", "measure", "solve")

Entry = tuple[str, str]
"""Unit and candidate."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is measured, in every way alike. ``regret`` is tolerated by racing and ``auto``."""

    model: Path
    calibration: Path
    compare: str
    samples: int | None
    batch_size: int | None
    scheme: str
    candidates: tuple[int, ...]
    budgets: tuple[str, ...]
    regret: float
    probes: int
    workers: int

    def request(self, way: str) -> dict[str, Any]:
        """The members of the job that comes by its costs in this way."""
        auto = {"metric": "auto", "compare": self.compare, "probes": self.probes, "regret": self.regret}
        how: dict[str, dict[str, Any]] = {
            "exact": {"metric": self.compare},
            "racing": {"metric": self.compare, "regret": self.regret},
            "probe": {"metric": "probe", "compare": self.compare, "probes": self.probes},
            "bounded": auto | {"max_passes": 1.75 * self.probes},
            "auto": auto,
        }
        return how[way] | {
            "budgets": list(self.budgets),
            "candidates": list(self.candidates),
            "scheme": self.scheme,
            "samples": self.samples,
            "batch_size": self.batch_size,
            "refine_rounds": 0,
        }


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a way found and took.

    Attributes:
        document: The search's result.
        seconds: Wall-clock, until all costs were known.
        cpu_seconds: Of the workers in that time.
        peak_mib: Most memory that one of them had.
        foretold: How wrong the times left were, by stage.
    """

    document: dict[str, Any]
    seconds: float
    cpu_seconds: float
    peak_mib: float
    foretold: tuple[Error, ...]


@dataclass(frozen=True, kw_only=True)
class Plain:
    """The plain loop, on all entries or on some.

    Attributes:
        means: What was run.
        seconds: Wall-clock seconds it took, or is reckoned to take where only some entries were run.
        cpu_seconds: The same of the processor.
        peak_mib: Of one worker.
        reckoned: Not all entries were run.
    """

    means: dict[Entry, float]
    seconds: float
    cpu_seconds: float
    peak_mib: float
    reckoned: bool


@dataclass(frozen=True, kw_only=True)
class FloatPass:
    """One float pass over all samples, in one worker's way."""

    seconds: float
    cpu_seconds: float


class Usage:
    """Looks after the processes that descend from this one while a block runs (Linux)."""

    def __init__(self) -> None:
        self._cpu: dict[int, float] = {}
        self.peak_mib = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def cpu_seconds(self) -> float:
        """Processor seconds of all descendants so far, those that have ended included."""
        return math.fsum(self._cpu.values())

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK_S):
            for pid, ticks in _descendants().items():
                self._cpu[pid] = ticks / sysconf("SC_CLK_TCK")
                self.peak_mib = max(self.peak_mib, _peak_mib(pid))


def _descendants() -> dict[int, int]:
    """Processor ticks of every process below this one."""
    rows: dict[int, tuple[int, int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        rows[int(path.parent.name)] = int(fields[1]), int(fields[11]) + int(fields[12])
    found: dict[int, int] = {}
    newest = {getpid()}
    while newest:
        newest = {pid for pid, (parent, _) in rows.items() if parent in newest and pid not in found}
        found |= {pid: rows[pid][1] for pid in newest}
    return found


def _peak_mib(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return max((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), default=0.0)


def searched(asked: Asked, way: str, folder: Path, console: Console) -> Found:
    """Run a search in a data directory of its own, so that nothing is shared with another way."""
    settings = Settings(data_dir=folder / way, workers=asked.workers)
    marks: dict[str, float] = {}
    foretold = Foretold()
    console.print(f"{way}:")
    with Usage() as usage, job_progress(console) as progress:

        def on_update(update: JobUpdate) -> None:
            stage = (update.progress or {}).get("stage")
            if stage in _MEASURING:
                marks.setdefault("begin", usage.cpu_seconds)
                marks["end"] = usage.cpu_seconds
            foretold.update(update.progress)
            progress.update(update.state, update.progress)

        files = Files(model=asked.model, calibration=asked.calibration)
        document = search(files, asked.request(way), settings, on_update)
    return Found(
        document=document,
        seconds=document["seconds"]["measure"],
        cpu_seconds=marks.get("end", 0.0) - marks.get("begin", 0.0),
        peak_mib=usage.peak_mib,
        foretold=tuple(foretold.close()),
    )


def _measure_request(asked: Asked) -> MeasureRequest:
    return MeasureRequest(
        model_path=str(asked.model),
        calibration_path=str(asked.calibration),
        metric=Metric(asked.compare),
        wanted=(),
        samples=asked.samples,
        batch_size=asked.batch_size,
    )


def _timed_pass(asked: Asked) -> FloatPass:
    import torch  # noqa: PLC0415 - in a process of its own

    from workers.sensitivity.session import prepare  # noqa: PLC0415

    torch.set_num_threads(Settings().worker_threads)
    setup = prepare(_measure_request(asked))
    wall, cpu = [], []
    for _ in range(PASSES):
        started = time.perf_counter(), time.process_time()
        for batch in range(len(setup.batches)):
            setup.program.run(setup.batches.inputs_of(batch))
        wall.append(time.perf_counter() - started[0])
        cpu.append(time.process_time() - started[1])
    return FloatPass(seconds=statistics.median(wall), cpu_seconds=statistics.median(cpu))


def _plain_part(asked: Asked, entries: Sequence[Entry]) -> tuple[dict[Entry, float], float, float]:
    import torch  # noqa: PLC0415 - in a process of its own

    from workers.sensitivity.naive import naive_costs  # noqa: PLC0415
    from workers.sensitivity.session import prepare  # noqa: PLC0415
    from workers.sensitivity.statistics import moments  # noqa: PLC0415

    torch.set_num_threads(Settings().worker_threads)
    setup = prepare(_measure_request(asked))
    started = time.perf_counter(), time.process_time()
    wanted = [(unit, Candidate.parse(candidate)) for unit, candidate in entries]
    costs = naive_costs(setup, wanted)
    means = {entry: moments(found.numpy()).mean for entry, found in zip(entries, costs, strict=True)}
    return means, time.perf_counter() - started[0], time.process_time() - started[1]


def float_pass(asked: Asked) -> FloatPass:
    """Time a float pass, in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_timed_pass, asked).result()


def plain_loop(asked: Asked, entries: Sequence[Entry], unit: FloatPass, minutes: float) -> Plain:
    """Run every entry as a whole pass; where that would take longer than so many minutes, as many as fit, drawn at random."""
    fits = int(60 * minutes * asked.workers / unit.seconds)
    reckoned = fits < len(entries)
    chosen = random.Random(0).sample(list(entries), max(fits, 2 * asked.workers)) if reckoned else entries
    parts = [list(chosen[part :: asked.workers]) for part in range(asked.workers)]
    with Usage() as usage, ProcessPoolExecutor(asked.workers, get_context("spawn")) as pool:
        found = list(pool.map(_plain_part, [asked] * len(parts), parts))
    means = {entry: mean for part, _, _ in found for entry, mean in part.items()}
    ran = Plain(
        means=means,
        seconds=max(wall for _, wall, _ in found),
        cpu_seconds=math.fsum(cpu for _, _, cpu in found),
        peak_mib=usage.peak_mib,
        reckoned=reckoned,
    )
    return reckoned_again(ran, len(entries), asked.workers, unit)


def reckoned_again(plain: Plain, entries: int, workers: int, unit: FloatPass) -> Plain:
    """The plain loop as a float pass says, where it is reckoned at all."""
    if not plain.reckoned:
        return plain
    return replace(plain, seconds=entries * unit.seconds / workers, cpu_seconds=entries * unit.cpu_seconds)


def middle(passes: Sequence[FloatPass]) -> FloatPass:
    """The median of passes timed at several moments of a run: a machine's speed drifts."""
    return FloatPass(
        seconds=statistics.median(each.seconds for each in passes),
        cpu_seconds=statistics.median(each.cpu_seconds for each in passes),
    )


def offered(asked: Asked) -> list[Entry]:
    """Every candidate of every unit."""
    from workers.graph.describe import describe  # noqa: PLC0415 - brings torch
    from workers.intake.models import read_model  # noqa: PLC0415

    scheme = Scheme.parse(asked.scheme)
    candidates = [str(Candidate(bits=bits, scheme=scheme)) for bits in asked.candidates]
    return [
        (unit.name, candidate) for unit in describe(read_model(asked.model)).units for candidate in candidates
    ]
