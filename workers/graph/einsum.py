"""Reading an einsum equation: which axes of one operand the output keeps, and which are summed over."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class WeightAxes:
    """The axes of one operand.

    Args:
        output_axis: Kept by the output and absent from the other operands (else: kept by the output).
        group_axis: Summed over (else: any other axis).
        multiplications: Product of all sizes of the equation.
    """

    output_axis: int
    group_axis: int
    multiplications: int


def weight_axes(equation: str, shapes: Sequence[tuple[int, ...]], index: int) -> WeightAxes:
    """Find the axes of operand ``index`` when it is a weight.

    Where several axes would do, the longest is taken, among equals the last.

    Args:
        equation: As `torch.einsum` takes it: explicit or implicit output, with or without an ellipsis.
        shapes: Of the operands.
        index: The weight among them.

    Raises:
        ValueError: The operand repeats a letter, has an ellipsis, or no axis of it reaches the output.
    """
    inputs, output = _split(equation)
    letters = inputs[index]
    if "." in letters or len(set(letters)) != len(letters):
        raise ValueError(f"einsum {equation!r} gives operand {index} repeated or unnamed axes")
    others = {letter for position, text in enumerate(inputs) if position != index for letter in text}
    kept = [axis for axis, letter in enumerate(letters) if letter in output]
    own = [axis for axis in kept if letters[axis] not in others]
    if not kept:
        raise ValueError(
            f"einsum {equation!r} sums over every axis of operand {index}: it has no output channels"
        )
    shape = shapes[index]
    output_axis = _longest(own or kept, shape)
    summed = [axis for axis in range(len(letters)) if axis not in kept]
    rest = [axis for axis in range(len(letters)) if axis != output_axis]
    return WeightAxes(
        output_axis=output_axis,
        group_axis=_longest(summed or rest, shape),
        multiplications=_multiplications(inputs, shapes),
    )


def _longest(axes: Sequence[int], shape: tuple[int, ...]) -> int:
    return max(axes, key=lambda axis: (shape[axis], axis))


def _split(equation: str) -> tuple[list[str], str]:
    """Letters of the operands and of the output; an ellipsis is written as one dot."""
    text = equation.replace(" ", "").replace("...", ".")
    left, arrow, right = text.partition("->")
    inputs = left.split(",")
    if arrow:
        return inputs, right
    joined = "".join(inputs)
    once = sorted(letter for letter in set(joined) if letter != "." and joined.count(letter) == 1)
    return inputs, ("." if "." in joined else "") + "".join(once)


def _multiplications(inputs: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> int:
    """Product of the sizes of all axes: the cost of the sum written out."""
    sizes: dict[str, int] = {}
    broadcast: tuple[int, ...] = ()
    for text, shape in zip(inputs, shapes, strict=True):
        before, dot, after = text.partition(".")
        named = list(zip(before, shape, strict=False))
        if dot:
            named += list(zip(reversed(after), reversed(shape), strict=False))
            middle = shape[len(before) : len(shape) - len(after)]
            broadcast = max(broadcast, middle, key=math.prod)
        for letter, size in named:
            sizes[letter] = max(size, sizes.get(letter, 1))
    return math.prod(sizes.values()) * math.prod(broadcast)
