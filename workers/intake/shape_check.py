"""A dry run on tensors without memory: do all operators fit, and is every value of a size we accept?"""

import math
import warnings
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch._ops import OpOverload
from torch.fx import Node
from torch.fx.node import map_arg

from workers.errors import ModelRefused
from workers.graph.model import GraphModel
from workers.intake import costs
from workers.intake.limits import Limits
from workers.intake.operators import schema_of
from workers.intake.refusals import refuse, shorten
from workers.intake.tensor_meta import evaluate

_META: Final = torch.device("meta")
_LARGEST_NUMBER: Final = 1 << 62


def check_shapes(model: GraphModel, symbols: Mapping[str, int], limits: Limits) -> None:
    """Run a model on meta tensors and compare each result with what the file declares.

    No memory is allocated for values, whatever sizes the file asks for.

    Args:
        model: The model.
        symbols: Value of each symbolic size for this run.
        limits: Bounds on values.

    Raises:
        ModelRefused: An operator does not accept its arguments (``"invalid-arguments"``), a result differs from its
            declaration (``"shape-mismatch"``), or something is too large (``"value-too-large"``,
            ``"too-much-memory"``, ``"too-many-steps"``).
    """
    with warnings.catch_warnings(), torch.no_grad():
        # What an operator warns of, at values that are not there, is nobody's concern.
        warnings.simplefilter("ignore")
        _DryRun(model, symbols, limits).run()


class _DryRun:
    def __init__(self, model: GraphModel, symbols: Mapping[str, int], limits: Limits) -> None:
        self._model = model
        self._symbols = dict(symbols)
        self._limits = limits
        self._values: dict[Node, Any] = {}
        self._live = _LiveBytes()

    def run(self) -> None:
        """Run every node; values are let go after their last use, as an executor does."""
        nodes = list(self._model.graph.nodes)
        last_use = {argument: node for node in nodes for argument in node.all_input_nodes}
        dead: dict[Node, list[Node]] = {}
        for argument, node in last_use.items():
            dead.setdefault(node, []).append(argument)
        for node in nodes:
            if node.op == "output":
                return
            value = self._placeholder(node) if node.op == "placeholder" else self._call(node)
            self._compare(node, value)
            self._values[node] = value
            if node.name not in self._model.tensors:
                self._live.add(value)
            self._check_memory(node, self._live.total, "all values needed at that point take")
            for argument in dead.get(node, ()):
                freed = self._values.pop(argument)
                if argument.name not in self._model.tensors:
                    self._live.remove(freed)

    def _declared(self, node: Node) -> tuple[int, ...]:
        try:
            sizes = tuple(evaluate(size, self._symbols) for size in node.meta["shape"])
        except (ArithmeticError, KeyError) as error:
            raise refuse(
                "symbolic-expression",
                f"the size of {node.name!r} has no value for {self._symbols}: {error}",
                field=node.name,
                value=str(error),
                allowed="whole numbers",
            ) from None
        if any(size < 0 for size in sizes):
            raise _mismatch(node, sizes, "has a negative size")
        return sizes

    def _placeholder(self, node: Node) -> torch.Tensor:
        sizes, dtype = self._declared(node), node.meta["dtype"]
        stored = self._model.tensors.get(node.name)
        if stored is None:
            self._check_bytes(node, sizes, dtype)
            return torch.empty(sizes, dtype=dtype, device=_META)
        if stored.shape != sizes or stored.dtype != dtype:
            raise _mismatch(node, sizes, f"is stored as {tuple(stored.shape)} {stored.dtype}")
        return torch.empty_strided(sizes, stored.stride(), dtype=dtype, device=_META)

    def _call(self, node: Node) -> Any:
        args: tuple[Any, ...] = map_arg(node.args, self._values.__getitem__)
        kwargs: dict[str, Any] = map_arg(node.kwargs, self._values.__getitem__)
        try:
            if isinstance(node.target, OpOverload):
                return self._operator(node, node.target, args, kwargs)
            return node.target(*args, **kwargs)  # type: ignore[operator]
        except ModelRefused:
            raise
        except Exception as error:  # noqa: BLE001 - operators raise anything at odd arguments
            raise refuse(
                "invalid-arguments",
                f"node {node.name!r} cannot run: {node.target} says: {shorten(str(error).strip())}",
                field=node.name,
                value=str(node.target),
                allowed="arguments the operator accepts",
            ) from None

    def _operator(self, node: Node, target: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        names = [argument.name for argument in schema_of(target).arguments]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        packet = str(target).removeprefix("aten.").partition(".")[0]
        self._check_steps(node, costs.pieces(packet, given), self._limits.max_list_length)
        self._check_memory(node, costs.temporary_bytes(packet, given), "an intermediate value of it takes")
        unmet = costs.unmet(packet, given)
        if unmet is not None:
            raise ValueError(f"it needs {unmet}")
        if "device" in names:
            kwargs = {**kwargs, "device": _META}
        steps = costs.recurrent_steps(packet, given)
        if steps:
            self._check_steps(node, steps, self._limits.max_recurrent_steps)
            return _run_one_step(target, args, costs.time_axis(given))
        return target(*args, **kwargs)

    def _check_steps(self, node: Node, steps: int, most: int) -> None:
        if steps > most:
            raise refuse(
                "too-many-steps",
                f"node {node.name!r} would take {steps} steps",
                field=node.name,
                value=steps,
                allowed=f"at most {most}",
            )

    def _check_memory(self, node: Node, size_bytes: int, what: str) -> None:
        if size_bytes > self._limits.max_live_bytes:
            raise refuse(
                "too-much-memory",
                f"at node {node.name!r} {what} {size_bytes} bytes with {self._symbols or 'the exported batch'}",
                field=node.name,
                value=size_bytes,
                allowed=f"at most {self._limits.max_live_bytes} bytes",
            )

    def _check_bytes(self, node: Node, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
        size_bytes = math.prod(sizes) * dtype.itemsize
        if size_bytes > self._limits.max_value_bytes:
            raise refuse(
                "value-too-large",
                f"the value of {node.name!r} takes {size_bytes} bytes with {self._symbols or 'the exported batch'}",
                field=node.name,
                value=size_bytes,
                allowed=f"at most {self._limits.max_value_bytes} bytes",
            )

    def _compare(self, node: Node, value: Any) -> None:
        if isinstance(value, int | float) and not abs(value) <= _LARGEST_NUMBER:
            raise refuse(
                "value-too-large",
                f"the number {node.name!r} is beyond 2^62",
                field=node.name,
                allowed="64-bit numbers",
            )
        if isinstance(value, torch.Tensor) and node.name not in self._model.tensors:
            self._check_bytes(node, tuple(value.shape), value.dtype)
        if "shape" not in node.meta:
            return
        sizes = self._declared(node)
        if not isinstance(value, torch.Tensor):
            raise _mismatch(node, sizes, f"computes a {type(value).__name__}")
        dtype = node.meta.setdefault("dtype", value.dtype)
        if tuple(value.shape) != sizes or value.dtype != dtype:
            raise _mismatch(node, sizes, f"computes {tuple(value.shape)} {value.dtype}")


class _LiveBytes:
    """Bytes of the values alive, memory that several of them share counted once."""

    def __init__(self) -> None:
        self.total = 0
        self._owners: dict[int, int] = {}

    def add(self, value: Any) -> None:
        """A value has been computed."""
        for storage in _storages(value):
            owners = self._owners.get(storage._cdata, 0)  # noqa: SLF001 - identity of the memory
            self._owners[storage._cdata] = owners + 1  # noqa: SLF001
            self.total += 0 if owners else storage.nbytes()

    def remove(self, value: Any) -> None:
        """A value is not needed any more."""
        for storage in _storages(value):
            self._owners[storage._cdata] -= 1  # noqa: SLF001
            self.total -= 0 if self._owners[storage._cdata] else storage.nbytes()  # noqa: SLF001


def _storages(value: Any) -> list[torch.UntypedStorage]:
    tensors = value if isinstance(value, tuple | list) else (value,)
    return [tensor.untyped_storage() for tensor in tensors if isinstance(tensor, torch.Tensor)]


def _run_one_step(target: OpOverload, args: tuple[Any, ...], axis: int) -> tuple[torch.Tensor, ...]:
    """Results of a recurrent operator from its first time step: without values all steps are alike."""
    sequence = args[0]
    first, *states = target(sequence.narrow(axis, 0, min(1, sequence.shape[axis])), *args[1:])
    sizes = list(first.shape)
    sizes[axis] = sequence.shape[axis]
    return (first.new_empty(sizes), *states)


def _mismatch(node: Node, sizes: tuple[int, ...], found: str) -> Exception:
    return refuse(
        "shape-mismatch",
        f"node {node.name!r} is declared as {sizes} {node.meta['dtype']} but {found}",
        field=node.name,
        value=found,
        allowed=f"{sizes} {node.meta['dtype']}",
    )
