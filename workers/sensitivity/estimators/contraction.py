"""Inner products of per-sample weight gradients with changes of the weight, the gradients never kept.

For a step ``y = f(x, W)`` with the cotangents dY of its output, sample n's gradient is the contraction of x and
dY over the positions of n; wanted are its inner products with changes of W. Two routes:

* *gradients* (`workers.sensitivity.estimators.gradients`): compute a few samples' gradients at a time, then one
  matrix product with all changes. Costs a forward of the step per cotangent, and an inner product per change.
* *outputs*: compute ``f(x, change)`` for each change, then its inner products with the cotangents. Costs a forward of
  the step per change, whatever the number of cotangents. It needs nothing but the step itself, so that it
  serves every operator. For one that is not linear in the constant it is a finite difference: the step's
  output under the changed constant minus the float one.

Both are exact for operators that are linear in their weight, which all of `workers.graph.operators` are (but for
``embedding_bag`` with maxima); the cheaper one is taken, by rates measured on a CPU (torch 2.13).
"""

import torch
from torch import Tensor
from torch.fx import Node

from workers.sensitivity.estimators.gradients import Gradients, find_gradients
from workers.sensitivity.estimators.layout import SampleLayout
from workers.sensitivity.estimators.visited import VisitedStep

_DOT = 5.0
"""Cost of one multiplication of an inner product with a change, in those of a large matrix product."""
_OUTPUT = 12.0
"""Cost of writing an element of an output, or of multiplying it with a cotangent."""


def contract(step: VisitedStep, changes: dict[Node, Tensor]) -> Tensor:
    """Inner products for one step.

    Args:
        step: The step.
        changes: Constants it reads -> ``[K, *shape]``, their changes.

    Returns:
        ``[cotangents, K, samples]``, float64, on the step's device.
    """
    if len(changes) == 1:
        ((operand, change),) = changes.items()
        gradients = find_gradients(step, operand)
        if gradients is not None and _gradients_are_cheaper(step, gradients, len(change)):
            return _by_gradients(step, gradients, change)
    return _by_outputs(step, changes)


def _gradients_are_cheaper(step: VisitedStep, gradients: Gradients, count: int) -> bool:
    walks = len(step.visit.outputs)
    by_gradients = walks * (gradients.gradient_cost + _DOT * count * gradients.elements)
    by_outputs = count * (gradients.forward_cost + _OUTPUT * (walks + 1) * gradients.outputs)
    return by_gradients <= by_outputs


def _by_gradients(step: VisitedStep, gradients: Gradients, change: Tensor) -> Tensor:
    flat = change.flatten(1)
    walks = step.visit.outputs
    result = flat.new_zeros((len(walks), len(flat), step.samples), dtype=torch.float64)
    for walk, cotangents in enumerate(walks):
        for block in gradients.blocks(cotangents[0]):
            if block.values.dtype is not flat.dtype:
                flat = change.flatten(1).to(block.values.dtype)
            found = flat[:, block.elements] @ block.values.mT
            result[walk, :, block.samples] += found
    return result


def _by_outputs(step: VisitedStep, changes: dict[Node, Tensor]) -> Tensor:
    some, walks = next(iter(changes.values())), step.visit.outputs
    result = some.new_zeros((len(walks), len(some), step.samples), dtype=torch.float64)
    inner = {
        number: InnerProducts([walk[number] for walk in walks], step.layouts[number], step.samples)
        for number in walks[0]
    }
    for index, output in enumerate(step.outputs_under(changes)):
        for number, products in inner.items():
            result[:, index] += products.with_output(output[number])
    return result


class InnerProducts:
    """Per sample the inner products of an output with several cotangents.

    Args:
        cotangents: Of one output.
        layout: Where its samples lie.
        samples: How many there are.
    """

    def __init__(self, cotangents: list[Tensor], layout: SampleLayout, samples: int) -> None:
        self._layout = layout
        self._samples = samples
        first = cotangents[0]
        self._channels_last = first.dim() == 4 and not first.is_contiguous() and layout.axis == 0
        self._cotangents = [self._rows(tensor) for tensor in cotangents]

    def with_output(self, output: Tensor) -> Tensor:
        """``[cotangents, samples]``, float64.

        Args:
            output: The shape of a cotangent.
        """
        rows = self._rows(output).to(self._cotangents[0].dtype)
        if rows.device.type == "cpu" and rows.dtype in (torch.float32, torch.float64):
            # A quarter of the time of products of matrices with one row.
            dots = [torch.stack([*map(torch.dot, each, rows)]) for each in self._cotangents]
        else:
            dots = [torch.bmm(each[:, None], rows[:, :, None])[:, 0, 0] for each in self._cotangents]
        return torch.stack(dots).double()

    def _rows(self, tensor: Tensor) -> Tensor:
        """``[samples, elements]``, in an order that needs no copy if channels lie last in memory."""
        if self._channels_last:
            tensor = tensor.permute(0, 2, 3, 1)
        return self._layout.by_sample(tensor, self._samples).flatten(1)
