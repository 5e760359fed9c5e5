"""Exported models for the reader's tests."""

import json
import shutil
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx.node import map_arg

from tests.workers.intake.graphs import BATCH, meta, tensor
from workers.errors import ModelRefused
from workers.graph.model import GraphModel
from workers.intake.limits import Limits
from workers.intake.pt2 import read_model

torch.set_num_threads(1)

Execute = Callable[..., tuple[torch.Tensor, ...]]
Export = Callable[..., Path]


@pytest.fixture(scope="session")
def execute() -> Execute:
    """Run a read model node by node on the given inputs."""

    def run(model: GraphModel, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = iter(inputs)
        values: dict[torch.fx.Node, Any] = {}
        for node in model.graph.nodes:
            if node.op == "placeholder":
                values[node] = model.tensors[node.name] if node.name in model.tensors else next(given)
            elif node.op == "output":
                return tuple(map_arg(node.args[0], values.__getitem__))
            else:
                args = map_arg(node.args, values.__getitem__)
                values[node] = node.target(*args, **map_arg(node.kwargs, values.__getitem__))
        raise AssertionError("a graph without output")

    return run


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Export a module to a new ``.pt2`` file; axis 0 of every input is any number of samples unless ``static``."""

    def write(
        module: torch.nn.Module,
        inputs: Sequence[torch.Tensor],
        *,
        static: bool = False,
        dynamic_shapes: Any = None,
        evaluation: bool = True,
        **options: Any,
    ) -> Path:
        if dynamic_shapes is None and not static:
            batch = torch.export.Dim("batch", min=1)
            dynamic_shapes = tuple({0: batch} for _ in inputs)
        module.train(not evaluation)
        path = tmp_path_factory.mktemp("model") / "model.pt2"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's, not ours
            program = torch.export.export(module, tuple(inputs), dynamic_shapes=dynamic_shapes)
            torch.export.save(program, path, **options)
        return path

    return write


Entries = dict[str, bytes]
Tamper = Callable[[Path, Callable[[Entries], None]], Path]


@pytest.fixture
def tamper(tmp_path: Path) -> Tamper:
    """Copy an archive, entry by entry, after a change to its contents (names are without the root folder)."""

    def copy(source: Path, change: Callable[[Entries], None]) -> Path:
        with zipfile.ZipFile(source) as archive:
            root = archive.namelist()[0].partition("/")[0]
            entries = {name.removeprefix(root + "/"): archive.read(name) for name in archive.namelist()}
        change(entries)
        target = tmp_path / "tampered.pt2"
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            for name, data in entries.items():
                archive.writestr(f"{root}/{name}", data)
        return target

    return copy


class SmallConv(nn.Module):
    """Convolution, normalization, a write in place, a constant, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)
        self.scale = torch.tensor([1.0, 2.0, 3.0])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu_(self.norm(self.conv(image)))
        x = nn.functional.dropout(x.mean((2, 3)), 0.5, self.training)
        return self.head(x) * self.scale


class SmallTransformer(nn.Module):
    """Attention, layer norm, tied embedding, a region without gradients, symbolic length, several results of a split."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.register_buffer("bias", torch.full((32, 32), float("-inf")).triu(1))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        length = ids.shape[1]
        x = self.embedding(ids)
        with torch.no_grad():
            position = torch.arange(length)[:, None] / 10.0
        q, k, v = (
            self.qkv(self.norm(x + position.sin())).view(-1, length, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=self.bias[:length, :length])
        return (x + y.transpose(1, 2).reshape(-1, length, 8)) @ self.embedding.weight.t()


@pytest.fixture(scope="session")
def conv_file(export: Export) -> Path:
    """A small convolutional network with any batch; it must not be changed."""
    torch.manual_seed(0)
    return export(SmallConv(), [torch.randn(2, 2, 5, 5)])


@pytest.fixture(scope="session")
def transformer_file(export: Export) -> Path:
    """A small transformer with any batch and any length; it must not be changed."""
    torch.manual_seed(0)
    shapes = ({0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("length", min=2, max=31)},)
    return export(SmallTransformer(), [torch.randint(20, (2, 6))], dynamic_shapes=shapes)


@pytest.fixture(scope="session")
def base(export):
    """``x @ weight`` for x [batch, 4]; also makes torch load what it loads on first use."""
    path = export(nn.Linear(4, 4), [torch.ones(2, 4)])
    read_model(path)
    return path


@pytest.fixture
def build(base, tamper):
    """A file with the given nodes after the input ``x`` [batch, 4] and the weight ``w`` [4, 4]; ``y`` is the result."""

    def write(nodes, values=None, *, inputs=MappingProxyType({"x": (BATCH, 4)}), result="y"):
        def change(entries):
            program = json.loads(entries["models/model.json"])
            module = program["graph_module"]
            weight = next(s for s in module["signature"]["input_specs"] if "weight" in json.dumps(s))
            weight["parameter"]["arg"]["name"] = "w"
            given = [{"user_input": {"arg": tensor(name)}} for name in inputs]
            module["signature"]["input_specs"] = [weight, *given]
            module["signature"]["output_specs"] = [{"user_output": {"arg": tensor(result)}}]
            graph = module["graph"]
            described = {"w": meta((4, 4)), **{k: meta(v) for k, v in inputs.items()}}
            graph.update(
                inputs=[tensor(name) for name in described],
                outputs=[tensor(result)],
                nodes=nodes,
                tensor_values={**described, **{k: meta(*v) for k, v in (values or {}).items()}},
                sym_int_values={},
            )
            entries["models/model.json"] = json.dumps(program).encode()

        return tamper(base, change)

    return write


@pytest.fixture
def refused():
    """Read a file that must be refused by a rule, within little memory; the refusal."""

    def check(path, rule, limits=None):
        tracemalloc.start()
        with pytest.raises(ModelRefused) as caught:
            read_model(path, limits or Limits())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert caught.value.extra["rule"] == rule, caught.value
        json.dumps([caught.value.field, caught.value.value, caught.value.allowed], allow_nan=False)
        assert peak < 8 << 20
        return caught.value

    return check


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A small BERT as a Hugging Face folder."""
    from .families import save  # brings transformers

    folder = tmp_path_factory.mktemp("bert")
    save("BertModel", folder)
    return folder


@pytest.fixture
def copy(bert, tmp_path):
    """A copy of that folder, free to be changed."""
    return Path(shutil.copytree(bert, tmp_path / "bert"))
