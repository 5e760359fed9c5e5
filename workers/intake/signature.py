"""What the inputs and outputs of a graph are: parameters, buffers, constants, user inputs."""

from dataclasses import dataclass
from typing import Final

from workers.intake.jsontext import Json
from workers.intake.refusals import refuse

_STORED: Final = {
    "parameter": "parameter_name",
    "buffer": "buffer_name",
    "tensor_constant": "tensor_constant_name",
}
_MUTATIONS: Final = ("buffer_mutation", "parameter_mutation")


@dataclass(frozen=True, kw_only=True)
class Input:
    """One input of the graph.

    Args:
        kind: ``"parameter"``, ``"buffer"``, ``"tensor_constant"``, ``"user_input"``, or ``"constant_input"`` (a
            plain value that export has already built into the graph).
        name: Name of the value in the graph.
        target: Qualified name of what is stored; empty for the other kinds.
    """

    kind: str
    name: str
    target: str = ""


def read_inputs(signature: Json) -> list[Input]:
    """The graph's inputs in order.

    Raises:
        ModelRefused: An input that is neither a tensor nor a plain constant.
    """
    return [_input(spec) for spec in signature["input_specs"].items()]


def _input(spec: Json) -> Input:
    kind, body = spec.union()
    if kind in _STORED:
        return Input(kind=kind, name=body["arg"]["name"].text(), target=body[_STORED[kind]].text())
    if kind == "constant_input":
        return Input(kind=kind, name=body["name"].text())
    if kind == "user_input":
        form, value = body["arg"].union()
        if form == "as_tensor":
            return Input(kind=kind, name=value["name"].text())
        if form == "as_none":
            return Input(kind="constant_input", name="")
        kind = f"{kind} {form}"
    rule = "opaque-constant" if kind == "custom_obj" else "input-kind"
    raise refuse(
        rule,
        f"the model takes an input of kind {kind!r}",
        field=spec.where,
        value=kind,
        allowed="tensors, parameters, buffers and tensor constants; pass numbers as tensors",
    )


def check_outputs(signature: Json) -> None:
    """See that the graph only computes results and changes nothing it was given.

    Raises:
        ModelRefused: A buffer, parameter or input is changed (as in training), or a result is a loss or a gradient.
    """
    for spec in signature["output_specs"].items():
        kind, body = spec.union()
        if kind in _MUTATIONS:
            raise refuse(
                "training-mode",
                f"the model updates its {kind.partition('_')[0]} {body[kind.partition('_')[0] + '_name'].text()!r} "
                "when it runs, as it does in training; call .eval() before exporting",
                field=spec.where,
                value=kind,
                allowed="models that change nothing when they run",
            )
        if kind == "user_input_mutation":
            raise refuse(
                "input-mutation",
                f"the model writes into its input {body['user_input_name'].text()!r}",
                field=spec.where,
                value=kind,
                allowed="models that leave their inputs as they are",
            )
        if kind != "user_output":
            raise refuse(
                "output-kind",
                f"the model has an output of kind {kind!r}",
                field=spec.where,
                value=kind,
                allowed="user_output",
            )
