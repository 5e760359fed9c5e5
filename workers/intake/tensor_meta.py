"""Shapes and types of tensors as a file declares them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch

from workers.intake.expression import SizeExpression, parse_expression
from workers.intake.jsontext import Json
from workers.intake.limits import Limits
from workers.intake.refusals import refuse

Size = int | Callable[[Mapping[str, int]], int]

DTYPES: Final[dict[int, torch.dtype]] = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    10: torch.complex64,
    11: torch.complex128,
    12: torch.bool,
    13: torch.bfloat16,
}
"""Number in the file -> dtype; the others (8-bit floats, unsigned 16 to 64 bits) have too few operators."""

_STRIDED: Final = 7


@dataclass(frozen=True, kw_only=True)
class TensorMeta:
    """What a file says of one tensor; sizes may be symbolic."""

    shape: tuple[int | SizeExpression, ...]
    dtype: torch.dtype
    strides: tuple[int | SizeExpression, ...]
    offset: int | SizeExpression


class MetaReader:
    """Reads tensor descriptions; equal expressions are parsed once, example values of symbols are collected.

    Args:
        limits: Bounds.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._parsed: dict[str, SizeExpression] = {}
        self.examples: dict[str, int] = {}
        """Symbol -> the value it had when the model was exported."""

    def tensor(self, json: Json) -> TensorMeta:
        """Read one tensor's description.

        Raises:
            ModelRefused: A type, layout, rank or size that is not supported.
        """
        if json["layout"].integer() != _STRIDED:
            raise refuse(
                "tensor-layout",
                f"{json.where} is a sparse tensor",
                field=json.where,
                value=json["layout"].value,
                allowed="dense tensors (layout 7)",
            )
        shape = tuple(self.size(item) for item in json["sizes"].items())
        strides = tuple(self.size(item) for item in json["strides"].items())
        if len(shape) > self._limits.max_rank or len(strides) != len(shape):
            raise refuse(
                "tensor-rank",
                f"{json.where} has {len(shape)} axes and {len(strides)} strides",
                field=json.where,
                value=len(shape),
                allowed=f"at most {self._limits.max_rank} axes, a stride for each",
            )
        return TensorMeta(
            shape=shape,
            dtype=self.dtype(json["dtype"]),
            strides=strides,
            offset=self.size(json["storage_offset"]),
        )

    def dtype(self, json: Json) -> torch.dtype:
        """Read a data type.

        Raises:
            ModelRefused: Not one of those supported.
        """
        dtype = DTYPES.get(json.integer())
        if dtype is None:
            raise refuse(
                "tensor-dtype",
                f"{json.where} has a data type that is not supported (number {json.value})",
                field=json.where,
                value=json.value,
                allowed=", ".join(str(d).removeprefix("torch.") for d in DTYPES.values()),
            )
        return dtype

    def size(self, json: Json) -> int | SizeExpression:
        """Read one size: a number that is not negative, or an expression.

        Raises:
            ModelRefused: Neither of the two.
        """
        kind, value = json.union()
        if kind == "as_int":
            number = value.integer()
            if not 0 <= number < 1 << 62:
                raise refuse(
                    "tensor-size",
                    f"{json.where} is {number}",
                    field=json.where,
                    value=number,
                    allowed="0 to 2^62",
                )
            return number
        return self.expression(json)

    def expression(self, json: Json) -> SizeExpression:
        """Read ``{"as_expr": {"expr_str": ..., "hint": ...}}``.

        Raises:
            ModelRefused: Not an expression of the grammar.
        """
        body = json["as_expr"]
        text = body["expr_str"].text()
        expression = self._parsed.get(text)
        if expression is None:
            expression = parse_expression(text, json.where, self._limits)
            self._parsed[text] = expression
        if expression.symbol is not None and body.has("hint"):
            kind, value = body["hint"].union()
            if kind == "as_int":
                self.examples.setdefault(expression.symbol, value.integer())
        if len(self.examples) > self._limits.max_symbols:
            raise refuse(
                "too-many-symbols",
                f"the model has more than {self._limits.max_symbols} symbolic sizes",
                field=json.where,
                allowed=f"at most {self._limits.max_symbols}",
            )
        return expression


def evaluate(size: Size, symbols: Mapping[str, int]) -> int:
    """A size's value for given symbols.

    Raises:
        ArithmeticError: It has none.
        KeyError: It depends on a symbol without a value.
    """
    return size if isinstance(size, int) else size(symbols)
