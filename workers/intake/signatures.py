"""How a network of transformers is called: which inputs it gets, of which sizes, and which output is compared."""

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any, Final

import torch
from torch import Tensor, nn

from workers.intake.packing import CONFIG
from workers.intake.refusals import refuse

_SAMPLES: Final = 2
_POSITIONS: Final = 24
_DECODER_POSITIONS: Final = 20
_LIMITS_OF_POSITIONS: Final = ("max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx")
_HEADLESS: Final = "last_hidden_state"
_HEADS: Final = ("logits", _HEADLESS)


@dataclass(frozen=True, kw_only=True)
class Call:
    """How a network is exported.

    Args:
        examples: Input name -> example.
        dynamic_shapes: Input name -> the axes that vary.
        output: Name of the output.
    """

    examples: Mapping[str, Tensor]
    dynamic_shapes: Mapping[str, dict[int, Any]]
    output: str


def call_of(network: Any) -> Call:
    """Find out how to call a network.

    Args:
        network: A ``PreTrainedModel``.

    Raises:
        ModelRefused: It takes neither text nor images.
    """
    batch = torch.export.Dim("batch", min=1)
    main = network.main_input_name
    accepted = signature(network.forward).parameters
    examples: dict[str, Tensor] = {}
    shapes: dict[str, dict[int, Any]] = {}
    if main == "pixel_values":
        examples[main] = torch.zeros(_image_shape(network.config), dtype=_dtype(network))
        shapes[main] = {0: batch}
    elif main == "input_ids":
        sides = [("", "positions", _POSITIONS)]
        if network.config.is_encoder_decoder:
            sides.append(("decoder_", "decoder_positions", _DECODER_POSITIONS))
        for prefix, axis, count in sides:
            longest = _longest(network.config)
            count = min(count, longest or count)  # noqa: PLW2901 - a short model is exported at its own length
            size = torch.export.Dim(axis, min=2, max=longest)
            for name in (f"{prefix}input_ids", f"{prefix}attention_mask"):
                if name in accepted:
                    examples[name] = torch.ones(_SAMPLES, count, dtype=torch.int64)
                    shapes[name] = {0: batch, 1: size}
    else:
        raise refuse(
            "input-kind",
            f"{type(network).__name__} takes {main!r}",
            field=CONFIG,
            value=str(main),
            allowed="models of text (input_ids) or images (pixel_values); export others yourself to .pt2",
        )
    return Call(examples=examples, dynamic_shapes=shapes, output=_output(network, examples))


def _output(network: nn.Module, examples: Mapping[str, Tensor]) -> str:
    """The name of the output, told from a run without values."""
    with torch.inference_mode():
        found = network(**examples, return_dict=True)
    for name in _HEADS:
        if isinstance(found.get(name), Tensor):
            return name
    raise refuse(
        "no-output",
        f"{type(network).__name__} returns neither of the outputs that can be compared",
        field=CONFIG,
        value=", ".join(map(str, found.keys())),
        allowed=" or ".join(_HEADS),
    )


def _longest(config: Any) -> int | None:
    """The most positions a text model can take, if it has a limit."""
    for name in _LIMITS_OF_POSITIONS:
        value = getattr(config, name, None)
        if type(value) is int and value > 1:
            return value
    return None


def _image_shape(config: Any) -> tuple[int, int, int, int]:
    size = getattr(config, "image_size", None)
    sides = [size, size] if type(size) is int else size
    channels = getattr(config, "num_channels", 3)
    if (
        not isinstance(sides, list | tuple)
        or len(sides) != 2
        or not all(type(side) is int and 0 < side <= 1 << 14 for side in (*sides, channels))
    ):
        raise refuse(
            "image-size",
            "the config does not say how large the images are",
            field=f"{CONFIG}.image_size",
            value=str(size),
            allowed="a number of pixels, or two",
        )
    return _SAMPLES, channels, sides[0], sides[1]


def _dtype(network: nn.Module) -> torch.dtype:
    return next(parameter.dtype for parameter in network.parameters() if parameter.is_floating_point())
