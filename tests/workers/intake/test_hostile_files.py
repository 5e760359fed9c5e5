"""Files that try to run code: refused (or the payload ignored), and nothing ran."""

import contextlib
import io
import json
import pickle
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from workers.errors import ModelRefused
from workers.intake.pt2 import read_model

WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
EXAMPLES = "data/sample_inputs/model.pt"
MODEL = "models/model.json"


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return Path.touch, (Path(self.marker),)


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "marker"


@pytest.fixture
def refused(tmp_path, marker):
    """Read a file that must be refused by the given rule; see that nothing ran and nothing was imported."""

    def check(path, rule, *words, field=None):
        modules = set(sys.modules)
        with pytest.raises(ModelRefused) as caught:
            read_model(path)
        refusal = caught.value
        assert refusal.extra["rule"] == rule, refusal
        assert field is None or refusal.field == field
        assert all(word in refusal.message for word in words), refusal.message
        json.dumps([refusal.field, refusal.value, refusal.allowed, refusal.extra], allow_nan=False)
        assert not marker.exists(), "code from the file ran"
        assert not [name for name in set(sys.modules) - modules if name.startswith(("antigravity", "this"))]

    return check


def saved(value, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def edit(entries, name, change):
    value = json.loads(entries[name])
    change(value)
    entries[name] = json.dumps(value).encode()


def test_the_payload_works(marker):
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists()


def test_the_payloads_are_live(conv_file, tamper, marker):
    """The files refused below do run code where torch itself loads them."""

    def weights(value):
        first = next(iter(value["config"].values()))
        first["use_pickle"] = True

    def expression(value):
        code = f"__import__('pathlib').Path('{marker}').touch()"
        sizes = value["graph_module"]["graph"]["tensor_values"]["image"]["sizes"]
        sizes[0] = {"as_expr": {"expr_str": code, "hint": {"as_int": 2}}}

    changes = [
        lambda e: (edit(e, WEIGHTS, weights), e.update({"data/weights/weight_0": saved(Payload(marker))})),
        lambda e: e.update({EXAMPLES: saved(((Payload(marker),), {}))}),
        lambda e: edit(e, MODEL, expression),
    ]
    for change in changes:
        path = tamper(conv_file, change)
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.load(path)
        assert marker.exists()
        marker.unlink()


def test_a_bare_pickle(tmp_path, marker, refused):
    for protocol in range(6):
        path = tmp_path / "model.pt2"
        path.write_bytes(pickle.dumps(Payload(marker), protocol))
        refused(path, "pickle", "pickle", "bitwright export")


def test_torch_save_files(tmp_path, marker, refused):
    path = tmp_path / "model.pt2"
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        path.write_bytes(saved({"weights": torch.zeros(3), "payload": Payload(marker)}, **options))
        refused(path, "pickle", "torch.save", "xport it with `bitwright export`")


def test_torchscript(tmp_path, refused):
    path = tmp_path / "model.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), path)
    refused(path, "torchscript", "TorchScript")


@pytest.mark.parametrize("kind", ["weights", "constants"])
def test_pickled_tensors(conv_file, tamper, marker, refused, kind):
    config, prefix = (WEIGHTS, "weight_") if kind == "weights" else (CONSTANTS, "tensor_")

    def change(entries):
        def mark(value):
            first = next(iter(value["config"].values()))
            first["use_pickle"] = True
            entries[f"data/{kind}/{first['path_name']}"] = saved(Payload(marker))

        edit(entries, config, mark)

    refused(tamper(conv_file, change), f"pickled-{kind}", "pickled", field=f"data/{kind}/{prefix}0")


@pytest.mark.parametrize("kind", ["weights", "constants"])
def test_all_tensors_in_one_pickle(conv_file, tamper, marker, refused, kind):
    name = f"data/{kind}/model.pt"
    path = tamper(conv_file, lambda entries: entries.update({name: saved({"conv.weight": Payload(marker)})}))
    refused(path, f"pickled-{kind}", field=name)


@pytest.mark.parametrize("name", ["opaque_obj_0", "custom_obj_0"])
@pytest.mark.parametrize("listed", [False, True])
def test_opaque_constants(conv_file, tamper, marker, refused, name, listed):
    def change(entries):
        if not listed:
            entries[f"data/constants/{name}"] = pickle.dumps(Payload(marker))
            return
        edit(
            entries,
            CONSTANTS,
            lambda value: value["config"]["scale"].update(path_name=name, use_pickle=False),
        )

    refused(tamper(conv_file, change), "opaque-constant", "Python object", field=f"data/constants/{name}")


def test_an_opaque_input(conv_file, tamper, refused):
    spec = {"custom_obj": {"arg": {"name": "o", "class_fqn": "antigravity.fly"}, "custom_obj_name": "o"}}

    def change(value):
        value["graph_module"]["signature"]["input_specs"].insert(0, spec)

    refused(tamper(conv_file, lambda entries: edit(entries, MODEL, change)), "opaque-constant", "custom_obj")


def zipped(**entries):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in entries.items():
            archive.writestr(f"archive/{name.replace('__', '.')}", data)
    return buffer.getvalue()


EXAMPLE_PICKLES = [
    # a text-protocol reference, a stack reference, a stack reference through the memo, old instance opcodes,
    # extension codes, an allowed module with another name, a name that only begins like an allowed one
    b"cposix\nsystem\n(X\x02\x00\x00\x00idtR.",
    b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02id\x85R.",
    b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x940h\x00h\x01\x93\x8c\x02id\x85R.",
    b"\x80\x04\x8c\x05posix\x8c\x06system\x8c\x0ctorch._utils\x8c\x12_rebuild_tensor_v200\x93.",
    b"(iposix\nsystem\n.",
    b"(cposix\nsystem\no.",
    b"\x82\x01.",
    b"ctorch.serialization\nload\n(X\x02\x00\x00\x00idtR.",
    b"ctorch\nhub\n.",
    b"ctorch._utils\n_rebuild_tensor_v2x\n.",
    b"\x80\x04\x8c\x05torch\x8c\x0aos.systems_\x93.",
    b"not a pickle at all",
    b"",
]


@pytest.mark.parametrize("content", EXAMPLE_PICKLES)
def test_example_inputs_that_would_call_something(conv_file, tamper, refused, content):
    path = tamper(conv_file, lambda entries: entries.update({EXAMPLES: zipped(data__pkl=content)}))
    refused(path, "pickled-example-inputs", "example inputs")


def test_example_inputs_of_other_kinds(conv_file, tamper, marker, refused):
    script = zipped(**{"data__pkl": b"N.", "constants__pkl": b"N.", "code/x.py": b""})
    evil = pickle.dumps(Payload(marker))
    for content in (saved(((Payload(marker),), {})), evil, script, evil + evil, b"x"):
        path = tamper(conv_file, lambda entries, content=content: entries.update({EXAMPLES: content}))
        refused(path, "pickled-example-inputs")


@pytest.mark.parametrize(
    "value",
    [
        ((torch.zeros(2, 3), None, 3, 2.5, "text", True), {"mask": torch.ones(2, dtype=torch.bool)}),
        (([torch.zeros(1), {"x": (torch.zeros(1, dtype=torch.bfloat16),)}],), {}),
        ((torch.nn.Parameter(torch.zeros(2)), torch.Size([2, 3]), torch.float16), {}),
    ],
)
def test_ordinary_example_inputs(conv_file, tamper, value):
    read_model(tamper(conv_file, lambda entries: entries.update({EXAMPLES: saved(value)})))
    read_model(tamper(conv_file, lambda entries: entries.update({EXAMPLES: saved(value, pickle_protocol=4)})))
    read_model(tamper(conv_file, lambda entries: entries.update({EXAMPLES: b""})))
    read_model(tamper(conv_file, lambda entries: entries.pop(EXAMPLES)))


CODE = [
    "__import__('pathlib').Path('{marker}').touch()",
    "Symbol('s0').func.__class__",
    "Integer(1) if __import__('pathlib').Path('{marker}').touch() else Integer(2)",
    "[x for x in (1,)]",
    "exec(1, 2)",
    "exec(Integer(1), Integer(2))",
    "lambda: 1",
    "Add(Integer(1), exec(\"import pathlib; pathlib.Path('{marker}').touch()\"))",
    "Symbol('s0', positive=__import__('pathlib').Path('{marker}').touch())",
    "Function('f')(1)",
    "Integer('9')",
    "Pow(Integer(9), Integer(9), Integer(9))",
    "Symbol('a\\'b')",
    "",
    "Add",
    "'s0'",
    "Add(" * 40 + "Integer(1)" + ")" * 40,
    "Add(" + "Integer(1), " * 300 + "Integer(1))",
    "Integer(" + "9" * 40 + ")",
    "Integer(1) Integer(2)",
    "Float('1e999', precision=53)",
]


@pytest.mark.parametrize("code", CODE)
def test_code_in_a_symbolic_size(transformer_file, tamper, marker, refused, code):
    expression = {"as_expr": {"expr_str": code.format(marker=marker), "hint": None}}

    def in_sizes(graph):
        graph["tensor_values"]["ids"]["sizes"][0] = expression

    def in_strides(graph):
        graph["tensor_values"]["embedding"]["strides"][0] = expression

    def in_numbers(graph):
        next(iter(graph["sym_int_values"].values()))["as_expr"] = expression["as_expr"]

    def in_flags(graph):
        graph["sym_bool_values"]["unused"] = expression

    for place in (in_sizes, in_strides, in_numbers, in_flags):
        path = tamper(
            transformer_file,
            lambda entries, place=place: edit(entries, MODEL, lambda v: place(v["graph_module"]["graph"])),
        )
        refused(path, "symbolic-expression", "symbolic size")


@pytest.mark.parametrize(
    ("target", "rule", "words"),
    [
        ("torch.ops.aten.from_file.default", "unknown-operator", "list"),
        ("torch.ops.aten.set_.source_Storage", "unknown-operator", "list"),
        ("torch.ops.aten.resize_.default", "unknown-operator", "list"),
        ("torch.ops.aten.as_strided.default", "unknown-operator", "list"),
        ("torch.os.system", "unknown-operator", "ATen"),
        ("torch.hub.load", "unknown-operator", "ATen"),
        ("builtins.exec", "unknown-operator", "ATen"),
        ("_operator.attrgetter", "unknown-operator", "ATen"),
        ("_operator.lshift", "unknown-operator", "ATen"),
        ("math.factorial", "unknown-operator", "ATen"),
        ("#namespace:operator", "unknown-operator", "ATen"),
        ("", "unknown-operator", "ATen"),
        ("torch.ops.aten.relu", "unknown-operator", "list"),
        ("torch.ops.torchvision.nms.default", "custom-operator", "torchvision"),
        ("torch.ops.higher_order.cond", "higher-order-operator", "control flow"),
        ("torch.ops.aten.rand.default", "random-operator", "random"),
        ("torch.ops.aten.bernoulli_.float", "random-operator", "random"),
        ("torch.ops.aten.nonzero.default", "value-dependent-shape", "values"),
        ("torch.ops.aten.item.default", "value-dependent-shape", "values"),
    ],
)
def test_unknown_operators(conv_file, tamper, refused, target, rule, words):
    def change(value):
        value["graph_module"]["graph"]["nodes"][0]["target"] = target

    path = tamper(conv_file, lambda entries: edit(entries, MODEL, change))
    refused(path, rule, repr(target), words, field="conv2d")


def test_compiled_code(conv_file, tamper, refused):
    for folder in ("aotinductor/model", "executorch", "mtia"):
        name = f"data/{folder}/model.so"
        path = tamper(conv_file, lambda entries, name=name: entries.update({name: b"\x7fELF"}))
        refused(path, "compiled-code", "compiled", field=name)


def test_names_for_import_are_never_looked_at(conv_file, tamper, refused):
    """Pytree specs and module stacks name classes; torch imports what they name."""

    def change(value):
        module = value["graph_module"]
        spec = json.dumps([1, {"type": "antigravity.X", "context": "[]", "children_spec": []}])
        module["module_call_graph"][0]["signature"].update(in_spec=spec, out_spec=spec)
        module["treespec_namedtuple_fields"] = {"this.X": {"field_names": ["a"]}}
        for node in module["graph"]["nodes"]:
            node["metadata"]["nn_module_stack"] = "a,b,antigravity.X"
            node["metadata"]["source_fn_stack"] = "a,antigravity.X"

    path = tamper(conv_file, lambda entries: edit(entries, MODEL, change))
    read_model(path)
    assert "antigravity" not in sys.modules
    assert "this" not in sys.modules


@pytest.mark.parametrize(
    "kind", ["as_graph", "as_operator", "as_custom_obj", "as_complex", "read", "__class__"]
)
def test_arguments_that_are_no_data(conv_file, tamper, refused, kind):
    def change(value):
        node = value["graph_module"]["graph"]["nodes"][0]
        node["inputs"][0]["arg"] = {kind: {"name": "x", "graph": {}, "class_fqn": "antigravity.X"}}

    refused(tamper(conv_file, lambda entries: edit(entries, MODEL, change)), "argument-kind", repr(kind))
