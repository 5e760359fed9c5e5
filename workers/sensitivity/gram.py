"""Pairwise interactions from the sketches of output changes. Torch-free: the service solves with them.

With ``v`` the output changes, the joint cost of a plan ``x`` is to second order ``|sum_i v_i|^2``. So the costs
measured one by one stay what they are on the diagonal, and the products of different units' changes are added:

    cost(x) = c'x + |V'x|^2,    c = measured cost - |v|^2,

which is exact for a single unit, whatever the noise of the sketches. Each v is first brought to the length that its cost
says, ``|v|^2 = cost``: costs saturate where changes are large and their squares do not, so that the products would be out
of all proportion. What a sketch tells is the correlation of two changes. Entries without a sketch, and those whose cost is
not positive, have no interactions.

Few numbers per sketch make noisy products. Where there are fewer than five numbers per entry, products between
different entries are multiplied by one factor below 1, estimated from their spread over the numbers.

Source: Ledoit, Wolf (2004), A well-conditioned estimator for large-dimensional covariance matrices, with the diagonal
as the target and on the scale of correlations: Schäfer, Strimmer (2005), A shrinkage approach to large-scale covariance
matrix estimation, section 2.4, target D.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from workers.errors import RequestRefused
from workers.sampling import SampleBlock

_ENOUGH_PER_ENTRY = 5
"""Of this many numbers per entry on, products are taken as they are."""


class Sketched(Protocol):
    """A measurement of one entry, of all samples or of a block: an `Entry`."""

    @property
    def samples(self) -> int:
        """Number of samples measured."""

    @property
    def block(self) -> SampleBlock | None:
        """Which samples."""

    @property
    def sketch(self) -> bytes | None:
        """The output change."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PairwiseCosts:
    """``costs' x + |factors' x|^2`` over one-hot choices ``x``.

    Args:
        costs: ``[units, candidates]``, the part that is linear in the choices; may be negative.
        factors: ``[units * candidates, columns]``, for `solver.Interactions.from_factors`.
        shrinkage: By how much products between entries were reduced, in ``[0, 1]``.
        known: Number of entries with interactions.
    """

    costs: NDArray[np.float64]
    factors: NDArray[np.float64]
    shrinkage: float
    known: int


def pairwise_costs(costs: ArrayLike, measured: Sequence[Sequence[Iterable[Sketched]]]) -> PairwiseCosts:
    """Costs and interactions of all entries.

    Entries measured on different numbers of blocks share the blocks that both have; what one has beyond them counts
    as unrelated to the other, so that their product is estimated too small rather than too noisy.

    Args:
        costs: ``[units, candidates]``, the costs of single choices; NaN or infinite where there is no choice.
        measured: Per unit and candidate what was measured of it: nothing, all samples, or disjoint blocks.

    Raises:
        RequestRefused: Shapes differ, or sketches of the same samples have different lengths.
    """
    table = np.asarray(costs, np.float64)
    cells = [list(cell) for unit in measured for cell in unit]
    if table.ndim != 2 or [len(unit) for unit in measured] != [table.shape[1]] * len(table):
        raise RequestRefused(
            f"costs of shape {table.shape} do not fit {len(cells)} measured entries",
            "measured",
            [len(unit) for unit in measured],
            "one entry per cost",
        )
    factors = _scaled(_vectors(cells), table.ravel())
    shrunk = shrinkage(factors)
    factors *= np.sqrt(1 - shrunk)
    squares = np.square(factors).sum(1).reshape(table.shape)
    return PairwiseCosts(
        costs=table - squares,
        factors=factors,
        shrinkage=shrunk,
        known=int(np.count_nonzero(squares)),
    )


def _scaled(vectors: NDArray[np.float64], costs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Vectors of the length that the costs of single choices say: what a sketch adds is the angle between two."""
    squares = np.square(vectors).sum(1)
    wanted = np.where(np.isfinite(costs) & (squares > 0), np.maximum(costs, 0.0), 0.0)
    return np.asarray(vectors * np.sqrt(wanted / np.where(squares > 0, squares, 1.0))[:, None])


def _vectors(cells: list[list[Sketched]]) -> NDArray[np.float64]:
    """One row per entry: its sketches side by side, weighted by their shares of the entry's samples."""
    places = _places(cells)
    columns = max((place.stop for place in places.values()), default=1)
    vectors = np.zeros((len(cells), columns))
    for vector, cell in zip(vectors, cells, strict=True):
        total = sum(part.samples for part in cell)
        if any(part.sketch is None for part in cell):
            continue  # a change that is not finite has no product with others
        for part in cell:
            vector[places[part.block]] = _numbers(part) * np.sqrt(part.samples / max(1, total))
    return vectors


def _places(cells: list[list[Sketched]]) -> dict[SampleBlock | None, slice]:
    """Columns of each block."""
    lengths: dict[SampleBlock | None, int] = {}
    for part in (part for cell in cells for part in cell if part.sketch is not None):
        length = len(_numbers(part))
        if lengths.setdefault(part.block, length) != length:
            raise RequestRefused(
                f"sketches of {length} and {lengths[part.block]} numbers cannot be compared",
                "sketch",
                length,
                lengths[part.block],
            )
    places, stop = {}, 0
    for block in sorted(lengths, key=lambda block: (-1, -1) if block is None else (block.start, block.stop)):
        places[block] = slice(stop, stop + lengths[block])
        stop += lengths[block]
    return places


def _numbers(part: Sketched) -> NDArray[np.float64]:
    assert part.sketch is not None
    return np.frombuffer(part.sketch, "<f4").astype(np.float64)


def shrinkage(vectors: NDArray[np.float64]) -> float:
    """By how much products between different entries are to be reduced.

    Args:
        vectors: ``[entries, columns]``; columns are independent draws.

    Returns:
        Expected squared error of the correlations over their sum of squares, in ``[0, 1]``; 0 where there are five numbers
        or more for each entry.
    """
    norms = np.sqrt(np.square(vectors).sum(1))
    known = vectors[norms > 0] / norms[norms > 0, None]
    entries, columns = known.shape
    if entries < 2 or columns < 2 or columns >= _ENOUGH_PER_ENTRY * entries:
        return 0.0
    correlations = known @ known.T
    squares = np.square(known)
    # With y = sqrt(columns) v: Var(mean of y_i y_j) = (mean of y_i^2 y_j^2 - r_ij^2) / (columns - 1).
    variances = (columns * (squares @ squares.T) - np.square(correlations)) / (columns - 1)
    between = ~np.eye(entries, dtype=bool)
    size = float(np.square(correlations)[between].sum())
    return float(np.clip(variances[between].sum() / size, 0.0, 1.0)) if size > 0 else 0.0
