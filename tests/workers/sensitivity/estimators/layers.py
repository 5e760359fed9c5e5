"""Models taken apart by hand: what lies up to the next weights, and what lies behind."""

import torch
from torch import nn
from torch.nn import functional

from workers.sensitivity.estimators.changes import round_to_nearest
from workers.sensitivity.estimators.cotangents import random_signs


class Block(nn.Module):
    """A layer of a language model: rotated queries and keys, attention, a gate, a stream that all add to."""

    def __init__(self):
        super().__init__()
        self.enter, self.norm = nn.Linear(6, 6), nn.LayerNorm(6)
        self.q, self.k, self.v, self.out = (nn.Linear(6, 6) for _ in range(4))
        self.gate, self.up, self.down = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 6)
        self.head = nn.Linear(6, 5)
        self.register_buffer("angles", torch.linspace(0, 1.5, 4, dtype=torch.double)[:, None])

    def rotated(self, x):
        left, right = x.chunk(2, -1)
        turned = torch.cat([-right, left], -1)
        return x * torch.cos(self.angles) + turned * torch.sin(self.angles)

    def mixed(self, y):
        q, k, v = self.rotated(self.q(y)), self.rotated(self.k(y)), self.v(y)
        return functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], is_causal=True)[
            :, 0
        ]

    def gated(self, x):
        y = self.norm(x)
        return functional.silu(self.gate(y)) * self.up(y)

    def after_mixed(self, x, mixed):
        x = x + self.out(mixed)
        return self.after_gated(x, self.gated(x))

    def after_gated(self, x, gated):
        return self.head(x + self.down(gated))

    def after_enter(self, x, y):
        return self.after_mixed(x, self.mixed(y))

    def forward(self, x):
        x = self.enter(x)
        return self.after_enter(x, self.norm(x))


class Clipped(nn.Module):
    """Convolutions with a norm and a clipped activation between them."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, groups=4)
        self.head = nn.Linear(4, 3)
        with torch.no_grad():
            self.norm.running_mean.uniform_(-0.5, 0.5)
            self.norm.running_var.uniform_(0.5, 2)

    def between(self, x):
        return functional.relu6(3 * self.norm(self.first(x)))

    def after(self, between):
        return self.head(self.second(between).mean((2, 3)))

    def forward(self, x):
        return self.after(self.between(x))


class Saturated(nn.Module):
    """Weights whose change has passed a function when it is the output."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return 4 * torch.tanh(self.head(torch.tanh(self.inner(x))))


def build(kind, *shape):
    torch.manual_seed(0)
    return kind().double().eval(), (torch.randn(5, *shape, dtype=torch.double),)


def under(module, case, name, candidate):
    """Parameters with one of them as a candidate stores it."""
    unit = case.setup.table.unit(name)
    weight = case.setup.program.constant(unit.node)
    return dict(module.named_parameters()) | {name: round_to_nearest(unit, weight, candidate)}


def call(module, method, parameters, *arguments):
    return torch.func.functional_call(
        Calling(module, method), {f"module.{k}": v for k, v in parameters.items()}, arguments
    )


class Calling(nn.Module):
    """Another method of a module as its ``forward``."""

    def __init__(self, module, method):
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *arguments):
        return getattr(self.module, self.method)(*arguments)


def start(logits, sample, number=0, seed=0):
    """``R s`` of a sample ``[1, positions, classes]``."""
    p = torch.softmax(logits, -1)
    signs = random_signs(seed, number, [sample], logits.numel())[0].double().reshape(logits.shape)
    root = p.sqrt() * signs
    return (root - p * (p.sqrt() * signs).sum(-1, keepdim=True)) / (2 * logits[0, ..., 0].numel()) ** 0.5


def value_of(sample, far, before, after):
    """``<R s, J (after - before)>`` for a sample's values in between, and what follows them."""
    logits, back = torch.func.vjp(far, *before)
    gradients = back(start(logits.detach(), sample))
    return sum(
        float((g.detach() * (new - old)).sum()) for g, new, old in zip(gradients, after, before, strict=True)
    )
