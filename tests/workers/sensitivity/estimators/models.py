"""Small models, one for each way in which a graph can use a weight; all in double precision."""

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

DRAW = torch.Generator().manual_seed(3)


def floats(*shape):
    return torch.randn(5, *shape, generator=DRAW, dtype=torch.double)


def tokens(length, count):
    return torch.randint(0, count, (5, length), generator=DRAW)


class Convolutions(nn.Module):
    """Strides, padding, dilation, groups, one channel per group, and a kernel of one pixel."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8, bias=False)
        self.groups = nn.Conv2d(8, 12, 3, groups=2, padding="same")
        self.point = nn.Conv2d(12, 6, 1)
        self.thin = nn.Conv2d(6, 4, 1, stride=2)

    def forward(self, x):
        x = torch.tanh(self.stem(x))
        x = x + torch.tanh(self.deep(x))
        return self.thin(torch.tanh(self.point(torch.tanh(self.groups(x))))).mean((2, 3))


class Transposed(nn.Module):
    """Transposed convolutions, one of them in groups."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(2, 6, 3, stride=2, output_padding=1)
        self.again = nn.ConvTranspose2d(6, 4, 2, groups=2, padding=1)

    def forward(self, x):
        return self.again(torch.tanh(self.up(x))).flatten(2).mean(-1)


class OneAndThree(nn.Module):
    """Convolutions over one and three axes."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv1d(2, 4, 3, padding=1)
        self.three = nn.Conv3d(1, 3, 2)
        self.back = nn.ConvTranspose1d(4, 3, 2)

    def forward(self, signal):
        x = torch.tanh(self.one(signal))
        y = self.three(x.unflatten(-1, (2, 4))[:, None])
        return y.flatten(2).mean(-1) + self.back(x).mean(-1)


class TiedModel(nn.Module):
    """Embedding and head share a weight; logits per token."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.inner = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, words):
        x = self.embed(words)
        return self.head(x + torch.tanh(self.inner(x)))


class SequenceFirst(nn.Module):
    """Attention with a fused weight, the sequence on the first axis; only its first token is read."""

    def __init__(self):
        super().__init__()
        self.fused = nn.Linear(6, 18)
        self.out = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        q, k, v = self.fused(x.transpose(0, 1)).unflatten(-1, (3, 2, 3)).unbind(2)
        scores = torch.einsum("snhd,tnhd->nhst", q, k).softmax(-1)
        mixed = torch.einsum("nhst,tnhd->snhd", scores, v).flatten(2)
        return self.head(self.out(mixed)[0])


class FoldedTokens(nn.Module):
    """``addmm`` on tokens folded into the samples' axis, with a weight stored ``[in, out]``, and a slice of one."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 10, generator=DRAW) / 2)
        self.bias = nn.Parameter(torch.randn(10, generator=DRAW))
        self.split = nn.Parameter(torch.randn(12, 10, generator=DRAW) / 3)

    def forward(self, x):
        folded = torch.addmm(self.bias, x.reshape(-1, 4), self.weight)
        y = torch.tanh(folded).view(x.shape[0], x.shape[1], 10)
        left, right = self.split[:6], self.split[6:]
        return functional.linear(y, left) * torch.tanh(functional.linear(y, right))


class TakingTurns(nn.Module):
    """The sequence first and folded with the samples: token after token, the samples take turns."""

    def __init__(self):
        super().__init__()
        self.inner, self.out, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        folded = torch.tanh(self.inner(x.transpose(0, 1).reshape(-1, 6)))
        mixed = torch.tanh(self.out(folded)).reshape(4, -1, 6)
        return self.head(mixed.cumsum(0).transpose(0, 1))


class UsedTwice(nn.Module):
    """One layer called on two inputs, and its weight transposed."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, a, b):
        x = torch.tanh(self.shared(a)) + self.shared(torch.tanh(self.shared(b)))
        return self.head(x @ self.shared.weight)


class Experts(nn.Module):
    """``bmm`` and ``einsum`` with stacked weights, and a weight expanded to the samples."""

    def __init__(self):
        super().__init__()
        self.stacked = nn.Parameter(torch.randn(3, 4, 5, generator=DRAW) / 2)
        self.merge = nn.Parameter(torch.randn(3, 5, 6, generator=DRAW) / 2)
        self.last = nn.Parameter(torch.randn(6, 4, generator=DRAW) / 2)

    def forward(self, x):
        per_expert = torch.bmm(x.expand(3, *x.shape).reshape(3, -1, 4), self.stacked)
        y = torch.einsum("enk,eko->no", torch.tanh(per_expert), self.merge)
        return torch.bmm(torch.tanh(y)[:, None], self.last.expand(x.shape[0], 6, 4))[:, 0]


class Normed(nn.Module):
    """A weight computed by weight normalisation."""

    def __init__(self):
        super().__init__()
        self.inner = parametrizations.weight_norm(nn.Linear(4, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.inner(x)))


class Plain(nn.Module):
    """`Normed` with the computed weight in place of its parts."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    forward = Normed.forward


def mlp():
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


CASES = {
    "linear": (mlp, lambda: (floats(4),)),
    "tokens": (mlp, lambda: (floats(7, 4),)),
    "convolutions": (Convolutions, lambda: (floats(3, 9, 9),)),
    "transposed": (Transposed, lambda: (floats(2, 4, 3),)),
    "one-and-three": (OneAndThree, lambda: (floats(2, 8),)),
    "tied": (TiedModel, lambda: (tokens(4, 11),)),
    "sequence-first": (SequenceFirst, lambda: (floats(4, 6),)),
    "taking-turns": (TakingTurns, lambda: (floats(4, 6),)),
    "folded": (FoldedTokens, lambda: (floats(3, 4),)),
    "twice": (UsedTwice, lambda: (floats(4), floats(4))),
    "experts": (Experts, lambda: (floats(4),)),
    "normed": (Normed, lambda: (floats(4),)),
}
_MADE = {}


def build(name):
    """Module and inputs of a case; always the same ones."""
    if name not in _MADE:
        torch.manual_seed(0)
        kind, inputs = CASES[name]
        _MADE[name] = kind().double().eval(), inputs()
    return _MADE[name]


def twin(module):
    """A module with the same outputs whose parameters are the units' tensors."""
    if not isinstance(module, Normed):
        return module
    plain = Plain().double()
    values = {"inner.weight": module.inner.weight, "inner.bias": module.inner.bias}
    plain.load_state_dict({**values, "head.weight": module.head.weight, "head.bias": module.head.bias})
    return plain.eval()
