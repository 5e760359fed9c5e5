"""Graphs made by hand, as no exporter would write them: each refused by its rule."""

import json

import pytest
import torch
from torch import nn

from tests.workers.intake.graphs import BATCH, HUGE, LONG, RELU, SHAPED, node, sym, tensor
from workers.intake.pt2 import read_model

MISFITS = [
    # nodes, values, rule, field
    ([RELU], {"y": ((BATCH, 5),)}, "shape-mismatch", "y"),
    ([RELU], {"y": ((BATCH,),)}, "shape-mismatch", "y"),
    ([RELU], {"y": ((BATCH, 4), LONG)}, "shape-mismatch", "y"),
    ([RELU], {"y": ((f"Mul(Integer(2), {BATCH})", 4),)}, "shape-mismatch", "y"),
    ([RELU], {"y": ((2, 4),)}, "batch-size", "y"),
    ([RELU], {"y": ((f"FloorDiv(Integer(1), Add({BATCH}, Integer(-1)))", 4),)}, "symbolic-expression", "y"),
    ([RELU], {"y": ((f"Add({BATCH}, Integer(-5))", 4),)}, "shape-mismatch", "y"),
    ([RELU], {"y": (("Symbol('u0')", 4),)}, "value-dependent-shape", "y"),
    ([RELU], {}, "json-key", None),
    ([RELU, RELU], SHAPED, "duplicate-value", "y"),
    ([node("relu.default", {"self": "z"}, "y")], SHAPED, "unknown-value", None),
    ([node("relu.default", {"self": "y"}, "y")], SHAPED, "unknown-value", None),
    ([node("relu.default", {"self": "x", "other": "x"}, "y")], SHAPED, "invalid-arguments", "y"),
    ([node("relu.default", {}, "y")], SHAPED, "invalid-arguments", "y"),
    ([node("relu.default", {"self": 3}, "y")], SHAPED, "invalid-arguments", "y"),
    ([node("add.Tensor", {"self": "x", "other": [1, 2]}, "y")], SHAPED, "invalid-arguments", "y"),
    ([node("mm.default", {"self": "x", "mat2": "x"}, "y")], SHAPED, "invalid-arguments", "y"),
    ([node("view.default", {"self": "x", "size": [4]}, "y")], {"y": ((4,),)}, "invalid-arguments", "y"),
    ([node("view.default", {"self": "x", "size": [2, 4]}, "y")], {"y": ((2, 4),)}, "batch-size", "y"),
    ([node("slice.Tensor", {"self": "x", "dim": 9}, "y")], SHAPED, "invalid-arguments", "y"),
    ([node("gelu.default", {"self": "x", "approximate": {"as_string": "x" * 2000}}, "y")], SHAPED, "string-length", None),
    ([node("gelu.default", {"self": "x", "approximate": {"as_string": "wrong"}}, "y")], SHAPED, "invalid-arguments", "y"),
    ([node("clone.default", {"self": "x", "memory_format": {"as_memory_format": 9}}, "y")], SHAPED, "memory-format", None),
    ([node("relu_.default", {"self": 3}, "y")], SHAPED, "invalid-arguments", "y"),
    ([node("relu_.default", {}, "y")], SHAPED, "invalid-arguments", "y"),
    ([node("relu_.default", {"self": "w"}, "y")], {"y": ((4, 4),)}, "training-mode", "y"),
    ([node("relu.default", {"self": "x"}, "y", {"as_graph": {}})], SHAPED, "output-kind", "y"),
    ([node("relu.default", {"self": "x"}, "y", tensor("y"), tensor("z"))], {"y": ((BATCH, 4),), "z": ((4,),)}, "shape-mismatch", None),
    ([node("relu.default", {"self": "x"}, "y", sym("y"))], SHAPED, "no-output", None),
    ([node("dropout.default", {"input": "x", "p": 0.5, "train": True}, "y")], SHAPED, "training-mode", "y"),
    ([node("dropout_.default", {"self": "x", "p": 0.5, "train": True}, "y")], SHAPED, "training-mode", "y"),
    ([node("scaled_dot_product_attention.default", {"query": "x", "key": "x", "value": "x", "attn_mask": None, "dropout_p": 0.1}, "y")], SHAPED, "training-mode", "y"),
]  # fmt: skip


@pytest.mark.parametrize(("nodes", "values", "rule", "field"), MISFITS)
def test_graphs_that_do_not_fit(build, refused, nodes, values, rule, field):
    error = refused(build(nodes, values), rule)
    assert field is None or error.field == field


BATCHES = [
    # inputs, rule
    ({"x": (BATCH, 4), "z": (2, 4)}, "mixed-batch"),
    ({"x": (3, 4), "z": (2, 4)}, "mixed-batch"),
    ({"x": (BATCH, 4), "z": ("Symbol('s1')", 4)}, "mixed-batch"),
    ({"x": (BATCH, 4), "z": (4, BATCH)}, "mixed-batch"),
    ({"x": ()}, "batch-axis"),
    ({"x": (0, 4)}, "batch-axis"),
    ({"x": (f"Mul(Integer(2), {BATCH})", 4)}, "batch-axis"),
    ({"x": (BATCH, 1 << 50)}, "value-too-large"),
    ({"x": (BATCH, "Symbol('s1')", f"Add({BATCH}, Symbol('s2'))")}, "value-dependent-shape"),
    ({"x y": (BATCH, 4)}, "value-name"),
    ({"x" * 600: (BATCH, 4)}, "value-name"),
    ({}, "no-input"),
]


@pytest.mark.parametrize(("inputs", "rule"), BATCHES)
def test_batches(build, refused, inputs, rule):
    nodes = [node("relu.default", {"self": "w"}, "y")]
    refused(build(nodes, {"y": ((4, 4),)}, inputs=inputs), rule)


def test_a_model_for_two_samples_or_more(build, refused):
    """Works at the exported batch, not for one sample: a last, short batch would fail in the middle of a job."""
    nodes = [
        node("slice.Tensor", {"self": "x", "dim": 0, "start": 1, "end": {"as_int": HUGE}}, "s"),
        node("amax.default", {"self": "s", "dim": [0]}, "m"),
        node("mul.Tensor", {"self": "x", "other": "m"}, "y"),
    ]
    values = {"s": ((f"Add({BATCH}, Integer(-1))", 4),), "m": ((4,),)} | SHAPED
    error = refused(build(nodes, values), "batch-size")
    assert error.value == 1
    assert "Dim('batch', min=1)" in error.message


def test_the_signature_must_agree(build, base, tamper, refused):
    for key, change in {
        "inputs": lambda g: g["inputs"].reverse(),
        "missing": lambda g: g["inputs"].pop(),
        "twice": lambda g: g["inputs"].append(g["inputs"][-1]),
    }.items():

        def apply(entries, change=change):
            program = json.loads(entries["models/model.json"])
            change(program["graph_module"]["graph"])
            entries["models/model.json"] = json.dumps(program).encode()

        assert refused(tamper(base, apply), "signature"), key


OUTPUTS = [
    ({"buffer_mutation": {"arg": {"name": "y"}, "buffer_name": "mean"}}, "training-mode"),
    ({"parameter_mutation": {"arg": {"name": "y"}, "parameter_name": "weight"}}, "training-mode"),
    ({"user_input_mutation": {"arg": {"name": "y"}, "user_input_name": "x"}}, "input-mutation"),
    ({"loss_output": {"arg": {"name": "y"}}}, "output-kind"),
    ({"gradient_to_parameter": {"arg": {"name": "y"}, "parameter_name": "weight"}}, "output-kind"),
    ({"token": {"arg": {"name": "y"}}}, "output-kind"),
]


@pytest.mark.parametrize(("spec", "rule"), OUTPUTS)
def test_outputs(base, tamper, refused, spec, rule):
    def change(entries):
        program = json.loads(entries["models/model.json"])
        program["graph_module"]["signature"]["output_specs"].append(spec)
        entries["models/model.json"] = json.dumps(program).encode()

    refused(tamper(base, change), rule)


def test_another_schema(base, tamper, refused):
    def change(entries):
        program = json.loads(entries["models/model.json"])
        program["schema_version"]["major"] = 9
        entries["models/model.json"] = json.dumps(program).encode()

    assert refused(tamper(base, change), "schema-version").value == 9


class Training(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Dropout(0.5, inplace=True), nn.RReLU()], ids=lambda m: type(m).__name__
)  # fmt: skip
def test_exports_in_training_mode(export, refused, layer):
    module = Training(layer)
    error = refused(export(module, [torch.ones(3, 4)], evaluation=False), "training-mode")
    assert ".eval()" in error.message
    read_model(export(module, [torch.ones(3, 4)]))


class Control(nn.Module):
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda v: v * 2, lambda v: v + 1, (x,))


class Autocast(nn.Module):
    def __init__(self, *, enabled):
        super().__init__()
        self.enabled = enabled
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        with torch.autocast("cpu", enabled=self.enabled):
            return self.linear(x).float()


def test_regions(export, execute, refused):
    x = torch.randn(3, 4)
    refused(export(Control(), [x], static=True), "higher-order-operator")
    refused(export(Autocast(enabled=True), [x]), "automatic-casts")
    module = Autocast(enabled=False)
    assert torch.equal(execute(read_model(export(module, [x])), x)[0], module(x))
