"""Small models of families that `transformers` ships, as folders, and what reading them says."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from workers.errors import ModelRefused
from workers.intake.models import read_model
from workers.intake.packing import packed

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")

LLAMA = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
BERT = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 48,
}
VIT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
    "num_labels": 5,
}
T5 = {"vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
BART = {
    "vocab_size": 61,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 48,
}
GPT2 = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 48}

FAMILIES = {
    "LlamaForCausalLM": ("LlamaConfig", LLAMA | {"tie_word_embeddings": True}),
    "Qwen2ForCausalLM": ("Qwen2Config", LLAMA),
    "GPT2LMHeadModel": ("GPT2Config", GPT2),
    "BertModel": ("BertConfig", BERT),
    "BertForSequenceClassification": ("BertConfig", BERT | {"num_labels": 3}),
    "RobertaForMaskedLM": ("RobertaConfig", BERT),
    "DistilBertModel": (
        "DistilBertConfig",
        {"vocab_size": 61, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
    ),
    "ViTForImageClassification": ("ViTConfig", VIT),
    "T5ForConditionalGeneration": ("T5Config", T5),
    "BartForConditionalGeneration": ("BartConfig", BART),
}


def module_of(architecture, dtype=torch.float32):
    config, values = FAMILIES[architecture]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(transformers, architecture)(getattr(transformers, config)(**values))
    return model.to(dtype).eval()


def save(architecture, folder, dtype=torch.float32, **options):
    model = module_of(architecture, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder, **options)
    return model


def read(folder):
    with packed(folder) as file:
        return read_model(file)


def refusal(folder):
    with pytest.raises(ModelRefused) as caught:
        read(folder)
    return caught.value.extra["rule"], caught.value.field


def change(folder, **members):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | members
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def rewrite(folder, change_weights):
    weights = load_file(folder / "model.safetensors")
    change_weights(weights)
    save_file(weights, folder / "model.safetensors")


def shards(folder):
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, members in parts.items():
        save_file({name: weights[name] for name in members}, folder / file)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, members in parts.items() for name in members}}
    write_index(folder, index)
    return index


def write_index(folder, index):
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def inputs_of(model, samples, positions):
    generator = torch.Generator().manual_seed(positions)
    made = {}
    for info in model.inputs:
        shape = [samples, *(positions if size is None else size for size in info.shape[1:])]
        if info.name.endswith("attention_mask"):
            made[info.name] = torch.ones(shape, dtype=torch.int64)
            made[info.name][0, positions // 2 :] = 0
        elif info.dtype == "int64":
            made[info.name] = torch.randint(3, 60, shape, generator=generator)
        else:
            made[info.name] = torch.randn(shape, generator=generator)
    return made
