"""Hugging Face folders: each family against the eager module, and every rule on hostile ones."""

import json
import shutil
import sys
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from workers.errors import ModelRefused
from workers.graph.describe import describe
from workers.graph.program import Program
from workers.intake.models import read_model
from workers.intake.packing import model_files, pack_folder, packed
from workers.intake.signatures import call_of

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


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    save("BertModel", folder)
    return folder


@pytest.fixture
def copy(bert, tmp_path):
    return Path(shutil.copytree(bert, tmp_path / "bert"))


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


def rewrite(folder, change_weights):
    weights = load_file(folder / "model.safetensors")
    change_weights(weights)
    save_file(weights, folder / "model.safetensors")


def test_a_missing_tensor_is_named(copy):
    rewrite(copy, lambda w: w.update(spare=w.pop("pooler.dense.bias")))
    assert refusal(copy) == ("missing-tensor", "pooler.dense.bias")


def test_an_extra_tensor_is_named(copy):
    rewrite(copy, lambda w: w.update(spare=torch.zeros(3)))
    assert refusal(copy) == ("extra-tensor", "spare")


def test_a_tensor_of_another_shape_is_named(copy):
    rewrite(copy, lambda w: w.update({"pooler.dense.bias": torch.zeros(33)}))
    assert refusal(copy) == ("tensor-shape", "pooler.dense.bias")


def test_a_weight_that_is_not_finite_is_named(copy):
    rewrite(copy, lambda w: w["pooler.dense.weight"].fill_(float("nan")))
    # The pooler does not reach the output, so the embedding is spoilt too.
    rewrite(copy, lambda w: w["embeddings.word_embeddings.weight"].fill_(float("inf")))
    assert refusal(copy)[0] == "non-finite-weights"


def test_weights_that_are_no_safetensors_are_refused(copy):
    (copy / "model.safetensors").write_bytes(b"\x80\x02pickle" * 10)
    assert refusal(copy) == ("not-safetensors", "model.safetensors")


def test_truncated_weights_are_refused(copy):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    assert refusal(copy)[1] == "model.safetensors"


def test_a_file_without_tensors_is_refused(copy):
    save_file({}, copy / "model.safetensors")
    assert refusal(copy) == ("empty", "model.safetensors")


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


@pytest.mark.parametrize(
    "name", ["../a.safetensors", "/etc/passwd", "x/a.safetensors", "a.bin", ".a.safetensors"]
)
def test_an_index_cannot_point_elsewhere(copy, name):
    index = shards(copy)
    index["weight_map"]["pooler.dense.bias"] = name
    write_index(copy, index)
    assert refusal(copy) == ("shard-name", "model.safetensors.index.json")


def test_an_index_must_agree_with_the_files(copy):
    index = shards(copy)
    del index["weight_map"]["pooler.dense.bias"]
    write_index(copy, index)
    assert refusal(copy) == ("index", "model.safetensors.index.json")


def test_a_tensor_in_two_files_is_refused(copy):
    shards(copy)
    weights = load_file(copy / "b.safetensors")
    first = next(iter(load_file(copy / "a.safetensors")))
    weights[first] = torch.zeros(1)
    save_file(weights, copy / "b.safetensors")
    assert refusal(copy) == ("duplicate-tensor", "b.safetensors")


def test_a_missing_file_is_named(copy):
    shards(copy)
    (copy / "b.safetensors").unlink()
    assert refusal(copy) == ("missing-entry", "b.safetensors")


def test_a_folder_with_pickled_weights_alone_is_refused_by_their_name(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    assert refusal(copy) == ("pickle", "pytorch_model.bin")


def test_a_folder_without_weights_is_refused(copy):
    (copy / "model.safetensors").unlink()
    assert refusal(copy) == ("missing-entry", "model.safetensors")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_links_out_of_the_folder_are_refused(copy, tmp_path, name):
    (copy / name).rename(tmp_path / "secret")
    (copy / name).symlink_to(tmp_path / "secret")
    assert refusal(copy) == ("link", name)


def test_links_within_the_folder_are_followed(copy):
    (copy / "model.safetensors").rename(copy / "weights")
    (copy / "model.safetensors").symlink_to("weights")
    assert set(model_files(copy)) == {"config.json", "model.safetensors"}


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("model/pytorch_model.bin", "pickle"),
        ("model/modeling_evil.py", "code"),
        ("model/tokenizer.json", "unknown-entry"),
        ("model/deep/config.json", "unknown-entry"),
    ],
)
def test_a_packed_folder_holds_nothing_else(bert, tmp_path, name, rule):
    target = tmp_path / "bert.zip"
    pack_folder(bert, target)
    with zipfile.ZipFile(target, "a") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(ModelRefused) as caught:
        read_model(target)
    assert (caught.value.extra["rule"], caught.value.field) == (rule, name.removeprefix("model/"))


def test_entries_cannot_leave_the_archive(bert, tmp_path):
    target = tmp_path / "bert.zip"
    pack_folder(bert, target)
    with zipfile.ZipFile(target, "a") as archive:
        archive.writestr("model/../../x", b"x")
    with pytest.raises(ModelRefused):
        read_model(target)


def test_reading_needs_no_network(bert, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    assert read(bert).inputs
