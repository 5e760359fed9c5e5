"""Arguments of operators: JSON to Python values, by kind; nothing else passes."""

from typing import Any, Final

import torch
from torch.fx import Node

from workers.intake.jsontext import Json
from workers.intake.limits import Limits
from workers.intake.refusals import refuse
from workers.intake.tensor_meta import MetaReader

_MEMORY_FORMATS: Final = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
_STRIDED: Final = (0, 7)

DROPPED: Final = object()
"""Stands for a device, a layout or pinning: where a model runs is not the file's business."""


class ArgumentReader:
    """Turns the arguments of nodes into values.

    Args:
        nodes: Name of a value -> the node that computes it; filled by the caller while it goes.
        metas: Reader of data types.
        limits: Bounds.
    """

    def __init__(self, nodes: dict[str, Node], metas: MetaReader, limits: Limits) -> None:
        self._nodes = nodes
        self._metas = metas
        self._limits = limits

    def read(self, json: Json) -> Any:
        """The value of one argument.

        Raises:
            ModelRefused: An unknown value, a kind that is not data, or something too long.
        """
        kind, value = json.union()
        reader = getattr(self, f"_{kind}", None) if kind in _KINDS else None
        if reader is None:
            raise refuse(
                "argument-kind",
                f"{json.where} is given as {kind!r}",
                field=json.where,
                value=kind,
                allowed=", ".join(_KINDS),
            )
        return reader(value)

    def node(self, json: Json) -> Node:
        """The node that computes a named value, which must come earlier in the graph."""
        name = json.text()
        node = self._nodes.get(name)
        if node is None:
            raise refuse(
                "unknown-value",
                f"{json.where} names {name!r}, which nothing before it computes",
                field=json.where,
                value=name,
                allowed="an input or an earlier result",
            )
        return node

    def _items(self, json: Json) -> list[Json]:
        items = list(json.items())
        if len(items) > self._limits.max_list_length:
            raise refuse(
                "list-length",
                f"{json.where} has {len(items)} elements",
                field=json.where,
                value=len(items),
                allowed=f"at most {self._limits.max_list_length}",
            )
        return items

    def _named(self, json: Json) -> Any:
        """``{"as_name": name}`` or a literal of the same union."""
        kind, value = json.union()
        if kind == "as_name":
            return self.node(value)
        if kind not in ("as_int", "as_float", "as_bool"):
            raise refuse("argument-kind", f"{json.where} is given as {kind!r}", field=json.where, value=kind)
        return getattr(self, f"_{kind}")(value)

    def _as_none(self, _json: Json) -> None:
        return None

    def _as_int(self, json: Json) -> int:
        return json.integer()

    def _as_float(self, json: Json) -> float:
        return json.real()

    def _as_bool(self, json: Json) -> bool:
        return json.boolean()

    def _as_string(self, json: Json) -> str:
        text = json.text()
        if len(text) > self._limits.max_string_length or not text.isascii():
            raise refuse(
                "string-length",
                f"{json.where} is not a short text",
                field=json.where,
                value=text,
                allowed=f"at most {self._limits.max_string_length} ASCII characters",
            )
        return text

    def _as_ints(self, json: Json) -> list[int]:
        return [item.integer() for item in self._items(json)]

    def _as_floats(self, json: Json) -> list[float]:
        return [item.real() for item in self._items(json)]

    def _as_bools(self, json: Json) -> list[bool]:
        return [item.boolean() for item in self._items(json)]

    def _as_tensor(self, json: Json) -> Node:
        return self.node(json["name"])

    def _as_tensors(self, json: Json) -> list[Node]:
        return [self.node(item["name"]) for item in self._items(json)]

    def _as_optional_tensor(self, json: Json) -> Node | None:
        kind, value = json.union()
        return None if kind == "as_none" else self.node(value["name"])

    def _as_optional_tensors(self, json: Json) -> list[Node | None]:
        return [self._as_optional_tensor(item) for item in self._items(json)]

    def _as_sym_int(self, json: Json) -> Any:
        return self._named(json)

    def _as_sym_float(self, json: Json) -> Any:
        return self._named(json)

    def _as_sym_bool(self, json: Json) -> Any:
        return self._named(json)

    def _as_sym_ints(self, json: Json) -> list[Any]:
        return [self._named(item) for item in self._items(json)]

    def _as_sym_floats(self, json: Json) -> list[Any]:
        return [self._named(item) for item in self._items(json)]

    def _as_sym_bools(self, json: Json) -> list[Any]:
        return [self._named(item) for item in self._items(json)]

    def _as_scalar_type(self, json: Json) -> torch.dtype:
        return self._metas.dtype(json)

    def _as_memory_format(self, json: Json) -> torch.memory_format:
        found = _MEMORY_FORMATS.get(json.integer())
        if found is None:
            raise refuse(
                "memory-format",
                f"{json.where} is no memory format",
                field=json.where,
                value=json.value,
                allowed=list(_MEMORY_FORMATS),
            )
        return found

    def _as_layout(self, json: Json) -> object:
        if json.integer() not in _STRIDED:
            raise refuse(
                "tensor-layout",
                f"{json.where} asks for a sparse tensor",
                field=json.where,
                value=json.value,
                allowed="dense tensors",
            )
        return DROPPED

    def _as_device(self, json: Json) -> object:
        json["type"].text()
        return DROPPED


_KINDS: Final = tuple(name.removeprefix("_") for name in vars(ArgumentReader) if name.startswith("_as_"))
