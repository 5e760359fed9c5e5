"""Pairwise interactions of choices: a positive semidefinite matrix, given whole or as low-rank factors."""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from solver.errors import TableError
from solver.reduction import Reduced

_ASYMMETRY = 1e-8
_INDEFINITE = 1e-9
_DENSE = 4096
"""Up to so many cells factors are multiplied out."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Interactions:
    """``x' Q x`` over one-hot choices x; row ``i * K + k`` of Q belongs to unit i, candidate k.

    Build one with `from_gram` or `from_factors`. Entries between two candidates of the same unit never matter to a plan;
    those of a Gram matrix keep it positive semidefinite.

    Attributes:
        matrix: float64 [L K, L K], or ``None`` when factors are kept.
        factors: float64 [L K, D] with ``Q = factors @ factors.T``, or ``None``.
        units: L.
        candidates: K.
    """

    matrix: NDArray[np.float64] | None
    factors: NDArray[np.float64] | None
    units: int
    candidates: int

    @classmethod
    def from_gram(cls, gram: ArrayLike, *, units: int, candidates: int) -> Self:
        """From the whole matrix.

        Args:
            gram: Shape [L K, L K] or [L, K, L, K]; symmetric, positive semidefinite, finite.
            units: L.
            candidates: K.

        Raises:
            TableError: Wrong shape, a value that is not finite, not symmetric, or an eigenvalue below zero.
        """
        matrix = np.asarray(gram, np.float64)
        cells = units * candidates
        if matrix.shape == (units, candidates, units, candidates):
            matrix = matrix.reshape(cells, cells)
        if matrix.shape != (cells, cells):
            raise _refused(f"has shape {matrix.shape}", list(matrix.shape), [cells, cells])
        if not np.isfinite(matrix).all():
            raise _refused("has entries that are not finite", None, "finite numbers")
        scale = float(np.abs(matrix).max()) or 1.0
        if float(np.abs(matrix - matrix.T).max()) > _ASYMMETRY * scale:
            raise _refused("is not symmetric", None, "a symmetric matrix")
        matrix = (matrix + matrix.T) / 2
        if not is_semidefinite(matrix, _INDEFINITE):
            lowest = float(np.linalg.eigvalsh(matrix)[0])
            raise _refused(f"has the eigenvalue {lowest:g}", lowest, "a positive semidefinite matrix")
        return cls(matrix=matrix, factors=None, units=units, candidates=candidates)

    @classmethod
    def from_factors(cls, factors: ArrayLike, *, units: int, candidates: int) -> Self:
        """From vectors whose inner products are the interactions, e.g. measured changes of the output.

        Args:
            factors: Shape [L K, D] or [L, K, D], finite.
            units: L.
            candidates: K.

        Raises:
            TableError: Wrong shape, or a value that is not finite.
        """
        table = np.asarray(factors, np.float64)
        if table.ndim == 3:
            table = table.reshape(-1, table.shape[2])
        if table.ndim != 2 or table.shape[0] != units * candidates or table.shape[1] == 0:
            raise _refused(
                f"has factors of shape {table.shape}", list(table.shape), [units * candidates, "any"]
            )
        if not np.isfinite(table).all():
            raise _refused("has factors that are not finite", None, "finite numbers")
        return cls(matrix=None, factors=table, units=units, candidates=candidates)

    def on(self, reduced: Reduced) -> "Interactions":
        """The same interactions between groups and slots of a reduced problem."""
        cells = self.units * self.candidates
        columns = np.arange(self.candidates)
        local = (
            np.broadcast_to(columns, (self.units, self.candidates))
            if reduced.local is None
            else reduced.local
        )
        source = (np.arange(self.units)[:, None] * self.candidates + local).ravel()
        groups = self.units if reduced.group_of is None else len(reduced.costs)
        of_group = np.arange(self.units) if reduced.group_of is None else reduced.group_of
        target = (of_group[:, None] * self.candidates + columns).ravel()
        if self.factors is not None:
            factors = np.zeros((groups * self.candidates, self.factors.shape[1]))
            np.add.at(factors, target, self.factors[source])
            if len(factors) > _DENSE:
                return Interactions(matrix=None, factors=factors, units=groups, candidates=self.candidates)
            return Interactions(
                matrix=factors @ factors.T, factors=None, units=groups, candidates=self.candidates
            )
        assert self.matrix is not None
        rows = np.zeros((groups * self.candidates, cells))
        np.add.at(rows, target, self.matrix[source])
        matrix = np.zeros((groups * self.candidates, groups * self.candidates))
        np.add.at(matrix.T, target, rows.T[source])
        return Interactions(matrix=matrix, factors=None, units=groups, candidates=self.candidates)

    def times(self, vector: NDArray[np.float64]) -> NDArray[np.float64]:
        """``Q vector``."""
        if self.matrix is not None:
            return np.asarray(self.matrix @ vector)
        assert self.factors is not None
        return np.asarray(self.factors @ (self.factors.T @ vector))

    def between(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float64]:
        """Some rows and columns of Q."""
        if self.matrix is not None:
            return self.matrix[np.ix_(rows, columns)]
        assert self.factors is not None
        return np.asarray(self.factors[rows] @ self.factors[columns].T)

    @cached_property
    def within(self) -> NDArray[np.float64]:
        """Blocks of each group with itself, [G, K, K]."""
        if self.matrix is not None:
            at = np.arange(self.units)
            four = self.matrix.reshape(self.units, self.candidates, self.units, self.candidates)
            return four[at, :, at, :]
        assert self.factors is not None
        table = self.factors.reshape(self.units, self.candidates, -1)
        return np.asarray(table @ table.transpose(0, 2, 1))

    @property
    def diagonal(self) -> NDArray[np.float64]:
        """Interaction of each candidate with itself, [G, K]: the additive part."""
        return np.ascontiguousarray(np.diagonal(self.within, axis1=1, axis2=2))

    def value(self, slots: NDArray[np.int64]) -> float:
        """``x' Q x`` of a plan."""
        cells = np.arange(self.units) * self.candidates + slots
        if self.factors is not None:
            total = self.factors[cells].sum(axis=0)
            return float(total @ total)
        return float(self.between(cells, cells).sum())


def is_semidefinite(matrix: NDArray[np.float64], tolerance: float) -> bool:
    """Whether no eigenvalue lies below minus the tolerance times the mean one, by a Cholesky factorisation."""
    shift = tolerance * max(float(np.trace(matrix)), 1e-300)
    try:
        np.linalg.cholesky(matrix + shift * np.eye(len(matrix)))
    except np.linalg.LinAlgError:
        return False
    return True


def _refused(what: str, value: object, allowed: object) -> TableError:
    return TableError(f"the interaction matrix {what}", "interactions", value, allowed)
