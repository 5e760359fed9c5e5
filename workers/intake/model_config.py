"""What a Hugging Face ``config.json`` may say. Torch-free.

The config decides which classes of transformers are built and how large they are. Classes are looked up in
transformers' own tables, so a config cannot bring code along; keys that would select code, other files or
other packages are refused by name, and numbers are bounded before anything is built of them.
"""

import re
from collections.abc import Iterator
from typing import Any, Final

from workers.intake.jsontext import Json, parse_json
from workers.intake.packing import CONFIG, LIMITS
from workers.intake.refusals import refuse

# Key -> why it is refused when it has a value.
_FORBIDDEN: Final = {
    "auto_map": "it names Python code that comes with the model",
    "custom_pipelines": "it names Python code that comes with the model",
    "quantization_config": "the weights are quantized already",
    "compression_config": "the weights are quantized already",
    "fusion_config": "it replaces modules",
    "kernel_config": "it fetches compiled kernels",
    "distributed_config": "it spreads the model over machines",
    "transformers_weights": "it names a file of weights",
    "adapter_config": "it names weights of another model",
    "base_model_name_or_path": "it names another model",
    "use_timm_backbone": "it builds a model of another package",
    "use_pretrained_backbone": "it fetches another model",
    "backbone": "it names another model",
    "trust_remote_code": "code that comes with a model is never run",
}
_ATTENTIONS: Final = ("eager", "sdpa")
_ATTENTION_KEYS: Final = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
_PARTS: Final = re.compile(r"layers?$|blocks?$|depths?$|stages$|^n_layer|experts$", re.ASCII)
_MOST_PARTS: Final = 4096
_FEW_PARTS: Final = 256
_LARGEST: Final = 1 << 24
_UNBOUNDED: Final = re.compile(r"theta|freq_base|seed|version|id$|ids$", re.ASCII)
_LONGEST_LIST: Final = 1 << 16
_ARCHITECTURE: Final = re.compile(r"[A-Z][A-Za-z0-9_]{0,100}", re.ASCII)


def read_config(text: memoryview, *, tensors: int) -> dict[str, Any]:
    """Read and check a config.

    Args:
        text: Of ``config.json``.
        tensors: Number of tensors the folder holds: no model has more layers than that (256 are always allowed).

    Returns:
        The config without the keys that begin with an underscore, which describe the file and not the model.

    Raises:
        ModelRefused: Not JSON, a key that selects code or other files, or a number beyond its bounds.
    """
    config = parse_json(text, CONFIG, LIMITS)
    for key, value in _fields(config):
        _check(key, value, min(max(tensors, _FEW_PARTS), _MOST_PARTS))
    public: dict[str, Any] = _without_private(config.object())
    return public


def architecture(config: dict[str, Any]) -> tuple[str, str]:
    """The model type and the name of the class to build.

    Raises:
        ModelRefused: None or several.
    """
    names = config.get("architectures")
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise refuse(
            "model-type",
            "the config has no model_type",
            field=f"{CONFIG}.model_type",
            value=kind,
            allowed="a model type of transformers",
        )
    if not (
        isinstance(names, list)
        and len(names) == 1
        and isinstance(names[0], str)
        and _ARCHITECTURE.fullmatch(names[0])
    ):
        raise refuse(
            "architecture",
            "the config does not name one architecture",
            field=f"{CONFIG}.architectures",
            value=names,
            allowed='one class of transformers, such as ["LlamaForCausalLM"]',
        )
    return kind, names[0]


def _fields(json: Json) -> Iterator[tuple[str, Json]]:
    """All keys with their values, at any depth."""
    if isinstance(json.value, dict):
        for key, value in json.fields():
            yield key, value
            yield from _fields(value)
    elif isinstance(json.value, list):
        for item in json.items():
            yield from _fields(item)


def _check(key: str, json: Json, parts: int) -> None:
    value = json.value
    if key in _FORBIDDEN and value not in (None, False):
        raise refuse(
            "config-key",
            f"{json.where} is set, and {_FORBIDDEN[key]}",
            field=json.where,
            value=value,
            allowed="configs without it",
        )
    if key in _ATTENTION_KEYS and value not in (None, *_ATTENTIONS):
        raise refuse(
            "attention",
            f"{json.where} asks for another kind of attention than torch's own",
            field=json.where,
            value=value,
            allowed=" or ".join(_ATTENTIONS),
        )
    numbers = value if isinstance(value, list) else [value]
    if len(numbers) > _LONGEST_LIST:
        raise refuse(
            "config-list",
            f"{json.where} has {len(numbers)} elements",
            field=json.where,
            value=len(numbers),
            allowed=f"at most {_LONGEST_LIST}",
        )
    for number in numbers:
        if type(number) is int:
            _check_number(key, number, json.where, parts)


def _check_number(key: str, number: int, where: str, parts: int) -> None:
    most = parts if _PARTS.search(key) else _LARGEST
    if abs(number) > most and not (most == _LARGEST and _UNBOUNDED.search(key)):
        raise refuse(
            "config-number",
            f"{where} is {number}",
            field=where,
            value=number,
            allowed=f"at most {most}",
        )


def _without_private(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_private(item) for key, item in value.items() if not key.startswith("_")}
    if isinstance(value, list):
        return [_without_private(item) for item in value]
    return value
