"""Workers played event by event: what the database would show of their tasks at any moment."""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from app.jobs.repository import ShardCounts, TaskTimes
from app.models import TaskKind, TaskState

START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What a task finishes and tells at once: an entry, a batch. ``work`` is what is expected of it, ``seconds`` what it takes."""

    work: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """One attempt at a task: when each of its pieces was finished."""

    process: str
    started: float
    ended: float
    killed: bool
    finished: tuple[tuple[float, Piece], ...]


@dataclass(kw_only=True)
class Simulation:
    """Tasks in their order on workers.

    Args:
        tasks: Pieces of each.
        workers: How many.
        start_seconds: What a worker does before the first piece of its first task.
        task_seconds: What it does before the first piece of any other.
        kills: Moment -> worker that is killed then.
        restart_seconds: How long it is away.
        keeps: Whether finished pieces of a killed attempt stay finished (entries do, batches do not).
    """

    tasks: Sequence[Sequence[Piece]]
    workers: int = 1
    start_seconds: float = 0.0
    task_seconds: float = 0.0
    kills: Mapping[float, int] = field(default_factory=dict)
    restart_seconds: float = 3.0
    keeps: bool = True
    runs: list[list[Run]] = field(init=False)

    def __post_init__(self) -> None:
        self.runs = [[] for _ in self.tasks]
        ready = [(0.0, worker) for worker in range(self.workers)]
        waiting = [(number, 0.0) for number in range(len(self.tasks))]
        generation = [0] * self.workers
        begun: set[str] = set()
        while waiting:
            now, worker = heapq.heappop(ready)
            number, since = next((w for w in waiting if w[1] <= now), min(waiting, key=lambda w: w[1]))
            waiting.remove((number, since))
            now = max(now, since)
            process = f"host:{worker}.{generation[worker]}"
            lead = self.task_seconds if process in begun else self.start_seconds
            begun.add(process)
            run = self._run(number, process, now, lead, worker)
            self.runs[number].append(run)
            if run.killed:
                generation[worker] += 1
                waiting = sorted([(number, run.ended), *waiting])
                heapq.heappush(ready, (run.ended + self.restart_seconds, worker))
            else:
                heapq.heappush(ready, (run.ended, worker))

    def _run(self, number: int, process: str, now: float, lead: float, worker: int) -> Run:
        before = sum(len(run.finished) for run in self.runs[number]) if self.keeps else 0
        killed = min((t for t, w in self.kills.items() if w == worker and t > now), default=float("inf"))
        finished, moment = [], now + lead
        for piece in self.tasks[number][before:]:
            moment += piece.seconds
            if moment > killed:
                break
            finished.append((moment, piece))
        dies = min(moment, killed) == killed
        return Run(
            process=process,
            started=now,
            ended=killed if dies else moment,
            killed=dies,
            finished=tuple(finished),
        )

    @property
    def seconds(self) -> float:
        """How long all of it takes."""
        return max(runs[-1].ended for runs in self.runs)

    def times(self, now: float, kind: TaskKind) -> list[TaskTimes]:
        """The tasks' rows, with what workers tell of them after each piece."""
        return [self._row(number, now, kind) for number in range(len(self.tasks))]

    def shards(self, now: float) -> dict[str, ShardCounts]:
        """How many entries of each task are measured."""
        return {f"t{number}": self._counts(number, now) for number in range(len(self.tasks))}

    def _last(self, number: int, now: float) -> Run | None:
        return next((run for run in reversed(self.runs[number]) if run.started <= now), None)

    def _row(self, number: int, now: float, kind: TaskKind) -> TaskTimes:
        run = self._last(number, now)
        if run is None:
            return TaskTimes(id=f"t{number}", kind=kind, state=TaskState.PENDING)
        over = run.ended <= now
        state = TaskState.RUNNING if not over else TaskState.PENDING if run.killed else TaskState.DONE
        total = sum(piece.work for piece in self.tasks[number])
        best = max(_done(each, now) / total for each in self.runs[number])
        fraction = _done(run, now) / total
        told = [moment for moment, _ in run.finished if moment <= now]
        pace = expected = None
        if len(told) > 1:
            pace = (told[-1] - told[0]) / (fraction - run.finished[0][1].work / total)
            expected = moment_of(told[-1] + (1 - fraction) * pace)
        return TaskTimes(
            id=f"t{number}",
            kind=kind,
            state=state,
            started_at=moment_of(run.started),
            finished_at=moment_of(run.ended) if state is TaskState.DONE else None,
            worker=None if state is TaskState.PENDING else f"{run.process}:{number}",
            fraction=best,
            pace_seconds=pace,
            expected_at=expected,
        )

    def _counts(self, number: int, now: float) -> ShardCounts:
        run = self._last(number, now)
        pieces = self.tasks[number]
        done = [p for each in self.runs[number] for moment, p in each.finished if moment <= now]
        fresh = [(moment, p) for moment, p in (run.finished if run else ()) if moment <= now]
        return ShardCounts(
            done=len(done),
            total=len(pieces),
            done_work=sum(p.work for p in done),
            total_work=sum(p.work for p in pieces),
            fresh=len(fresh),
            fresh_work=sum(p.work for _, p in fresh),
            fresh_seconds=sum(p.seconds for _, p in fresh),
            first_at=moment_of(fresh[0][0]) if fresh else None,
            last_at=moment_of(fresh[-1][0]) if fresh else None,
        )


def _done(run: Run, now: float) -> float:
    return sum(piece.work for moment, piece in run.finished if moment <= now)


def moment_of(seconds: float) -> datetime:
    """The moment so many seconds after the beginning."""
    return START + timedelta(seconds=seconds)
