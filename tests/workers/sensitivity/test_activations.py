"""Activations: what is observed, and what quantizing them does, against eager modules with hooks."""

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests.workers.sensitivity.conftest import SmallCnn, SmallLm, TwoTowers
from workers.contracts import Candidate, Observation, PlanRequest, Scheme
from workers.errors import MeasurementFailed, RequestRefused
from workers.quant import fake_quantize
from workers.sensitivity import session
from workers.sensitivity.activations import observe, quantized_operands
from workers.sensitivity.batches import Selection
from workers.sensitivity.engine import measure
from workers.sensitivity.exact import exact_costs, quantized
from workers.sensitivity.naive import naive_costs
from workers.sensitivity.prefixes import Prefixes
from workers.verify.plan import measure_plan

MINMAX = Scheme.parse("tensor-asymmetric")


def pair(bits, activation_bits, scheme="channel-asymmetric"):
    return Candidate(bits=bits, scheme=Scheme.parse(scheme), activation_bits=activation_bits)


def loaded_with(case, batch_size, **selection):
    loaded = session.load_model(case.model_path, "cpu")
    chosen = Selection(**({"samples": None, "seed": 0, "batch_size": batch_size} | selection))
    return loaded, session.load_batches(case.calibration_path, loaded, chosen)


def observed(case, batch_size, **selection):
    loaded, batches = loaded_with(case, batch_size, **selection)
    return loaded, observe(loaded.program, loaded.table, batches)


def hooked_inputs(module, inputs):
    """Inputs of each linear and convolution, one entry per call, by hooks."""
    seen = {}
    handles = [
        layer.register_forward_pre_hook(
            lambda _, given, name=name: seen.setdefault(name, []).append(given[0].detach().clone())
        )
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    with torch.no_grad():
        module(*inputs)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("kind", [SmallCnn, TwoTowers])
@pytest.mark.parametrize("fixed_batch", [None, 3])
def test_ranges_are_those_of_the_layers_inputs(make_case, kind, fixed_batch):
    """Fillers of a fixed batch of 3 (8 samples) do not count, and a module called twice has two ranges."""
    case = make_case(kind, fixed_batch=fixed_batch)
    loaded, ranges = observed(case, 3)
    seen = hooked_inputs(case.module, case.inputs)
    for unit in loaded.table.units:
        calls = seen[unit.info.name.removesuffix(".weight")]
        nodes = [node for use in unit.uses for node in use.inputs]
        assert len(nodes) == len(calls) == unit.info.activations
        for node, values in zip(nodes, calls, strict=True):
            quantizer = ranges.quantizer(node.name, 8, MINMAX)
            assert quantizer.range_min == pytest.approx(float(values.min()), rel=1e-5, abs=1e-6)
            assert quantizer.range_max == pytest.approx(float(values.max()), rel=1e-5, abs=1e-6)
            middle = ranges.quantizer(node.name, 8, Scheme.parse("tensor-asymmetric-percentile:20"))
            expected = np.percentile(values.double().numpy(), [20, 80])
            near = float(values.abs().max()) / 500  # a bin, and rounding
            assert middle.range_min == pytest.approx(expected[0], abs=near)
            assert middle.range_max == pytest.approx(expected[1], abs=near)


@pytest.mark.parametrize("kind", [SmallCnn, SmallLm, TwoTowers])
@pytest.mark.parametrize("method", ["minmax", "percentile:1", "mse", "kl"])
def test_ranges_do_not_depend_on_the_batches(make_case, kind, method):
    case = make_case(kind)
    scheme = Scheme.parse(f"tensor-asymmetric-{method}")
    found = [observed(case, size)[1] for size in (1, 3, 8)]
    # Kernels may round differently for other batches: by a last bit, which can move a value to the next bin.
    for name, other in itertools.product(found[0].tensors, found[1:]):
        for bits in (3, 8):
            first, second = (ranges.quantizer(name, bits, scheme) for ranges in (found[0], other))
            width = first.range_max - first.range_min
            assert second.range_min == pytest.approx(first.range_min, abs=width / 1000)
            assert second.range_max == pytest.approx(first.range_max, abs=width / 1000)


def test_parts_merge_to_the_whole(make_case):
    case = make_case()
    _, whole = observed(case, 2)
    _, first = observed(case, 2, indices=tuple(range(4)))
    _, second = observed(case, 2, indices=tuple(range(4, 8)))
    for name in whole.tensors:
        first.quantizer(name, 4)  # must not be remembered
    first.merge(second)
    for name in whole.tensors:
        assert first.quantizer(name, 4) == whole.quantizer(name, 4)


def test_masked_positions_do_not_count(make_case):
    """Of an encoder with padded tokens: what stands there changes no range."""
    case = make_case(SmallLm)
    loaded, batches = loaded_with(case, 3)
    mask = torch.arange(5) < torch.tensor([5, 3, 1, 4, 5, 2, 3, 1])[:, None]
    masked = observe(loaded.program, loaded.table, batches, mask=mask)
    everything = observe(loaded.program, loaded.table, batches)
    head = next(node for use in loaded.table.units[0].uses for node in use.inputs)
    with torch.no_grad():
        hidden = case.module.block(case.module.embed(case.inputs[0]))
    low, high = float(hidden[mask].min()), float(hidden[mask].max())
    quantizer = masked.quantizer(head.name, 8, MINMAX)
    assert (quantizer.range_min, quantizer.range_max) == pytest.approx((low, high), rel=1e-5)
    middle = Scheme.parse("tensor-asymmetric-percentile:10")
    same = {n for n in masked.tensors if masked.quantizer(n, 8, middle) == everything.quantizer(n, 8, middle)}
    # PyTorch's attention puts positions before samples, and merges them later: there everything counts.
    elsewhere = {
        node.name
        for unit in ("block.self_attn.in_proj_weight", "block.self_attn.out_proj.weight")
        for use in loaded.table.unit(unit).uses
        for node in use.inputs
    }
    assert same == elsewhere


def fake_quantized(module, choices, ranges):
    """The eager module with its weights replaced and its layers' inputs quantized by PyTorch's own kernel.

    Args:
        choices: Layer name -> candidate.
        ranges: Layer name -> (low, high) of its input.
    """
    module = copy.deepcopy(module)
    layers = dict(module.named_modules())
    for name, candidate in choices.items():
        layer = layers[name]
        with torch.no_grad():
            layer.weight.copy_(
                fake_quantize(
                    layer.weight.detach(), candidate, output_channel_axis=0, group_axis=1, name=name
                )
            )
        if candidate.activation_bits is None:
            continue
        top = 2**candidate.activation_bits - 1
        low, high = min(ranges[name][0], 0.0), max(ranges[name][1], 0.0)
        scale = (high - low) / top
        arguments = scale, round(-low / scale), 0, top
        layer.register_forward_pre_hook(
            lambda _, given, arguments=arguments: torch.fake_quantize_per_tensor_affine(given[0], *arguments)
        )
    return module


PLANS = {
    "W8A8": dict.fromkeys(("stem", "deep", "point", "head"), pair(8, 8)),
    "W4A4": dict.fromkeys(("stem", "deep", "point", "head"), pair(4, 4)),
    "mixed": {"stem": pair(3, 8), "deep": pair(4, None), "point": pair(16, 3), "head": pair(2, 5)},
    "one": {"point": pair(5, 4)},
}


@pytest.mark.parametrize("plan", PLANS)
def test_against_eager_modules_with_hooks(make_case, plan):
    case = make_case()
    loaded, ranges = observed(case, 8)
    choices = {f"{name}.weight": candidate for name, candidate in PLANS[plan].items()}
    override = quantized(loaded.program, loaded.table, list(choices.items()), ranges)
    got = loaded.program.run(case.inputs, override)[0]
    ends = {}
    for name, candidate in PLANS[plan].items():
        if candidate.activation_bits is not None:
            (node,) = (n for use in loaded.table.unit(f"{name}.weight").uses for n in use.inputs)
            quantizer = ranges.quantizer(node.name, candidate.activation_bits)
            ends[name] = quantizer.range_min, quantizer.range_max
    with torch.no_grad():
        expected = fake_quantized(case.module, PLANS[plan], ends)(*case.inputs)
        changed = (expected - case.module(*case.inputs)).abs().max()
    # A value next to a tie may be rounded the other way by the kernel, hence no bound on single outputs.
    assert (got - expected).abs().mean() < 0.02 * changed
    assert (got - expected).abs().median() < 1e-5
    if plan != "W8A8":
        assert changed > 1e-3


@pytest.mark.parametrize("kind", [SmallCnn, SmallLm, TwoTowers])
@pytest.mark.parametrize("fixed_batch", [None, 3])
def test_prefixes_equal_the_plain_loop(make_case, kind, fixed_batch):
    case = make_case(kind, fixed_batch=fixed_batch)
    wanted = tuple((unit, pair(bits, a)) for unit in case.units for bits, a in ((3, 4), (16, 2), (3, None)))
    request = case.request(wanted=wanted)
    setup = session.prepare(request)
    prefixes = Prefixes(setup.program, setup.batches, memory_bytes=1 << 30)
    ours = [found.costs for found in exact_costs(setup, wanted, prefixes)]
    plain = list(naive_costs(setup, wanted))
    for one, other in zip(ours, plain, strict=True):
        assert torch.equal(one, other)
    by_activation = [costs.mean() for costs in ours]
    # Two bits for the activations alone hurt, and four beside the weight's three hurt more than those alone.
    assert all(cost > 1e-7 for cost in by_activation[1::3])
    assert sum(by_activation[0::3]) != sum(by_activation[2::3])


def test_measuring_and_plans_take_the_named_samples(make_case):
    """A part of the samples, measured with ranges from all of them, is quantized like all of them."""
    case = make_case()
    wanted = tuple((unit, pair(4, 4)) for unit in case.units)
    whole = {entry.unit: entry.mean for entry in measure(case.request(wanted=wanted, batch_size=4))}
    everything = Observation(path=case.calibration_path)
    parts = [
        {
            entry.unit: entry.mean
            for entry in measure(
                case.request(wanted=wanted, indices=part, observation=everything, batch_size=4)
            )
        }
        for part in (tuple(range(4)), tuple(range(4, 8)))
    ]
    for unit, mean in whole.items():
        assert (parts[0][unit] + parts[1][unit]) / 2 == pytest.approx(mean, rel=1e-6)
    plan = PlanRequest(
        model_path=case.model_path,
        data_path=case.calibration_path,
        choices={"point.weight": pair(4, 4)},
        batch_size=4,
        observation=everything,
    )
    assert measure_plan(plan)["kl"].mean == pytest.approx(whole["point.weight"], rel=1e-6)
    other = replace(plan, observation=Observation(path=case.calibration_path, indices=(0,)))
    assert measure_plan(other)["kl"].mean != pytest.approx(whole["point.weight"], rel=1e-3)


def test_observed_once(make_case, monkeypatch):
    case = make_case()
    passes = []
    monkeypatch.setattr(session, "observe", lambda *given: passes.append(given) or observe(*given))
    for bits in (3, 4, 8):
        list(measure(case.request(wanted=tuple((unit, pair(4, bits)) for unit in case.units))))
    list(measure(case.request(wanted=case.wanted(4))))
    assert len(passes) == 1
    session.forget()
    list(measure(case.request(wanted=case.wanted(4))))
    assert len(passes) == 1, "float activations need no pass"


class Looked(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(20, 8), nn.Linear(8, 20)

    def forward(self, a, b):
        return self.out(self.embed(a.abs().long()) + self.embed(b.abs().long()))


def test_bad_requests(make_case):
    case = make_case(Looked)
    with pytest.raises(RequestRefused, match=r"'embed.weight' \(embedding\) reads no floating-point input"):
        list(measure(case.request(wanted=(("embed.weight", pair(4, 8)),))))
    plan = PlanRequest(
        model_path=case.model_path, data_path=case.calibration_path, choices={"out.weight": pair(4, 8)}
    )
    with pytest.raises(RequestRefused, match="no samples are named"):
        measure_plan(plan)
    loaded, ranges = observed(case, 4)
    with pytest.raises(RequestRefused, match="'other' is no input of a unit"):
        ranges.quantizer("other", 8)
    with pytest.raises(RequestRefused, match="no unit 'other'"):
        quantized_operands(loaded.table, [("other", pair(4, 8))], ranges)


class Overflowing(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, a, b):
        return self.out(self.first(a).exp() / (b * 0)).nan_to_num()


def test_activations_that_are_not_finite(make_case):
    case = make_case(Overflowing)
    with pytest.raises(MeasurementFailed, match=r"input of out\.weight.*NaN or infinite"):
        list(measure(case.request(wanted=(("out.weight", pair(4, 8)),))))


class TwoWeights(nn.Module):
    """One operator takes two weights and one input."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(6, 3)), nn.Parameter(torch.randn(6, 4))

    def forward(self, a, b):
        return torch.einsum("bd,dr,de->bre", a + b, self.a, self.b)


@pytest.mark.parametrize("widths", [(4, 8), (8, 4), (4, None)])
def test_the_lower_width_holds_where_weights_share_an_input(make_case, widths):
    case = make_case(TwoWeights)
    loaded, ranges = observed(case, 4)
    choices = [(name, pair(8, width)) for name, width in zip(("a", "b"), widths, strict=True)]
    operands = quantized_operands(loaded.table, choices, ranges)
    ((quantizer,),) = (here.values() for here in operands.values())
    assert quantizer.codes.levels == 16
