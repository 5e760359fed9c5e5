"""What an operator would cost, from shapes alone: steps it takes and memory it needs besides its result."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

_RECURRENT: Final = frozenset({"gru", "lstm", "rnn_relu", "rnn_tanh"})
_SPLITS: Final = frozenset({"split", "unsafe_split"})
_CHUNKS: Final = frozenset({"chunk", "tensor_split", "unsafe_chunk"})


def pieces(packet: str, given: Mapping[str, Any]) -> int:
    """How many tensors an operator returns in a list, before running it.

    Args:
        packet: Name of the operator without its overload.
        given: Its arguments by name.
    """
    tensor = given.get("self")
    if not isinstance(tensor, torch.Tensor) or tensor.dim() == 0:
        return 1
    dim = given.get("dim", 0)
    length = tensor.shape[dim] if isinstance(dim, int) and -tensor.dim() <= dim < tensor.dim() else 1
    if packet == "unbind":
        return length
    if packet in _SPLITS and isinstance(given.get("split_size"), int):
        return length // max(int(given["split_size"]), 1)
    if packet in _CHUNKS:
        wanted = given.get("chunks", given.get("sections", 1))
        return wanted if isinstance(wanted, int) else 1
    return 1


def recurrent_steps(packet: str, given: Mapping[str, Any]) -> int:
    """Time steps times layers of a recurrent operator over a batch of sequences; 0 for all others."""
    tensor = given.get("input")
    if packet not in _RECURRENT or not isinstance(tensor, torch.Tensor) or tensor.dim() != 3:
        return 0
    return tensor.shape[time_axis(given)] * max(len(given.get("params", ())) // 2, 1)


def time_axis(given: Mapping[str, Any]) -> int:
    """The axis of the time steps in the input of a recurrent operator."""
    return 1 if given.get("batch_first") is True else 0


def temporary_bytes(packet: str, given: Mapping[str, Any]) -> int:
    """Bytes of the largest intermediate value of an operator that computes in several steps.

    Args:
        packet: Name of the operator without its overload.
        given: Its arguments by name.

    Returns:
        0 for operators that need no more than a small multiple of their arguments and results.
    """
    if packet == "einsum":
        return _einsum(str(given.get("equation")), given.get("tensors", ()), given.get("path") or ())
    if packet in ("matmul", "linear", "inner", "tensordot"):
        return _matmul(given.get("self", given.get("input")), given.get("other", given.get("weight")))
    if packet == "scaled_dot_product_attention":
        return _attention(given.get("query"), given.get("key"))
    return 0


def _bytes(sizes: Sequence[int], tensor: torch.Tensor) -> int:
    return math.prod(sizes) * tensor.element_size()


def _matmul(left: Any, right: Any) -> int:
    """Both operands are copied to the common batch before they are multiplied."""
    if (
        not isinstance(left, torch.Tensor)
        or not isinstance(right, torch.Tensor)
        or min(left.dim(), right.dim()) < 2
    ):
        return 0
    axes = max(left.dim(), right.dim()) - 2
    batches = [(1,) * (axes + 2 - t.dim()) + tuple(t.shape[:-2]) for t in (left, right)]
    common = math.prod(max(sizes) for sizes in zip(*batches, strict=True))
    return max(_bytes((common, *t.shape[-2:]), t) for t in (left, right))


def _attention(query: Any, key: Any) -> int:
    """The matrix of scores, where the kernel in use keeps it."""
    if (
        not isinstance(query, torch.Tensor)
        or not isinstance(key, torch.Tensor)
        or min(query.dim(), key.dim()) < 2
    ):
        return 0
    return _bytes((*query.shape[:-1], key.shape[-2]), query)


def _einsum(equation: str, tensors: Sequence[Any], path: Sequence[Any]) -> int:
    """Two operands at a time are contracted; a label goes when neither an operand left nor the result has it."""
    left, arrow, result = equation.replace(" ", "").replace("...", ".").partition("->")
    terms = left.split(",")
    if len(terms) != len(tensors) or not all(isinstance(t, torch.Tensor) for t in tensors):
        return 0
    sizes: dict[str, int] = {}
    for term, tensor in zip(terms, tensors, strict=True):
        for label, size in _labels(term, list(tensor.shape)):
            sizes[label] = max(sizes.get(label, 1), size)
    kept = set(result) if arrow else {label for label in sizes if left.count(label) == 1}
    held = [set(term) & sizes.keys() for term in terms]
    order = [int(i) for i in path] or [0, 1] * (len(held) - 1)
    peak = 0
    for one, other in zip(order[::2], order[1::2], strict=False):
        if one == other or not 0 <= min(one, other) <= max(one, other) < len(held):
            return 0
        both = held.pop(max(one, other)) | held.pop(min(one, other))
        both &= kept.union(*held)
        held.insert(0 if not path else len(held), both)
        peak = max(peak, _bytes([sizes[label] for label in both], tensors[0]))
    return peak


def _labels(term: str, shape: list[int]) -> list[tuple[str, int]]:
    """The labels of an operand with their sizes; all axes of an ellipsis count as one."""
    before, dots, after = term.partition(".")
    if len(before) + len(after) > len(shape) or (not dots and len(before) != len(shape)):
        return []
    behind = len(shape) - len(after)
    middle = [(dots, math.prod(shape[len(before) : behind]))] if dots else []
    ahead = list(zip(before, shape[: len(before)], strict=True))
    return [*ahead, *middle, *zip(after, shape[behind:], strict=True)]


def unmet(packet: str, given: Mapping[str, Any]) -> str | None:
    """What an operator's CPU kernel takes for granted about its operands, without any check, and is not so.

    Such operands would read or write beyond a tensor, or end the process. Found by running random arguments with
    guarded memory.

    Args:
        packet: Name of the operator without its overload.
        given: Its arguments by name.

    Returns:
        The condition that is not met, ``None`` if all are.
    """
    if packet == "_weight_norm":
        return _unmet_weight_norm(given.get("v"), given.get("g"), given.get("dim", 0))
    if packet == "scaled_dot_product_attention":
        return _unmet_attention(given.get("query"), given.get("key"), given.get("value"))
    if packet == "div":
        return _unmet_division(given.get("self"), given.get("other"), given.get("rounding_mode"))
    return None


def _unmet_weight_norm(v: Any, g: Any, dim: Any) -> str | None:
    if not isinstance(v, torch.Tensor) or not isinstance(g, torch.Tensor) or not isinstance(dim, int):
        return None
    slices = v.shape[dim] if 0 <= dim < v.dim() else 1
    return None if g.numel() == slices and v.numel() else f"one norm for each of the {slices} slices"


def _unmet_attention(query: Any, key: Any, value: Any) -> str | None:
    if not all(isinstance(t, torch.Tensor) for t in (query, key, value)):
        return None
    fits = key.shape[:-1] == value.shape[:-1] and query.shape[-1:] == key.shape[-1:]
    return (
        None
        if fits and min(query.dim(), key.dim()) >= 2
        else "a value for every key, and keys as long as queries"
    )


def _unmet_division(dividend: Any, divisor: Any, rounding: Any) -> str | None:
    """The smallest integer over -1 is a fault of the processor, not an error."""
    whole = isinstance(dividend, torch.Tensor) and not (dividend.is_floating_point() or dividend.is_complex())
    if rounding != "trunc" or not whole or isinstance(divisor, float):
        return None
    if isinstance(divisor, torch.Tensor) and divisor.is_floating_point():
        return None
    safe = isinstance(divisor, int) and divisor != -1
    return None if safe else "a divisor that is a number other than -1 when integers are divided towards zero"
