"""Tables whose candidates interact, and what a plan of them costs."""

import numpy as np


def made(seed, units, candidates, dimension=12, linear=0.0):
    rng = np.random.default_rng(seed)
    sizes = np.cumsum(rng.integers(1, 50, (units, candidates)), axis=1)
    amplitude = 2.0 ** -np.arange(candidates) * np.exp(rng.normal(size=(units, 1)))
    direction = rng.normal(size=(units, 1, dimension)) + 0.5 * rng.normal(size=(units, candidates, dimension))
    factors = direction * amplitude[:, :, None]
    costs = linear * rng.normal(size=(units, candidates))
    return costs, sizes, factors.reshape(units * candidates, dimension)


def cost_of(costs, factors, plan):
    candidates = costs.shape[1]
    total = sum(factors[i * candidates + k] for i, k in enumerate(plan))
    return sum(costs[i, k] for i, k in enumerate(plan)) + float(total @ total)
