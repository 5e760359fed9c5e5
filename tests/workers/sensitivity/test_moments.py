"""Input moments against sums written down naively, from inputs caught by hooks on the modules."""

import io
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from workers.contracts import Candidate, Observation, PlanRequest, Scheme
from workers.errors import MeasurementFailed, RequestRefused
from workers.graph.program import Program
from workers.graph.units import find_units
from workers.intake.pt2 import read_model
from workers.sensitivity import session
from workers.sensitivity.batches import Batches, Selection
from workers.sensitivity.engine import measure
from workers.sensitivity.moments import collect_moments
from workers.sensitivity.naive import naive_costs
from workers.verify.plan import measure_plan


def prepared(module, inputs, tmp_path, *, batch_size=3, fixed=None):
    batch = torch.export.Dim("batch", min=1, max=1024)
    example = tuple(x[: fixed or 2] for x in inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(
            module.eval(), example, dynamic_shapes=None if fixed else tuple({0: batch} for _ in inputs)
        )
        file = io.BytesIO()
        torch.export.save(exported, file)
    (tmp_path / "m.pt2").write_bytes(file.getvalue())
    model = read_model(tmp_path / "m.pt2")
    batches = Batches.of(
        inputs,
        None,
        Selection(samples=None, seed=0, batch_size=batch_size),
        fixed_batch=model.batch_size,
    )
    return Program(model), find_units(model), batches


def caught(module, inputs):
    """Inputs of each layer with a weight, over all samples."""
    seen = {}
    handles = [
        layer.register_forward_pre_hook(
            lambda _, given, name=name: seen.setdefault(name, []).append(given[0])
        )
        for name, layer in module.named_modules()
        if isinstance(getattr(layer, "weight", None), nn.Parameter)
    ]
    with torch.no_grad():
        module(*inputs)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(values) for name, values in seen.items()}


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 4, 3, groups=2, dilation=2, padding=2)
        self.point = nn.Conv2d(4, 6, 1, stride=2)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.head = nn.Linear(4, 5)

    def forward(self, image):
        x = torch.relu(self.stem(image))
        x = torch.relu(self.grouped(torch.relu(self.deep(x))))
        x = torch.relu(self.up(torch.relu(self.point(x))))
        return self.head(x.mean((2, 3)))


def patches(layer, x):
    """Every input that meets each weight of a convolution: loops over groups, channels and kernel."""
    k, stride = layer.kernel_size, layer.stride
    padding, dilation = layer.padding, layer.dilation
    padded = nn.functional.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    high, wide = layer(x).shape[2:]
    result = torch.zeros(*layer.weight.shape, len(x) * high * wide)
    per_group = layer.out_channels // layer.groups
    for o in range(layer.out_channels):
        for c in range(layer.weight.shape[1]):
            source = padded[:, (o // per_group) * layer.weight.shape[1] + c]
            for i in range(k[0]):
                for j in range(k[1]):
                    rows = source[:, i * dilation[0] :: stride[0]][:, :high]
                    result[o, c, i, j] = rows[:, :, j * dilation[1] :: stride[1]][:, :, :wide].reshape(-1)
    return result


@pytest.mark.parametrize("fixed", [None, 4])
def test_convolutions_see_what_their_kernels_slide_over(fixed, tmp_path):
    torch.manual_seed(0)
    module, image = Layers(), torch.randn(7, 3, 12, 12)
    program, table, batches = prepared(module, (image,), tmp_path, fixed=fixed)
    found = collect_moments(program, table, batches)
    inputs = caught(module, (image,))
    assert set(found) == {f"{name}.weight" for name in ("stem", "deep", "grouped", "point", "up", "head")}
    for name in ("stem", "deep", "grouped", "point"):
        expected = patches(getattr(module, name), inputs[name]).double()
        ours = found[f"{name}.weight"]
        shape = expected.shape[:-1]
        torch.testing.assert_close(ours.second.expand(shape), expected.square().mean(-1).float())
        torch.testing.assert_close(ours.mean.expand(shape), expected.mean(-1).float(), atol=1e-6, rtol=1e-4)
        assert ours.count == expected.shape[-1]
    assert found["stem.weight"].second.shape == (1, 3, 3, 3)
    assert found["deep.weight"].second.shape == (8, 1, 3, 3)
    # Stride and kernel are 2: every input meets every weight of its channel once.
    squares = inputs["up"].square().mean((0, 2, 3))[:, None, None, None]
    torch.testing.assert_close(found["up.weight"].second, squares)
    torch.testing.assert_close(found["head.weight"].second, inputs["head"].square().mean(0)[None])


def test_matrices_are_those_of_the_vectors(tmp_path):
    torch.manual_seed(0)
    module, image = Layers(), torch.randn(7, 3, 12, 12)
    program, table, batches = prepared(module, (image,), tmp_path)
    names = ["point.weight", "head.weight"]
    found = collect_moments(program, table, batches, matrices=[*names, "stem.weight"])
    inputs = caught(module, (image,))
    rows = inputs["point"][:, :, ::2, ::2].movedim(1, -1).reshape(-1, 4).double()
    torch.testing.assert_close(found["point.weight"].matrix, rows.T @ rows / len(rows), rtol=1e-5, atol=1e-7)
    rows = inputs["head"].double()
    torch.testing.assert_close(found["head.weight"].matrix, rows.T @ rows / 7, rtol=1e-5, atol=1e-7)
    assert found["stem.weight"].matrix is None
    # A bound that lets one matrix in at a time: further passes, the same numbers.
    tight = collect_moments(program, table, batches, matrices=names, memory_bytes=1)
    assert set(tight) == set(found)
    for name in names:
        assert torch.equal(tight[name].matrix, found[name].matrix)


def test_the_batches_do_not_matter(tmp_path):
    torch.manual_seed(0)
    module, image = Layers(), torch.randn(7, 3, 12, 12)
    program, table, batches = prepared(module, (image,), tmp_path, batch_size=7)
    whole = collect_moments(program, table, batches, matrices=["head.weight"])
    single = Batches.of((image,), None, Selection(samples=None, seed=0, batch_size=1), fixed_batch=None)
    pieces = collect_moments(program, table, single, matrices=["head.weight"])
    for name, moments in whole.items():
        torch.testing.assert_close(pieces[name].second, moments.second)
        assert pieces[name].count == moments.count
    torch.testing.assert_close(pieces["head.weight"].matrix, whole["head.weight"].matrix)


class Language(nn.Module):
    """An embedding, products written out, a fused and sliced projection, a tied head."""

    def __init__(self, *, tied):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.turned = nn.Parameter(torch.randn(8, 6))
        self.fused = nn.Parameter(torch.randn(12, 6))
        self.back = nn.Linear(6, 8)
        self.head = nn.Linear(8, 20, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = torch.tanh(self.embed(tokens) @ self.turned)
        left = nn.functional.linear(x, self.fused[:6])
        right = x.relu() @ self.fused[6:].T
        return self.head(self.back(left * right))

    def values(self, tokens):
        embedded = self.embed(tokens)
        x = torch.tanh(embedded @ self.turned)
        product = nn.functional.linear(x, self.fused[:6]) * (x.relu() @ self.fused[6:].T)
        return embedded, x, product, self.back(product)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_tokens_products_and_views(tied, masked, tmp_path):
    torch.manual_seed(0)
    module, tokens = Language(tied=tied), torch.randint(0, 20, (7, 5))
    mask = torch.rand(7, 5) < 0.6 if masked else torch.ones(7, 5, dtype=torch.bool)
    program, table, batches = prepared(module, (tokens,), tmp_path)
    names = [unit.info.name for unit in table.units]
    found = collect_moments(program, table, batches, matrices=names, mask=mask if masked else None)
    with torch.no_grad():
        embedded, x, product, last = (value[mask] for value in module.values(tokens))
    close = {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(found["turned"].second, embedded.square().mean(0)[:, None], **close)
    torch.testing.assert_close(found["turned"].matrix.float(), embedded.T @ embedded / len(embedded), **close)
    torch.testing.assert_close(found["back.weight"].second, product.square().mean(0)[None], **close)
    # Two halves with inputs of their own: each weight has its own; the count is that of both.
    halves = torch.stack([x.square().sum(0), x.relu().square().sum(0)]) / (2 * len(x))
    torch.testing.assert_close(found["fused"].second, halves.repeat_interleave(6, 0), **close)
    head = last.square().mean(0)[None]
    if tied:
        torch.testing.assert_close(found["embed.weight"].second, head, **close)
        assert found["embed.weight"].count == int(mask.sum())
        torch.testing.assert_close(found["embed.weight"].matrix.float(), last.T @ last / len(last), **close)
    else:
        shares = torch.bincount(tokens[mask], minlength=20) / mask.sum()
        torch.testing.assert_close(found["embed.weight"].second, shares[:, None], **close)
        assert found["embed.weight"].matrix is None
        torch.testing.assert_close(found["head.weight"].second, head, **close)


def test_only_what_is_asked_for_is_collected(tmp_path):
    module, image = Layers(), torch.randn(4, 3, 12, 12)
    program, table, batches = prepared(module, (image,), tmp_path)
    assert set(collect_moments(program, table, batches, units=["deep.weight"])) == {"deep.weight"}
    with pytest.raises(RequestRefused, match="'nothing'"):
        collect_moments(program, table, batches, units=["nothing"])


def test_inputs_that_are_not_finite_name_the_unit(tmp_path):
    module, image = Layers(), torch.randn(4, 3, 12, 12)
    program, table, batches = prepared(module, (image,), tmp_path)
    image[1, 0, 0, 0] = torch.nan
    with pytest.raises(MeasurementFailed, match=r"stem\.weight"):
        collect_moments(program, table, batches)


def test_schemes_that_need_inputs_are_measured_with_those_of_the_calibration_data(make_case):
    case = make_case(samples=6)
    wanted = tuple(
        (unit, Candidate(bits=3, scheme=Scheme.parse(f"channel-symmetric-{method}")))
        for unit, method in (
            ("stem.weight", "weighted-mse"),
            ("point.weight", "gptq"),
            ("head.weight", "weighted-mse-gptq"),
            ("head.weight", "mse"),
        )
    )
    request = case.request(wanted=wanted)
    entries = list(measure(request))
    setup = session.prepare(request)
    assert set(setup.moments) == set(case.units)
    assert setup.moments["point.weight"].matrix is not None
    for entry, costs in zip(entries, naive_costs(setup, wanted), strict=True):
        assert entry.mean == pytest.approx(float(costs.mean()), rel=1e-12)
        assert entry.mean > 0
    plain = next(measure(case.request(wanted=wanted[3:])))
    assert plain.mean == entries[3].mean
    plan = PlanRequest(
        model_path=case.model_path,
        data_path=case.calibration_path,
        choices=dict(wanted[1:2]),
        observation=Observation(path=case.calibration_path),
        batch_size=3,
    )
    assert measure_plan(plan)["kl"].mean == pytest.approx(entries[1].mean, rel=1e-6)
    with pytest.raises(RequestRefused, match="second moments"):
        measure_plan(replace(plan, observation=None))
    with pytest.raises(RequestRefused, match=r"stem\.weight"):
        list(measure(case.request(wanted=(("stem.weight", wanted[1][1]),))))
