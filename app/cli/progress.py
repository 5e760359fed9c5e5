"""Progress of a job on a terminal: a bar with the time left, or plain lines where there is no terminal."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TransferSpeedColumn,
)
from rich.table import Column
from rich.text import Text

from app.report import quantities

_STAGES = {
    "probe": "estimating",
    "measure": "measuring",
    "solve": "solving",
    "verify": "verifying plans",
    "refine": "refining plans",
}
_LINE_EVERY = 0.1
"""Without a terminal: a line for each such fraction of the work, and where less of it is done than was told."""
_LINE_AFTER_S = 60.0
"""Without a terminal: a line after so many seconds without one."""


class _TimeLeft(ProgressColumn):
    """The time left, as the service estimates it."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """The column's text for a row."""
        seconds = task.fields.get("eta_seconds")
        return Text(_time_left(seconds), style="cyan")


class JobProgress:
    """Shows a job's progress documents; made by `job_progress`."""

    def __init__(
        self, console: Console, bar: Progress | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._console = console
        self._bar = bar
        self._task = bar.add_task("waiting", total=1.0, counts="", eta_seconds=None) if bar else None
        self._last = ("", -1.0, clock())

    def update(self, state: str, progress: Mapping[str, Any] | None) -> None:
        """Show how a job stands.

        Args:
            state: The job's state.
            progress: Its progress document: stage, done, total, unit, fraction, eta_seconds.
        """
        stage = str((progress or {}).get("stage") or "")
        words = _STAGES.get(stage, state)
        fraction = float((progress or {}).get("fraction") or 0.0)
        counts = _counts(progress)
        eta = (progress or {}).get("eta_seconds")
        if self._bar is not None and self._task is not None:
            self._bar.update(
                self._task, description=words, completed=fraction, counts=counts, eta_seconds=eta
            )
            return
        told, before, moment = self._last
        moved = not before <= fraction < before + _LINE_EVERY
        if words != told or moved or self._clock() >= moment + _LINE_AFTER_S:
            self._last = (words, fraction, self._clock())
            if progress is None:
                _print_line(self._console, words)
                return
            left = f", {_time_left(eta)}" if eta else ""
            done = f"{quantities.percent(fraction)}{f' ({counts})' if counts else ''}"
            _print_line(self._console, f"{words}: {done}{left}")


@contextmanager
def job_progress(console: Console) -> Iterator[JobProgress]:
    """A bar for a job while the block runs.

    Args:
        console: Usually standard error, so that documents can be piped.
    """
    if not console.is_terminal:
        yield JobProgress(console, None)
        return
    # What a narrow terminal has no room for is the end of the counts, not the time left.
    rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    bar = Progress(
        TextColumn("{task.description:<16}"),
        BarColumn(bar_width=20),
        TextColumn("{task.percentage:>3.0f} %"),
        _TimeLeft(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[counts]}", style="dim", markup=False, table_column=rest),
        console=console,
        transient=True,
        expand=True,
    )
    with bar:
        shown = JobProgress(console, bar)
        shown.update("waiting", None)
        yield shown


@contextmanager
def transfer_progress(console: Console, name: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """A bar for an upload: call what is yielded with the bytes sent so far."""
    if not console.is_terminal:
        _print_line(console, f"uploading {name} ({quantities.size(8 * total_bytes)})")
        yield lambda _sent: None
        return
    with Progress(
        TextColumn("uploading {task.description}", markup=False),
        BarColumn(bar_width=32),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=console,
        transient=True,
    ) as bar:
        task = bar.add_task(name, total=total_bytes)
        yield lambda sent: bar.update(task, completed=sent)


def _print_line(console: Console, text: str) -> None:
    """Print a line of a log: in one piece, however long it is, and as it stands."""
    console.print(text, soft_wrap=True, markup=False, highlight=False)


def _time_left(seconds: float | None) -> str:
    """In words; nothing when it is not known, or nothing is left."""
    return f"{quantities.duration(seconds)} left" if seconds else ""


def _counts(progress: Mapping[str, Any] | None) -> str:
    if not progress or not progress.get("total"):
        return ""
    counts = f"{progress.get('done', 0)}/{progress['total']} {progress.get('unit', '')}".strip()
    return f"{counts}: {progress['detail']}" if progress.get("detail") else counts
