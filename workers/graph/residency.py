"""What the values of an environment keep in memory."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in a value of an environment (a tensor, a sequence of values, or a number)."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for element in value:
            yield from tensors_in(element)


def resident_bytes(environment: Mapping[Any, Any], *, free: Iterable[Tensor] = ()) -> int:
    """Memory that an environment keeps alive.

    Args:
        environment: The values; a storage shared by several views counts once, and in full.
        free: Tensors whose storage is kept by others anyway (the data set) and does not count, however it is seen.
    """
    sizes = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for value in environment.values()
        for tensor in tensors_in(value)
    }
    for tensor in free:
        sizes.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(sizes.values())
