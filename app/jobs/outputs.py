"""Which of a model's outputs a job compares, as far as intake can tell: pure, no torch."""

from dataclasses import replace

from app.errors import InvalidRequest
from workers.contracts import InputInfo, ModelDescription


def with_output_first(description: ModelDescription, wanted: str | None) -> ModelDescription:
    """The model with the output that is compared put first, as workers load it.

    Args:
        description: As intake gave it.
        wanted: Name or index of an output, in the order of the description; ``None``: the first floating-point one of the
            samples, as it is for workers. A description without any is returned as it is.

    Raises:
        InvalidRequest: There is no such output, or it cannot be compared.
    """
    outputs = description.outputs
    fitting = [o for o in outputs if _fits(o, description.batch_size)]
    if wanted is None:
        chosen = fitting[0] if fitting else None
    else:
        chosen = next((o for i, o in enumerate(outputs) if wanted in (o.name, str(i))), None)
        if chosen not in fitting:
            raise InvalidRequest(
                f"the model has no output {wanted!r}"
                if chosen is None
                else f"the output {wanted!r} is no floating-point tensor whose axis 0 is the samples'",
                "output",
                wanted,
                [f"{outputs.index(o)} or {o.name}" for o in fitting],
            )
    if chosen is None:
        return description
    return replace(description, outputs=(chosen, *(o for o in outputs if o is not chosen)))


def _fits(output: InputInfo, batch_size: int | None) -> bool:
    return bool(output.shape) and output.shape[0] == batch_size and output.dtype in _FLOATING


_FLOATING = frozenset({"float16", "bfloat16", "float32", "float64"})
