"""From a parsed program and its tensors to the common form of a model, with every check on the way."""

from dataclasses import replace
from typing import Final

import torch
from torch.fx import Graph

from workers.errors import ModelRefused
from workers.graph.model import GraphModel
from workers.intake.batch import Batch, check_symbols, find_batch
from workers.intake.functional import functionalize
from workers.intake.graph_reader import GraphReader
from workers.intake.jsontext import Json
from workers.intake.limits import Limits
from workers.intake.payload import check_finite
from workers.intake.refusals import refuse
from workers.intake.shape_check import check_shapes
from workers.intake.signature import Input, check_outputs, read_inputs

_SCHEMA: Final = 8


def assemble(
    program: Json, weights: dict[str, torch.Tensor], constants: dict[str, torch.Tensor], limits: Limits
) -> GraphModel:
    """Build a model of its parts.

    Args:
        program: torch's JSON form of an exported program.
        weights: Qualified name -> tensor, for parameters and buffers; tied ones share memory.
        constants: Qualified name -> tensor, for constants and buffers that are not stored.
        limits: Bounds.

    Returns:
        The model, functional (no operator writes into its arguments), checked on tensors without memory.

    Raises:
        ModelRefused: The program breaks a rule, or a tensor is missing or not finite.
    """
    _check_version(program)
    module = program["graph_module"]
    inputs = read_inputs(module["signature"])
    check_outputs(module["signature"])
    reader = GraphReader(limits)
    reader.read(module["graph"], inputs)
    tensors, names = _stored(weights, constants, inputs)
    functionalize(reader.graph, tensors.keys())
    drop_unused(reader.graph)
    batch = find_batch([n for n in reader.graph.nodes if n.op == "placeholder" and n.name not in tensors])
    model = GraphModel(
        graph=reader.graph,
        tensors=tensors,
        qualified_names=names,
        parameters=frozenset(i.name for i in inputs if i.kind == "parameter"),
        inputs=batch.inputs,
        batch_size=batch.size,
        symbols=batch.symbols,
    )
    check_symbols(list(reader.graph.nodes), batch.symbols)
    _check_trials(model, batch, reader.metas.examples, limits)
    return model


def _check_version(program: Json) -> None:
    version = program["schema_version"]["major"].integer()
    if version != _SCHEMA:
        raise refuse(
            "schema-version",
            f"the file has version {version} of torch's export format",
            field=program.where,
            value=version,
            allowed=f"version {_SCHEMA} (torch 2.13); export the model again",
        )


def _stored(
    weights: dict[str, torch.Tensor], constants: dict[str, torch.Tensor], inputs: list[Input]
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of parameters, buffers and constants by the name of their placeholder."""
    tensors, names = {}, {}
    for item in inputs:
        if item.kind in ("user_input", "constant_input"):
            continue
        tensor = weights.get(item.target, constants.get(item.target))
        if tensor is None:
            raise refuse(
                "missing-tensor", f"there is no tensor {item.target!r}", field=item.name, value=item.target
            )
        check_finite(item.target, tensor, parameter=item.kind == "parameter")
        tensors[item.name], names[item.name] = tensor, item.target
    return tensors, names


def drop_unused(graph: Graph) -> None:
    """Remove nodes whose results nobody uses; no operator has any other effect."""
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users:
            graph.erase_node(node)


def _check_trials(model: GraphModel, batch: Batch, examples: dict[str, int], limits: Limits) -> None:
    """Dry runs with one sample and with two (or the fixed batch); other sizes are as they were at export."""
    base = {symbol: examples.get(symbol, 2) for symbol in batch.symbols}
    if batch.symbol is None:
        check_shapes(model, base, limits)
        return
    for size in (1, 2):
        # The bounds are those of one sample.
        bounds = replace(
            limits, max_value_bytes=size * limits.max_value_bytes, max_live_bytes=size * limits.max_live_bytes
        )
        try:
            check_shapes(model, {**base, batch.symbol: size}, bounds)
        except ModelRefused as refusal:
            exported = examples.get(batch.symbol, size)
            if refusal.extra["rule"] not in ("shape-mismatch", "invalid-arguments") or exported == size:
                raise
            check_shapes(model, {**base, batch.symbol: exported}, limits)
            raise refuse(
                "batch-size",
                f"the model works on the {exported} samples it was exported with, but not on {size}: {refusal}. "
                "Export it with torch.export.Dim('batch', min=1), or with a fixed batch",
                field=refusal.field or "model",
                value=size,
                allowed="any number of samples, or one fixed number",
            ) from None
