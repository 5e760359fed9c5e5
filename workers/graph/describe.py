"""What intake tells of a model."""

from collections.abc import Iterable
from typing import Any

from torch.fx import Node

from workers.contracts import InputInfo, ModelDescription, UnsupportedWeight
from workers.errors import ModelRefused
from workers.graph.dataflow import Dataflow, shape_of
from workers.graph.model import GraphModel
from workers.graph.storage import stored_bits
from workers.graph.units import find_units


def describe(model: GraphModel) -> ModelDescription:
    """Describe a model: inputs, outputs, units in execution order, unsupported weights, sizes.

    Args:
        model: As read; it is not run.

    Returns:
        The description. Axis 0 of inputs and outputs is the samples' axis, ``None`` if any batch may be fed.

    Raises:
        ModelRefused: The model has no quantizable unit (rule ``no-units``), or its graph writes to its inputs.
    """
    table = find_units(model)
    if not table.units:
        raise _no_units(table.unsupported)
    parameters = [model.tensors[str(node.target)] for unit in table.units for node in unit.parameters]
    return ModelDescription(
        inputs=model.inputs,
        batch_size=model.batch_size,
        outputs=tuple(_outputs(model)),
        units=tuple(unit.info for unit in table.units),
        unsupported=table.unsupported,
        weights=sum(unit.info.weights for unit in table.units),
        float_bits=stored_bits(model.tensors.values()),
        unit_float_bits=stored_bits(parameters),
    )


def _no_units(unsupported: Iterable[UnsupportedWeight]) -> ModelRefused:
    listed = [
        {
            "name": weight.name,
            "operator": weight.operator,
            "shape": list(weight.shape),
            "reason": weight.reason,
        }
        for weight in unsupported
    ]
    found = "; ".join(f"{weight['name']}: {weight['reason']}" for weight in listed[:5])
    return ModelRefused(
        "the model has no weight that can be quantized" + (f" ({found})" if found else ""),
        "model",
        None,
        "a model with at least one linear, convolution, embedding or matrix product with a parameter",
        {"rule": "no-units", "unsupported": listed},
    )


def _outputs(model: GraphModel) -> list[InputInfo]:
    found = []
    for output in Dataflow.of(model).outputs:
        if not isinstance(output, Node) or "shape" not in output.meta:
            continue
        dtype = str(output.meta["dtype"]).removeprefix("torch.")
        found.append(InputInfo(name=output.name, dtype=dtype, shape=_varying_shape(model, output)))
    return found


def _varying_shape(model: GraphModel, node: Node) -> tuple[int | None, ...]:
    """The shape, ``None`` for sizes that depend on a symbolic size."""
    symbols: list[dict[str, Any]] = [dict.fromkeys(model.symbols, value) for value in (2, 3)]
    shapes = [shape_of(node, values) for values in symbols]
    return tuple(one if one == other else None for one, other in zip(*shapes, strict=True))
