"""Hugging Face folders: each family against the eager module, and every rule on hostile ones."""

import shutil
import sys
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from workers.errors import ModelRefused
from workers.graph.describe import describe
from workers.graph.program import Program
from workers.intake.models import read_model
from workers.intake.packing import pack_folder, packed
from workers.intake.signatures import call_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")
from .families import FAMILIES, change, inputs_of, read, refusal, save


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_family_computes_what_the_eager_module_does(architecture, tmp_path):
    module = save(architecture, tmp_path)
    model = read(tmp_path)
    program = Program(model)
    for samples, positions in ((1, 5), (3, 11)):
        given = inputs_of(model, samples, positions)
        with torch.no_grad():
            expected = module(**given, return_dict=True)
        expected = expected["logits" if "logits" in expected else "last_hidden_state"]
        (found,) = program.run([given[info.name] for info in model.inputs])
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    described = describe(model)
    assert described.batch_size is None
    assert described.outputs[0].name in ("logits", "last_hidden_state")
    names = dict(module.named_parameters())
    assert all(unit.name in names for unit in described.units if not unit.derived)
    assert described.weights <= sum(parameter.numel() for parameter in module.parameters())


def test_inputs_have_the_names_that_tokenizers_give(tmp_path):
    save("T5ForConditionalGeneration", tmp_path)
    assert [info.name for info in read(tmp_path).inputs] == [
        "input_ids",
        "attention_mask",
        "decoder_input_ids",
        "decoder_attention_mask",
    ]


def test_a_tied_head_is_one_unit_with_the_embedding(tmp_path):
    save("LlamaForCausalLM", tmp_path)
    units = describe(read(tmp_path)).units
    (embedding,) = [unit for unit in units if unit.name == "model.embed_tokens.weight"]
    assert embedding.tied == ("lm_head.weight",)
    assert len(units) == 1 + 2 * 7


def test_sharded_weights_are_the_same_model(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    save("BertModel", whole)
    save("BertModel", parts, max_shard_size="20KB")
    assert len(list(parts.glob("model-*.safetensors"))) > 2
    one, other = read(whole), read(parts)
    assert one.qualified_names == other.qualified_names
    assert all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())


def test_half_precision_weights_stay_as_they_are_stored(tmp_path):
    save("LlamaForCausalLM", tmp_path, torch.bfloat16)
    model = read(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    floats = {model.tensors[name].dtype for name in model.parameters}
    assert floats == {torch.bfloat16}
    parameters = sum(tensor.numel() for tensor in stored.values())
    buffers = describe(model).float_bits - 16 * parameters
    assert 0 <= buffers < 32 * 64


def test_weights_are_used_where_they_lie_in_the_file(bert, tmp_path):
    pack_folder(bert, tmp_path / "bert.zip")
    model = read_model(tmp_path / "bert.zip")
    assert Path("/proc/self/maps").read_text().count("bert.zip") >= 1
    storages = sorted(tensor.untyped_storage().data_ptr() for tensor in model.tensors.values())
    ranges = [
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith("bert.zip")
    ]
    mapped = [any(low <= pointer < high for low, high in ranges) for pointer in storages]
    assert sum(mapped) >= len(model.parameters)


def test_packing_is_a_function_of_the_models_files(bert, tmp_path):
    other = Path(shutil.copytree(bert, tmp_path / "other"))
    (other / "tokenizer.json").write_text("{}")
    (other / "modeling_evil.py").write_text("raise SystemExit")
    pack_folder(bert, tmp_path / "one.zip")
    pack_folder(other, tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["model/config.json", "model/model.safetensors"]
    assert not list(tmp_path.glob(".*"))


def test_a_file_is_packed_as_it_is(tmp_path):
    with packed(tmp_path / "model.pt2") as path:
        assert path == tmp_path / "model.pt2"


CONFIGS = [
    ("config-key", {"auto_map": {"AutoModel": "modeling_evil.Evil"}}),
    ("config-key", {"custom_pipelines": {"x": {"impl": "evil.Evil"}}}),
    ("config-key", {"quantization_config": {"quant_method": "gptq"}}),
    ("config-key", {"nested": [{"auto_map": {"AutoModel": "a.B"}}]}),
    ("config-key", {"transformers_weights": "../../secret.safetensors"}),
    ("config-key", {"use_timm_backbone": True}),
    ("attention", {"_attn_implementation": "kernels-community/flash-attn"}),
    ("attention", {"attn_implementation": "flash_attention_2"}),
    ("config-number", {"num_hidden_layers": 1_000_000}),
    ("config-number", {"hidden_size": 1 << 40}),
    ("config-number", {"vocab_size": -(1 << 40)}),
    ("config-list", {"layer_types": ["full_attention"] * 70_000}),
    ("parameter-count", {"vocab_size": 1 << 20}),
    ("model-type", {"model_type": ...}),
    ("architecture", {"model_type": "evil"}),
    ("architecture", {"architectures": ["Evil"]}),
    ("architecture", {"architectures": ["os"]}),
    ("architecture", {"architectures": ["BertModel", "GPT2Model"]}),
    ("architecture", {"architectures": ["GPT2Model"]}),
    ("architecture", {"architectures": ["AutoModel"]}),
    ("config", {"hidden_act": "evil"}),
    ("config", {"num_attention_heads": 7}),
    ("config", {"hidden_size": "32"}),
]


@pytest.mark.parametrize(("rule", "members"), CONFIGS)
def test_a_config_that_breaks_a_rule_is_refused(copy, rule, members):
    change(copy, **members)
    found, field = refusal(copy)
    assert found == rule
    assert "config.json" in field


def test_a_text_that_is_no_config_is_refused(copy):
    (copy / "config.json").write_text('{"a": 1, "a": 2}')
    assert refusal(copy) == ("duplicate-key", "config.json")


def test_buffers_are_bounded(copy, monkeypatch):
    monkeypatch.setattr("workers.intake.huggingface._MOST_BUFFER_BYTES", 16)
    assert refusal(copy) == ("buffer-bytes", "config.json")


def test_what_cannot_be_traced_is_refused(copy, monkeypatch):
    def fail(*_args, **_kwargs):
        raise RuntimeError("sizes depend on values")

    monkeypatch.setattr(torch.export, "export", fail)
    assert refusal(copy) == ("not-exportable", "config.json")


def test_models_of_sound_are_refused_by_their_input(copy, monkeypatch):
    monkeypatch.setattr(transformers.BertModel, "main_input_name", "input_values")
    assert refusal(copy) == ("input-kind", "config.json")


def test_a_model_without_a_comparable_output_is_refused(copy, monkeypatch):
    monkeypatch.setattr("workers.intake.signatures._HEADS", ("none",))
    assert refusal(copy) == ("no-output", "config.json")


@pytest.mark.parametrize("size", [None, 0, "16", [16, 16, 16], [16, 1 << 20]])
def test_images_need_a_size(size):
    network = SimpleNamespace(
        main_input_name="pixel_values",
        config=SimpleNamespace(image_size=size),
        forward=lambda pixel_values: pixel_values,
    )
    with pytest.raises(ModelRefused) as caught:
        call_of(network)
    assert caught.value.extra["rule"] == "image-size"


def test_a_worker_without_transformers_says_so(copy, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers.utils", None)
    assert refusal(copy) == ("transformers", "model")
