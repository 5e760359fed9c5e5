"""Families of bit-allocation problems: realistic ones, and those that are hard for exact solvers.

Each generator returns ``(costs float64 [L, K], sizes int64 [L, K])`` and depends only on its arguments.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Tables = tuple[NDArray[np.float64], NDArray[np.int64]]

WIDTHS = {3: (2, 4, 8), 6: (2, 3, 4, 5, 6, 8), 8: (2, 3, 4, 5, 6, 7, 8, 16)}
GROUP_SIZE = 128


def _candidates(count: int) -> list[tuple[int, int, float]]:
    """(bit-width, weights per 16-bit scale, factor on the cost) of each candidate."""
    if count in WIDTHS:
        return [(bits, GROUP_SIZE, 1.0) for bits in WIDTHS[count]]
    if count == 20:  # five widths, two group sizes, two activation widths
        return [(bits, group, act) for bits in (2, 3, 4, 6, 8) for group in (32, 128) for act in (1.0, 1.6)]
    raise ValueError(f"no menu of {count} candidates; known are 3, 6, 8, 20")


def _table(  # noqa: PLR0913 - what makes an instance
    weights: NDArray[np.int64],
    count: int,
    rng: np.random.Generator,
    *,
    spread: float,
    noise: float,
    floor: float = 0.3,
) -> Tables:
    """Costs fall fourfold per bit, times a unit's own sensitivity; measurement noise makes some rows non-monotone."""
    menu = _candidates(count)
    sizes = np.stack([weights * bits + -(-weights // group) * 16 for bits, group, _ in menu], axis=1)
    rates = np.array([4.0**-bits * (0.8 if group < GROUP_SIZE else 1.0) * act for bits, group, act in menu])
    sensitivity = np.exp(rng.normal(0.0, spread, len(weights))) * weights * 1e-6
    costs = sensitivity[:, None] * rates * np.exp(rng.normal(0.0, noise, sizes.shape))
    costs += np.abs(rng.normal(size=sizes.shape)) * floor * float(np.median(costs[:, 0])) * 4.0**-6
    return costs, sizes


def transformer(units: int, count: int, seed: int = 0, *, noise: float = 0.15) -> Tables:
    """Blocks of q, k, v, o, gate, up, down with grouped-query attention, and one large head; few distinct sizes."""
    rng = np.random.default_rng(seed)
    model, hidden, heads, vocabulary = (
        (1024, 3072, 512, 151936) if units <= 50 else (4096, 14336, 1024, 128256)
    )
    attention = [model * model, model * heads, model * heads, model * model]
    block = [*attention, model * hidden, model * hidden, hidden * model]
    weights = np.array((block * (units // 7 + 1))[:units], np.int64)
    weights[-1] = model * vocabulary
    costs, sizes = _table(weights, count, rng, spread=1.2, noise=noise)
    depth = 1.0 + 2.0 * np.exp(-np.arange(units) / 21.0)  # early blocks are more sensitive
    return costs * depth[:, None], sizes


def experts(units: int, count: int, seed: int = 0) -> Tables:
    """A mixture of experts: 95 % of equal size, sensitivities as uneven as the routing."""
    rng = np.random.default_rng(seed)
    weights = np.full(units, 7168 * 2048, np.int64)
    shared = rng.random(units) < 0.05
    others = np.array([7168 * 1536, 1536 * 24576, 7168 * 576, 512 * 32768, 16384 * 7168])
    weights[shared] = rng.choice(others, int(shared.sum()))
    return _table(weights, count, rng, spread=2.0, noise=0.15)


def shapes(units: int, count: int, seed: int = 0) -> Tables:
    """Convolution-like: all sizes differ, log-uniform from 1e4 to 1e9 weights, without common divisor."""
    rng = np.random.default_rng(seed)
    weights = np.exp(rng.uniform(np.log(1e4), np.log(1e9), units)).astype(np.int64)
    return _table(weights, count, rng, spread=1.2, noise=0.25)


def noisy(units: int, count: int, seed: int = 0) -> Tables:
    """Loss rises measured on too few samples: half the entries at high widths negative, rows far from monotone."""
    rng = np.random.default_rng(seed)
    costs, sizes = transformer(units, count, seed, noise=0.5)
    return costs + rng.normal(0.0, float(np.median(costs)), costs.shape), sizes


def tied(units: int, count: int, seed: int = 0) -> Tables:
    """Costs with two significant digits: many plans of exactly equal cost."""
    costs, sizes = transformer(units, count, seed, noise=0.05)
    digits = np.floor(np.log10(np.maximum(costs, 1e-300)))
    return np.round(costs / 10 ** (digits - 1)) * 10.0 ** (digits - 1), sizes


def strongly_correlated(units: int, count: int, seed: int = 0) -> Tables:
    """Pisinger's hard type: cost falls by the size plus a constant per step, all whole numbers."""
    rng = np.random.default_rng(seed)
    steps = np.sort(rng.integers(1, 2 * 10**6 // count, (units, count)), axis=1)
    sizes = np.cumsum(steps, axis=1).astype(np.int64)
    profit = sizes + 10 * np.arange(1, count + 1)
    return (profit.max() - profit).astype(np.float64), sizes


def correlated_real(units: int, count: int, seed: int = 0) -> Tables:
    """Strongly correlated with costs shaken by 0.1 %: no two plans of equal cost."""
    costs, sizes = strongly_correlated(units, count, seed)
    return costs * (1.0 + 1e-3 * np.random.default_rng(seed + 99).random(costs.shape)), sizes


def subset_sum(units: int, count: int, seed: int = 0) -> Tables:
    """Cost is a constant less the size: every candidate lies on one line, the bound says nothing."""
    rng = np.random.default_rng(seed)
    sizes = np.sort(rng.integers(1, 10**9, (units, count)), axis=1).astype(np.int64)
    return (10**9 - sizes).astype(np.float64), sizes


def all_equal(units: int, count: int, seed: int = 0) -> Tables:
    """Every unit the same: all plans of one profile tie."""
    costs, sizes = transformer(1, count, seed)
    return np.repeat(costs, units, axis=0), np.repeat(sizes, units, axis=0)


FAMILIES: dict[str, Callable[[int, int, int], Tables]] = {
    "transformer": transformer,
    "experts": experts,
    "shapes": shapes,
    "noisy": noisy,
    "tied": tied,
    "strong": strongly_correlated,
    "strong_real": correlated_real,
    "subset_sum": subset_sum,
    "all_equal": all_equal,
}


def budget_at(sizes: NDArray[np.int64], fraction: float) -> int:
    """A budget this far between the smallest and the largest total size."""
    low, high = int(sizes.min(axis=1).sum()), int(sizes.max(axis=1).sum())
    return low + int(fraction * (high - low))


def three_rows(
    sizes: NDArray[np.int64], fractions: tuple[float, float, float], seed: int = 0
) -> tuple[int, tuple[tuple[str, NDArray[np.generic], float], ...]]:
    """A budget, and bit operations and latency as further rows (name, values, limit), each this far along its range."""
    rng = np.random.default_rng(seed)
    reuse = rng.choice([1, 1, 1, 4, 16], len(sizes))[:, None]
    operations = sizes // 1000 * reuse * rng.choice([4, 8], sizes.shape) // 8
    latency = np.round(
        sizes / 1e9 * (0.6 + 0.8 * rng.random((len(sizes), 1))) + 0.02 * (1 + rng.random(sizes.shape)), 6
    )
    low, high = float(latency.min(axis=1).sum()), float(latency.max(axis=1).sum())
    return budget_at(sizes, fractions[0]), (
        ("bops", operations, float(budget_at(operations, fractions[1]))),
        ("latency_ms", latency, low + fractions[2] * (high - low)),
    )


def interactions(units: int, candidates: int, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Sizes, and factors [units * candidates, 1.5 * units] of a Gram matrix: output errors that halve with every step."""
    rng = np.random.default_rng(seed)
    sizes = np.cumsum(rng.integers(1, 50, (units, candidates)), axis=1)
    amplitude = 2.0 ** -np.arange(candidates) * np.exp(rng.normal(size=(units, 1)))
    dimension = 3 * units // 2
    direction = rng.normal(size=(units, 1, dimension)) + 0.5 * rng.normal(size=(units, candidates, dimension))
    return sizes, (direction * amplitude[:, :, None]).reshape(units * candidates, dimension)
