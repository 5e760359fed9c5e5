"""Reading a packed Hugging Face folder: config and weights go into a class of transformers, which is exported here.

Nothing of the folder is code. The config picks a class that transformers itself ships (`model_config` says what it may
ask for), its parameters are the tensors where they lie in the mapped file, and torch.export turns the module into
the program that a ``.pt2`` file would hold, which then goes through the same checks. No network is used, whatever
the config names.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any, Final

import torch
from torch import Tensor, nn

from workers.errors import ModelRefused
from workers.graph.model import GraphModel
from workers.intake.archive import Archive
from workers.intake.assembly import assemble
from workers.intake.exported import ExportCache, Exported
from workers.intake.jsontext import parse_json
from workers.intake.limits import MIB, Limits
from workers.intake.model_config import architecture, read_config
from workers.intake.packing import CONFIG, INDEX, WEIGHTS, check_names, shards_of
from workers.intake.refusals import refuse, shorten
from workers.intake.signatures import Call, call_of
from workers.intake.weight_files import read_weights

_NETWORK: Final = "network."
_ATTENTION: Final = "sdpa"
_MOST_BUFFER_BYTES: Final = 512 * MIB
_FLOATS: Final = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def read_folder(archive: Archive, limits: Limits, cache: ExportCache | None = None) -> GraphModel:
    """Read a packed folder.

    Args:
        archive: The folder's files.
        limits: Bounds on what they may ask for.
        cache: Where the exported program may be, and is left; ``None`` for nowhere.

    Returns:
        The model in the data type of its weights. Its inputs are ``input_ids`` and ``attention_mask`` (and
        ``decoder_input_ids`` and ``decoder_attention_mask``) of any number of positions, or ``pixel_values``; its
        output is ``logits`` where the architecture has a head, else ``last_hidden_state``.

    Raises:
        ModelRefused: A file, the config or a tensor breaks a rule, or the architecture cannot be exported.
    """
    index = archive.read(INDEX) if INDEX in archive.entries else None
    shards = None if index is None else shards_of(index)
    check_names(archive.entries, shards)
    weights = read_weights(archive, sorted(set(shards.values())) if shards else [WEIGHTS], shards)
    config = read_config(archive.read(CONFIG), tensors=len(weights))
    known = None if cache is None else cache.restore(weights)
    if known is not None:
        return _assembled(known, limits)
    with _quiet():
        network = _network(config, weights)
        call = call_of(network)
        exported = _exported(_program(network, call), call)
    model = _assembled(exported, limits)
    if cache is not None:
        cache.keep(exported, weights)
    return model


def _network(raw: dict[str, Any], weights: dict[str, Tensor]) -> nn.Module:
    """The module of the config over the stored weights."""
    kind, name = architecture(raw)
    config, model_class = _classes(raw, kind, name)
    try:
        with torch.device("meta"):
            empty = model_class(config)
    except Exception as error:  # noqa: BLE001 - a constructor raises anything at odd configs
        raise _unbuildable(name, error) from None
    _check_size(empty, weights)
    try:
        network, found = model_class.from_pretrained(
            None,
            config=config,
            state_dict=weights,
            dtype=_stored_dtype(weights),
            attn_implementation=_ATTENTION,
            output_loading_info=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # so that it lists them; they are refused
        )
    except Exception as error:  # noqa: BLE001 - likewise
        raise _unbuildable(name, error) from None
    _check_loaded(found, name)
    module: nn.Module = network.train(mode=False)
    return module


def _classes(raw: dict[str, Any], kind: str, name: str) -> tuple[Any, Any]:
    """The config as an object, and the class to build; both from transformers' own tables."""
    import transformers  # noqa: PLC0415 - needed for folders only

    # Mappings without what a process may have registered besides.
    kinds = transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES
    model_class: Any = getattr(transformers, name, None) if kind in kinds else None
    known = isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)
    if not known:
        raise refuse(
            "architecture",
            f"transformers {transformers.__version__} has no model type {kind!r} with a class {name!r}",
            field=CONFIG,
            value=f"{kind}: {name}",
            allowed="architectures that transformers itself ships",
        )
    config_class = transformers.CONFIG_MAPPING[kind]
    if model_class.config_class is not config_class:
        raise refuse(
            "architecture",
            f"{name} is not built of a {kind!r} config",
            field=CONFIG,
            value=f"{kind}: {name}",
            allowed="a class of the config's own model type",
        )
    try:
        return config_class.from_dict(raw), model_class
    except Exception as error:  # noqa: BLE001 - validators raise anything
        raise refuse(
            "config",
            f"the config is not one of a {kind!r} model: {shorten(str(error).strip())}",
            field=CONFIG,
            value=kind,
            allowed="a config as save_pretrained writes it",
        ) from None


def _check_size(empty: nn.Module, weights: dict[str, Tensor]) -> None:
    """Before anything is made: the module may not be larger than what the folder holds."""
    wanted = sum(parameter.numel() for parameter in empty.parameters())
    stored = sum(tensor.numel() for tensor in weights.values())
    if wanted > stored:
        raise refuse(
            "parameter-count",
            f"the config describes {wanted} parameters and the folder holds {stored}",
            field=CONFIG,
            value=wanted,
            allowed=f"at most {stored}",
        )
    size_bytes = sum(buffer.numel() * buffer.element_size() for buffer in empty.buffers())
    if size_bytes > _MOST_BUFFER_BYTES:
        raise refuse(
            "buffer-bytes",
            f"the config asks for buffers of {size_bytes} bytes",
            field=CONFIG,
            value=size_bytes,
            allowed=f"at most {_MOST_BUFFER_BYTES} bytes",
        )


def _check_loaded(found: dict[str, Any], name: str) -> None:
    for kind, rule, what in (
        ("missing_keys", "missing-tensor", "lacks the tensor"),
        ("unexpected_keys", "extra-tensor", "holds a tensor that the architecture does not have:"),
        ("mismatched_keys", "tensor-shape", "holds a tensor of another shape than the config's:"),
    ):
        keys = sorted(key if isinstance(key, str) else str(key[0]) for key in found[kind])
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise refuse(
                rule,
                f"the folder {what} {keys[0]!r}{more} ({name})",
                field=keys[0],
                value=len(keys),
                allowed=f"the tensors of {name} with this config, all of them and no others",
            )


def _stored_dtype(weights: dict[str, Tensor]) -> torch.dtype:
    """The floating type that most of the weights have."""
    counts = dict.fromkeys(_FLOATS, 0)
    for tensor in weights.values():
        if tensor.dtype in counts:
            counts[tensor.dtype] += tensor.numel()
    return max(counts, key=lambda dtype: counts[dtype])


class _OneOutput(nn.Module):
    """A network as a function from tensors to the one output that is compared."""

    def __init__(self, network: nn.Module, call: Call) -> None:
        super().__init__()
        self.network = network
        self._output = call.output
        self._fixed = {
            key: False
            for key in ("use_cache", "output_attentions", "output_hidden_states")
            if key in signature(network.forward).parameters
        }

    def forward(  # torch.export needs the names spelled out
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
    ) -> Tensor:
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "decoder_input_ids": decoder_input_ids,
            "decoder_attention_mask": decoder_attention_mask,
            "pixel_values": pixel_values,
        }
        given = {name: value for name, value in inputs.items() if value is not None}
        output: Tensor = self.network(**given, **self._fixed, return_dict=True)[self._output]
        return output


def _program(network: nn.Module, call: Call) -> torch.export.ExportedProgram:
    try:
        return torch.export.export(
            _OneOutput(network, call),
            (),
            dict(call.examples),
            dynamic_shapes=dict(call.dynamic_shapes),
            strict=False,
        )
    except Exception as error:  # noqa: BLE001 - tracing raises anything
        raise refuse(
            "not-exportable",
            f"torch.export cannot trace {type(network).__name__}: {shorten(str(error).strip())}",
            field=CONFIG,
            value=type(network).__name__,
            allowed="text and image models whose sizes do not depend on values",
        ) from None


def _exported(program: torch.export.ExportedProgram, call: Call) -> Exported:
    from torch._export.serde.serialize import serialize  # noqa: PLC0415 - what torch.export.save calls

    text = serialize(
        program, serialize_state_dict=False, serialize_constants=False, serialize_example_inputs=False
    ).exported_program
    constants = {name: value for name, value in program.constants.items() if isinstance(value, Tensor)}
    weights = {name: value.detach() for name, value in program.state_dict.items()}
    return Exported(program=text, weights=weights, constants=constants, output=call.output)


def _assembled(exported: Exported, limits: Limits) -> GraphModel:
    """The exported program through the reader of ``.pt2`` files: only the tensors do not go through a file.

    The parameters and the output get the names that the folder's author knows.
    """
    program = parse_json(memoryview(exported.program), "exported program", limits)
    model = assemble(program, exported.weights, exported.constants, limits)
    for key, name in model.qualified_names.items():
        model.qualified_names[key] = name.removeprefix(_NETWORK)
    for node in model.graph.output_node().all_input_nodes:
        node.name = exported.output  # there is one
    return model


def _unbuildable(name: str, error: Exception) -> ModelRefused:
    return refuse(
        "config",
        f"transformers cannot build {name} of this config: {shorten(str(error).strip())}",
        field=CONFIG,
        value=name,
        allowed="a config as save_pretrained writes it",
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Offline, without progress bars, and with transformers' advice to developers kept out of the worker's log."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_OFFLINE"] = "1"
    try:
        from transformers.utils import logging as advice  # noqa: PLC0415 - needed for folders only
    except ImportError:
        raise refuse(
            "transformers",
            "this worker has no transformers, which Hugging Face folders need",
            field="model",
            allowed="a .pt2 file, or a worker installed with bitwright[huggingface]",
        ) from None
    advice.disable_progress_bar()
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
