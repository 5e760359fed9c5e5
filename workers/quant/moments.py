"""Second moments of a unit's inputs: what an error in each of its weights costs in the unit's output.

For a product ``y = W x`` the expected squared output error of a change ``dW`` is ``tr(dW H dW')`` with
``H = E[x x']``; its diagonal alone gives ``sum_ij dW_ij^2 E[x_j^2]``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from workers.errors import RequestRefused

DAMPENING = 0.01
"""Share of the mean diagonal that is added to the matrix before it is inverted (Frantar et al. 2022, section 4)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class InputMoments:
    """Moments of the inputs that a unit's weights are multiplied by, over calibration data.

    Args:
        second: ``E[x^2]`` of the input of each weight, not negative, finite, float32 or float64; broadcasts against
            the *weight's* shape: ``[1, in]`` for a linear ``[out, in]``, ``[in, 1]`` for an addmm ``[in, out]``,
            ``[1, in, kh, kw]`` for a convolution, ``[channels, 1, kh, kw]`` for a depthwise one, ``[rows, 1]`` (the
            share of each row in all look-ups) for an embedding.
        matrix: ``[in, in]``, ``E[x x']`` along the input axis of a matrix-shaped weight, float32 or float64.
        mean: ``E[x]``, of the shape of ``second``.
        count: Number of input vectors averaged over.
    """

    second: Tensor
    matrix: Tensor | None = None
    mean: Tensor | None = None
    count: int = 0

    @classmethod
    def of_inputs(cls, inputs: Tensor, *, group_axis: int = 1) -> Self:
        """The moments of input vectors, for a weight of two axes.

        Args:
            inputs: ``[..., in]``, one vector per position.
            group_axis: Input axis of the weight.
        """
        rows = inputs.reshape(-1, inputs.shape[-1]).double()
        shape = (1, -1) if group_axis % 2 else (-1, 1)
        return cls(
            second=rows.square().mean(0).reshape(shape),
            matrix=rows.T @ rows / len(rows),
            mean=rows.mean(0).reshape(shape),
            count=len(rows),
        )

    def importance(self, shape: Sequence[int], name: str) -> Tensor:
        """``second`` for each weight.

        Args:
            shape: Of the weight.
            name: The layer, for messages.

        Returns:
            A view of shape ``shape``.

        Raises:
            RequestRefused: The moments are those of another weight, or not finite.
        """
        try:
            expanded = self.second.expand(tuple(shape))
        except RuntimeError as error:
            raise RequestRefused(
                f"input moments of shape {tuple(self.second.shape)} do not fit the weight {tuple(shape)} of {name!r}",
                "inputs",
                list(self.second.shape),
                f"a shape that broadcasts to {tuple(shape)}",
            ) from error
        if not bool((torch.isfinite(self.second) & (self.second >= 0)).all()):
            raise RequestRefused(
                f"input moments of {name!r} are negative or not finite",
                "inputs",
                str(float(self.second.min())),
                "finite moments of 0 or more",
            )
        return expanded

    @cached_property
    def inverse_root(self) -> Tensor:
        """Upper triangular ``R`` with ``R' R = (H + d I)^-1``, float64 ``[in, in]``; ``d`` is 1 % of the mean diagonal.

        From ``H + d I = U U'`` with ``U`` upper triangular (a Cholesky decomposition from the last row up),
        ``R = U^-1``: one decomposition and no explicit inverse.

        Raises:
            RequestRefused: There is no matrix, or it is not positive semidefinite.
        """
        if self.matrix is None:
            raise RequestRefused(
                "error-compensating rounding needs the second-moment matrix of the inputs, and only its diagonal is there",
                "inputs",
                None,
                "moments with a matrix",
            )
        damped = self.matrix.double().clone()
        diagonal = damped.diagonal()
        mean = float(diagonal.mean())
        diagonal.add_(DAMPENING * mean if mean > 0 else 1.0)
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if bool(failed) or not bool(torch.isfinite(lower).all()):
            raise RequestRefused(
                "the second-moment matrix of the inputs is not positive semidefinite",
                "inputs",
                list(self.matrix.shape),
                "a positive semidefinite matrix of finite numbers",
            )
        identity = torch.eye(len(damped), dtype=damped.dtype, device=damped.device)
        root: Tensor = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
        return root
