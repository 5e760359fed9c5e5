"""Output changes in few numbers, such that inner products are kept in expectation.

An entry's output change is a table of rows (positions of all samples) and columns (classes), whose squares add
up to its cost to second order; the inner product of two entries' changes is their interaction. Where the
whole table is too large, it is reduced twice, with the same random signs for every entry:

* each row to ``width`` sums of its elements under random signs, divided by ``sqrt(width)`` (Johnson-Lindenstrauss
  with signs: Achlioptas 2003, Database-friendly random projections); short rows keep their elements, under random
  signs;
* runs of rows are added up (signs of different rows are independent, so that in expectation their products vanish).

For tables ``v`` and ``w`` whose squares are spread evenly over the runs, the standard error of the inner product of
sketches of ``D`` numbers is at most ``sqrt((|v|^2 |w|^2 + <v, w>^2) / D)``: with 2048 numbers 2.2 % of ``|v| |w|`` for
unrelated changes, 3.1 % of the cost itself.

Signs are windows, at random places, of one sequence of random signs, times one random sign per window: the signs
within a window are independent, and windows are pairwise uncorrelated.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from workers.sampling import SketchRequest
from workers.sensitivity import acceleration

_SHORT_ROW = 32
_PLACES = 1 << 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Projection:
    """The linear map from output changes to sketches.

    Args:
        request: What was asked for.
        rows: Positions of all samples.
        classes: Elements of a row.
        width: Numbers that a row is reduced to.
        groups: Runs of rows that are added up.
        signs: ``[classes + places]``, float32, the sequence.
        places: ``[rows, width]`` where the windows begin (``[rows, 1]`` if rows keep their elements).
        flips: The same shape, the sign of each window.
    """

    request: SketchRequest
    rows: int
    classes: int
    width: int
    groups: int
    signs: Tensor
    places: Tensor
    flips: Tensor

    @classmethod
    def of(
        cls,
        request: SketchRequest,
        *,
        rows: int,
        classes: int,
        seed: tuple[int, ...],
        device: torch.device | str = "cpu",
    ) -> Self:
        """Draw the signs.

        Args:
            request: What is asked for.
            rows: Positions of all samples, 1 or more.
            classes: Elements of a row, 1 or more.
            seed: Entries that are to be compared need the same.
            device: Where changes are.
        """
        if classes <= _SHORT_ROW:
            width = classes
        else:
            width = min(classes, max(request.projections, request.columns // rows))
        groups = min(rows, max(1, request.columns // width))
        drawn = np.random.default_rng(seed)
        windows = 1 if width == classes else width
        signs = torch.from_numpy(drawn.integers(0, 2, classes + _PLACES, dtype=np.int8))
        flips = torch.from_numpy(drawn.integers(0, 2, (rows, windows), dtype=np.int8))
        places = torch.from_numpy(drawn.integers(0, _PLACES, (rows, windows)))
        return cls(
            request=request,
            rows=rows,
            classes=classes,
            width=width,
            groups=groups,
            signs=(2.0 * signs - 1.0).to(device),
            places=places.to(device),
            flips=(2.0 * flips - 1.0).to(device),
        )

    @property
    def whole(self) -> bool:
        """Nothing is lost: the sketch is the table."""
        return self.width == self.classes and self.groups == self.rows

    def start(self) -> Tensor:
        """The sketch of no change, ``[groups, width]``, to `add` to."""
        return torch.zeros(self.groups, self.width, device=self.signs.device)

    def add(self, sketch: Tensor, first: int, change: Tensor) -> None:
        """Add the change of some rows to a sketch.

        Args:
            sketch: ``[groups, width]``; written to.
            first: Number of the first row.
            change: ``[n, classes]``.
        """
        numbers = torch.arange(first, first + len(change), device=sketch.device)
        sketch.index_add_(0, numbers * self.groups // self.rows, self._reduced(first, change.float()))

    def _reduced(self, first: int, change: Tensor) -> Tensor:
        """Rows after the first reduction, ``[n, width]``."""
        if self.whole:
            return change
        rows = slice(first, first + len(change))
        windows = self.signs.unfold(0, self.classes, 1)
        if self.width == self.classes:
            return change * windows[self.places[rows, 0]] * self.flips[rows]
        if acceleration.suits(change):
            sums = acceleration.project(change, self.signs, self.places[rows])
        else:
            each = [torch.linalg.vecdot(change, windows[self.places[rows, k]]) for k in range(self.width)]
            sums = torch.stack(each, 1)
        return sums.mul_(self.flips[rows]).div_(self.width**0.5)
