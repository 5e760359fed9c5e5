"""Which implementation of the knapsack's steps is used: NumPy at once, the compiled kernel when it is ready.

Compiling takes seconds (loading from the cache tenths of one), so it happens in a background thread that starts when the
process has spent some time in the NumPy path; nobody waits for it. Without numba nothing happens.
"""

import importlib
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from solver import core, hull, pareto, relaxation, search, tablewise
from solver.certificate import MinimaSum
from solver.core import Core, Known, Scan
from solver.hull import Hull
from solver.relaxation import Relaxation
from solver.search import SearchResult

_PATIENCE_S = 0.25
"""Seconds in the NumPy path after which compiling is worth its own time."""


class Engine(Protocol):
    """The steps; see `solver.relaxation`, `solver.core` and `solver.search`."""

    name: str

    def relax(
        self, costs: NDArray[np.float64], sizes: NDArray[np.int64], budget: int, known: Hull | None = None
    ) -> Relaxation:
        """Solve the relaxation."""

    def build_hull(self, costs: NDArray[np.float64], sizes: NDArray[np.int64]) -> Hull:
        """All plans optimal for some price."""

    def scan(
        self,
        costs: NDArray[np.float64],
        sizes: NDArray[np.int64],
        relaxation: Relaxation,
        target: float,
        known: Known = core.NOTHING,
    ) -> Scan:
        """Find the moves below the gap and an incumbent."""

    def assemble(self, costs: NDArray[np.float64], sizes: NDArray[np.int64], found: Scan) -> Core:
        """Order the moves by classes."""

    def search(
        self,
        core: Core,
        *,
        target: float,
        step: float,
        deadline: float,
        caps: Sequence[int] = search.STATE_CAPS,
    ) -> SearchResult:
        """Exhaust the core."""

    def add_choices(
        self,
        size: NDArray[np.int64],
        cost: NDArray[np.float64],
        steps: NDArray[np.int64],
        changes: NDArray[np.float64],
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """Every state with each of a group's moves; see `solver.pareto.add_choices`."""

    def cost_of(self, costs: NDArray[np.float64], slots: NDArray[np.int64]) -> float:
        """Sum of the chosen costs, to the last place."""

    def smallest_total(self, table: NDArray[np.int64]) -> int:
        """Sum of each row's least value."""

    @property
    def sum_of_minima(self) -> MinimaSum | None:
        """See `solver.certificate.lagrangian_bound`."""


class _NumpyEngine:
    """Always there."""

    name = f"numpy {np.__version__}"
    relax = staticmethod(relaxation.relax)
    build_hull = staticmethod(hull.build_hull)
    scan = staticmethod(core.scan)
    assemble = staticmethod(core.assemble)
    search = staticmethod(search.search)
    add_choices = staticmethod(pareto.add_choices)
    cost_of = staticmethod(tablewise.cost_of)
    smallest_total = staticmethod(tablewise.smallest_total)
    sum_of_minima: MinimaSum | None = None


class _State:
    """What this process has: one instance, guarded by its lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.numpy: Engine = _NumpyEngine()
        self.compiled: Engine | None = None
        self.thread: threading.Thread | None = None
        self.seconds = 0.0

    def load(self) -> None:
        """Import the kernel, which compiles it or takes it from the cache."""
        try:
            module: Any = importlib.import_module("solver.compiled")
        except Exception:  # noqa: BLE001 - a numba that is installed but broken, however: the NumPy path serves
            return
        self.compiled = module.ENGINE

    def start(self) -> threading.Thread | None:
        """Start loading in the background, once."""
        with self.lock:
            if self.thread is None and find_spec("numba") is not None:
                self.thread = threading.Thread(target=self.load, name="solver-kernel", daemon=True)
                self.thread.start()
            return self.thread


_STATE = _State()


def engine() -> Engine:
    """The fastest implementation that is ready now."""
    return _STATE.compiled or _STATE.numpy


def reference_engine() -> Engine:
    """The NumPy implementation."""
    return _STATE.numpy


def spent(seconds: float) -> None:
    """Tell how long a solve took without the kernel; starts compiling when it adds up."""
    if _STATE.compiled is None and _STATE.thread is None:
        _STATE.seconds += seconds
        if _STATE.seconds > _PATIENCE_S:
            _STATE.start()


def warm_up(*, wait: bool = False) -> bool:
    """Have the compiled kernel ready, for processes that will solve a lot.

    Args:
        wait: Return only when it is ready (up to half a minute the first time on a machine) or cannot be had.

    Returns:
        Whether the kernel is ready; always ``False`` without numba.
    """
    thread = _STATE.start()
    if wait and thread is not None:
        thread.join()
    return _STATE.compiled is not None
