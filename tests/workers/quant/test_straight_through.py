import copy

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from workers.contracts import Candidate, Scheme
from workers.errors import RequestRefused
from workers.quant import (
    LearnedQuantizer,
    apply,
    fake_quantize,
    fake_quantize_straight_through,
    quantization_parameters,
)

AXES = {"output_channel_axis": 0, "group_axis": 1, "name": "w"}
SCHEMES = [
    "tensor-symmetric",
    "tensor-asymmetric-mse",
    "channel-symmetric-percentile:20",
    "channel-asymmetric-percentile:20",
    "channel-symmetric-percentile:20-full",
    "group:4-asymmetric-percentile:20",
    "group:4-symmetric-mse",
]


def parameters_of(weight, text, bits=3):
    return quantization_parameters(weight, Candidate(bits=bits, scheme=Scheme.parse(text)), **AXES)


def spread(values, layout, weight):
    """One value per slice, at each weight of the slice."""
    parts = zip(layout.split(values), layout.blocks(weight), strict=True)
    return layout.restore([part[:, None].expand_as(block) for part, block in parts])


# --- constant scales ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_is_one_inside_and_zero_outside(text, dtype, generator, device):
    weight = torch.randn(5, 10, generator=generator).to(device, dtype).requires_grad_()
    parameters = parameters_of(weight.detach(), text)
    incoming = torch.randn(5, 10, generator=generator).to(device, dtype)

    result = fake_quantize_straight_through(weight, parameters)
    result.backward(incoming)
    assert torch.equal(result.detach(), apply(weight.detach(), parameters))
    low = spread(parameters.range_min, parameters.layout, weight)
    high = spread(parameters.range_max, parameters.layout, weight)
    inside = (weight.detach() >= low) & (weight.detach() <= high)
    assert torch.equal(weight.grad, torch.where(inside, incoming, torch.zeros_like(incoming)))
    if "percentile" in text:
        assert 0.1 < inside.float().mean() < 1


@pytest.mark.parametrize("text", ["channel-symmetric", "channel-asymmetric", "group:4-symmetric-full"])
def test_minmax_ranges_let_every_gradient_through(text, generator):
    # Also at both ends, which rounding puts a hair beyond the outermost levels.
    weight = torch.randn(40, 10, generator=generator).requires_grad_()
    fake_quantize_straight_through(weight, parameters_of(weight.detach(), text)).sum().backward()
    assert bool((weight.grad == 1).all())


def test_asymmetric_ranges_reach_to_zero():
    parameters = parameters_of(torch.tensor([[2.0, 3.0]]), "tensor-asymmetric")
    assert (parameters.range_min.item(), parameters.range_max.item()) == (0, 3)
    # In training a weight may come to lie between 0 and the smallest one at the start.
    weight = torch.tensor([[0.5, -0.5]], requires_grad=True)
    fake_quantize_straight_through(weight, parameters).sum().backward()
    assert weight.grad.tolist() == [[1.0, 0.0]]


def test_symmetric_ranges_reach_as_far_to_the_other_side():
    parameters = parameters_of(torch.tensor([[-0.25, 1.0]]), "tensor-symmetric")
    assert (parameters.range_min.item(), parameters.range_max.item()) == pytest.approx((-1, 1))
    full = parameters_of(torch.tensor([[-1.0, 0.25]]), "tensor-symmetric-full", bits=3)
    assert (full.range_min.item(), full.range_max.item()) == pytest.approx((-1, 0.75))


def test_gradient_stops_at_the_range_not_half_a_step_later():
    start = torch.tensor([[-1.0, 1.0]])
    parameters = parameters_of(start, "tensor-symmetric", bits=3)
    beyond = torch.tensor([[-1.1, 1.1]], requires_grad=True)
    fake_quantize_straight_through(beyond, parameters).sum().backward()
    assert beyond.grad.tolist() == [[0.0, 0.0]]
    # Where torch's fused operator still passes it on.
    fused = beyond.detach().clone().requires_grad_()
    torch.fake_quantize_per_tensor_affine(
        fused, parameters.scale[0], parameters.zero_point[0], -3, 3
    ).sum().backward()
    assert fused.grad.tolist() == [[1.0, 1.0]]


def test_gradient_equals_torchs_away_from_the_ends(generator):
    weight = torch.randn(6, 50, generator=generator)
    parameters = parameters_of(weight, "channel-asymmetric-percentile:20", bits=4)
    codes, scale = parameters.codes, parameters.scale[:, None]
    low = scale * (codes.quant_min - parameters.zero_point[:, None])
    high = scale * (codes.quant_max - parameters.zero_point[:, None])
    clear = torch.minimum((weight - low).abs(), (weight - high).abs()) > scale
    ours, theirs = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    fake_quantize_straight_through(ours, parameters).sum().backward()
    torch.fake_quantize_per_channel_affine(
        theirs, parameters.scale, parameters.zero_point, 0, codes.quant_min, codes.quant_max
    ).sum().backward()
    assert clear.float().mean() > 0.5
    assert torch.equal(ours.grad[clear], theirs.grad[clear])


# --- learned scales -------------------------------------------------------------------------------------------------


def formula(weight, scale, zero_point, codes, incoming):
    """Esser et al. equations 1 to 3 and the zero point's, weight by weight in Python floats."""
    by_weight, by_scale, by_zero = [], 0.0, 0.0
    for r, g in zip(weight.tolist(), incoming.tolist(), strict=True):
        v, low, high = r / scale, codes.quant_min - zero_point, codes.quant_max - zero_point
        if low <= v <= high:
            by_weight.append(g)
            by_scale += g * (round(v) - v)
        else:
            by_weight.append(0.0)
            by_scale += g * (low if v < low else high)
            by_zero += g * -scale
    return by_weight, by_scale, by_zero


@pytest.mark.parametrize("text", SCHEMES)
@pytest.mark.parametrize("scale_gradients", [True, False])
def test_learned_gradients_follow_the_formula(text, scale_gradients, generator):
    weight = torch.randn(5, 10, generator=generator, dtype=torch.float64)
    parameters = parameters_of(weight, text)
    codes, layout = parameters.codes, parameters.layout
    quantizer = LearnedQuantizer(
        parameters, learn_zero_point=not codes.symmetric, scale_gradients=scale_gradients
    )
    incoming = torch.randn(5, 10, generator=generator, dtype=torch.float64)
    weight.requires_grad_()
    result = quantizer(weight)
    result.backward(incoming)
    assert torch.equal(result.detach(), apply(weight.detach(), parameters))

    numbers = spread(torch.arange(layout.slices), layout, weight)
    for number in range(layout.slices):
        mine = numbers == number
        by_weight, by_scale, by_zero = formula(
            weight.detach()[mine],
            parameters.scale[number].item(),
            parameters.zero_point[number].item(),
            codes,
            incoming[mine],
        )
        factor = (int(mine.sum()) * codes.quant_max) ** -0.5 if scale_gradients else 1
        assert weight.grad[mine].tolist() == by_weight
        assert quantizer.scale.grad[number].item() == pytest.approx(by_scale * factor, rel=1e-9)
        if not codes.symmetric:
            assert quantizer.zero_point.grad[number].item() == pytest.approx(by_zero * factor, rel=1e-9)


def test_learned_gradients_equal_torchs_operator(generator):
    # torch's private operator counts a value within half a step of the range as inside: keep away from there.
    weight = torch.randn(4, 200, generator=generator)
    parameters = parameters_of(weight, "channel-asymmetric-percentile:10", bits=4)
    codes, zero_point = parameters.codes, parameters.zero_point[:, None]
    steps = weight / parameters.scale[:, None]
    gap = torch.minimum(
        (steps - (codes.quant_min - zero_point)).abs(), (steps - (codes.quant_max - zero_point)).abs()
    )
    weight = torch.where(gap < 0.6, 0.0, weight)
    quantizer = LearnedQuantizer(parameters, learn_zero_point=True, scale_gradients=False)
    ours = weight.clone().requires_grad_()
    quantizer(ours).square().sum().backward()

    theirs = weight.clone().requires_grad_()
    scale = parameters.scale.clone().requires_grad_()
    zero = parameters.zero_point.float().requires_grad_()
    torch._fake_quantize_learnable_per_channel_affine(
        theirs, scale, zero, 0, codes.quant_min, codes.quant_max, 1.0
    ).square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(quantizer.scale.grad, scale.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(quantizer.zero_point.grad, zero.grad, rtol=1e-4, atol=1e-4)


def test_zero_points_are_learned_on_request_only():
    weight = torch.tensor([[0.0, 3.0]])
    assert not LearnedQuantizer(parameters_of(weight, "tensor-asymmetric")).zero_point.requires_grad
    with pytest.raises(RequestRefused, match="symmetric"):
        LearnedQuantizer(parameters_of(weight, "tensor-symmetric"), learn_zero_point=True)


def test_what_was_learned_is_handed_back(generator):
    weight = torch.randn(4, 11, generator=generator)
    quantizer = LearnedQuantizer(parameters_of(weight, "group:4-asymmetric"), learn_zero_point=True)
    with torch.no_grad():
        quantizer.scale.mul_(-1.3)  # an optimiser's step may cross 0
        quantizer.zero_point.add_(0.7).mul_(3)  # and leave the code range
    learned = quantizer.quantization_parameters()
    torch.testing.assert_close(learned.scale, quantizer.start.scale * 1.3)
    assert int(learned.zero_point.max()) == learned.codes.quant_max
    assert torch.equal(apply(weight, learned), quantizer(weight).detach())
    assert bool((learned.range_min <= 0).all())
    assert bool((learned.range_max >= 0).all())


def test_learning_lowers_the_error_of_a_bad_start(generator):
    weight = torch.randn(4, 100, generator=generator)
    quantizer = LearnedQuantizer(parameters_of(weight, "channel-symmetric", bits=3))
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.02)
    errors = []
    for _ in range(100):
        optimizer.zero_grad()
        error = (quantizer(weight) - weight).square().mean()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    best = fake_quantize(weight, Candidate(bits=3, scheme=Scheme.parse("channel-symmetric-mse")), **AXES)
    assert errors[-1] < 0.75 * errors[0]
    assert errors[-1] < 1.05 * (best - weight).square().mean().item()


# --- quantization-aware fine-tuning ---------------------------------------------------------------------------------


class Network(nn.Module):
    """A small classifier whose weights pass through ``quantizers`` when there are some."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(64, 32), nn.Linear(32, 32), nn.Linear(32, 10)])
        self.quantizers = [lambda weight: weight] * 3

    def forward(self, x):
        for i, (layer, quantizer) in enumerate(zip(self.layers, self.quantizers, strict=True)):
            x = nn.functional.linear(x.relu() if i else x, quantizer(layer.weight), layer.bias)
        return x


def train(network, parameters, data, *, steps, lr):
    optimizer = torch.optim.Adam(parameters, lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(data[0]), data[1]).backward()
        optimizer.step()


def accuracy(network, data):
    with torch.no_grad():
        return (network(data[0]).argmax(1) == data[1]).float().mean().item()


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return [(images[part], labels[part]) for part in (order[:1300], order[1300:])]


@pytest.fixture
def trained(digits):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Network()
    train(network, network.parameters(), digits[0], steps=150, lr=0.01)
    return network


def quantized_parameters(network, candidate):
    return [quantization_parameters(layer.weight.detach(), candidate, **AXES) for layer in network.layers]


def quantized_accuracy(network, parameters, data):
    """Of the weights as they would be delivered."""
    network.quantizers = [lambda weight, one=one: apply(weight, one) for one in parameters]
    return accuracy(network, data)


@pytest.mark.parametrize("learned", [False, True], ids=["straight-through", "learned"])
@pytest.mark.parametrize("text", ["tensor-symmetric-mse", "channel-asymmetric"])
def test_fine_tuning_recovers_what_quantization_lost(trained, digits, text, learned):
    training, held_out = digits
    candidate = Candidate(bits=2, scheme=Scheme.parse(text))
    float_training = copy.deepcopy(trained)
    in_float, starts = accuracy(trained, held_out), quantized_parameters(trained, candidate)
    before = quantized_accuracy(trained, starts, held_out)

    modules = [LearnedQuantizer(start) for start in starts] if learned else []
    trained.quantizers = modules or [
        lambda weight, start=start: fake_quantize_straight_through(weight, start) for start in starts
    ]
    scales = [module.scale for module in modules]
    train(trained, [*trained.parameters(), *scales], training, steps=150, lr=0.003)
    finals = [module.quantization_parameters() for module in modules] or starts
    after = quantized_accuracy(trained, finals, held_out)

    # As many further steps in float, quantized afterwards: it is not just the longer training.
    train(float_training, float_training.parameters(), training, steps=150, lr=0.003)
    control = quantized_accuracy(float_training, quantized_parameters(float_training, candidate), held_out)
    figures = {"float": in_float, "before": before, "after": after, "control": control}
    assert in_float > 0.95, figures
    assert before < in_float - 0.1, figures
    assert after > in_float - 0.03, figures
    assert after > control + 0.05, figures
