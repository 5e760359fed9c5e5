"""The samples' axis of a model: symbolic sizes, where they are read, and whether the batch is fixed."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch.fx import Node

from workers.contracts import InputInfo
from workers.intake.expression import SizeExpression
from workers.intake.refusals import refuse

_ADVICE = "export with torch.export.Dim('batch', min=1) on axis 0 of every input, or with the same fixed batch in all"


@dataclass(frozen=True, kw_only=True)
class Batch:
    """How samples enter a model.

    Args:
        inputs: The user inputs.
        size: The fixed batch, ``None`` if any may be fed.
        symbol: The symbol of the batch, ``None`` if it is fixed.
        symbols: Symbolic size -> (input index, axis) where it is read.
    """

    inputs: tuple[InputInfo, ...]
    size: int | None
    symbol: str | None
    symbols: dict[str, tuple[int, int]]


def find_batch(inputs: Sequence[Node]) -> Batch:
    """Find the samples' axis.

    Args:
        inputs: Placeholders of the user inputs, described by ``meta["shape"]`` and ``meta["dtype"]``.

    Raises:
        ModelRefused: No input, an input without axis 0, or batches that differ between the inputs.
    """
    if not inputs:
        raise refuse("no-input", "the model takes no tensor", field="inputs", allowed="one input or more")
    symbols: dict[str, tuple[int, int]] = {}
    first: dict[str, int | SizeExpression] = {}
    for index, node in enumerate(inputs):
        shape = node.meta["shape"]
        if not shape:
            raise refuse(
                "batch-axis",
                f"the input {node.name!r} is a single number and has no axis for samples",
                field=node.name,
                allowed="inputs whose first axis is the samples'",
            )
        first[node.name] = shape[0]
        for axis, size in enumerate(shape):
            if isinstance(size, SizeExpression) and size.symbol is not None:
                symbols.setdefault(size.symbol, (index, axis))
    size, symbol = _agreed(first)
    infos = tuple(
        InputInfo(
            name=node.name,
            dtype=str(node.meta["dtype"]).removeprefix("torch."),
            shape=tuple(None if isinstance(s, SizeExpression) else s for s in node.meta["shape"]),
        )
        for node in inputs
    )
    return Batch(inputs=infos, size=size, symbol=symbol, symbols=symbols)


def _agreed(first: dict[str, int | SizeExpression]) -> tuple[int | None, str | None]:
    """The one fixed batch, or the one symbol, that all inputs have on axis 0."""
    sizes = list(first.values())
    found = {size.text if isinstance(size, SizeExpression) else size for size in sizes}
    named = ", ".join(
        f"{k}: {v.text if isinstance(v, SizeExpression) else v}" for k, v in list(first.items())[:4]
    )
    if len(found) != 1:
        raise refuse(
            "mixed-batch",
            f"the inputs disagree about the number of samples on axis 0 ({named}); {_ADVICE}",
            field="inputs",
            value=named,
            allowed="the same on axis 0 of every input",
        )
    size = sizes[0]
    if isinstance(size, int):
        if size < 1:
            raise refuse(
                "batch-axis",
                "the model was exported with no sample",
                field="inputs",
                value=size,
                allowed="1 or more",
            )
        return size, None
    if size.symbol is None:
        raise refuse(
            "batch-axis",
            f"the number of samples is {size.text}, not a size of its own; {_ADVICE}",
            field="inputs",
            value=size.text,
            allowed="one symbol",
        )
    return None, size.symbol


def check_symbols(nodes: Sequence[Node], symbols: dict[str, tuple[int, int]]) -> None:
    """See that every symbolic size can be read from an input.

    Raises:
        ModelRefused: A size depends on values inside the model.
    """
    for node in nodes:
        for size in node.meta.get("shape", ()):
            unknown = size.symbols - symbols.keys() if isinstance(size, SizeExpression) else ()
            if unknown:
                raise refuse(
                    "value-dependent-shape",
                    f"the size {size.text} of {node.name!r} is no size of an input; it depends on values",
                    field=node.name,
                    value=size.text,
                    allowed=f"expressions of {sorted(symbols) or 'numbers'}",
                )
