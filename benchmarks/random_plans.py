"""Plans that no search made: widths drawn at random, then changed at random until the budget is full."""

from collections.abc import Mapping, Sequence

import numpy as np


def random_plan(
    weights: Mapping[str, int], widths: Sequence[int], budget_bits: int, rng: np.random.Generator
) -> dict[str, int]:
    """A random plan that fills a budget: no unit alone could take its next larger width.

    Every unit draws one of the widths. Units chosen at random go down a width until the plan fits, then up while any of
    them can.

    Args:
        weights: Number of weights of each unit.
        widths: Bit-widths on offer, ascending.
        budget_bits: Largest sum of weights times width.
        rng: Makes the choices.

    Returns:
        Bit-width by unit.

    Raises:
        ValueError: No plan is that small.
    """
    names, sizes = list(weights), np.array(list(weights.values()))
    steps = np.asarray(widths)
    if int(sizes.sum()) * int(steps[0]) > budget_bits:
        raise ValueError(f"{budget_bits} bits are less than all units take at {steps[0]} bits")
    at = rng.integers(len(steps), size=len(names))
    while int(sizes @ steps[at]) > budget_bits:
        at[rng.choice(np.flatnonzero(at > 0))] -= 1
    while True:
        room = budget_bits - int(sizes @ steps[at])
        larger = np.minimum(at + 1, len(steps) - 1)
        fits = np.flatnonzero((larger > at) & (sizes * (steps[larger] - steps[at]) <= room))
        if not fits.size:
            return {name: int(steps[i]) for name, i in zip(names, at, strict=True)}
        at[rng.choice(fits)] += 1


def random_plans(
    weights: Mapping[str, int], widths: Sequence[int], budget_bits: int, *, count: int, seed: int
) -> list[dict[str, int]]:
    """So many different random plans, the same ones for the same seed and budget; fewer where there are no more.

    Args:
        weights: Number of weights of each unit.
        widths: Bit-widths on offer, ascending.
        budget_bits: As in `random_plan`.
        count: How many.
        seed: Of all choices.
    """
    rng = np.random.default_rng([seed, budget_bits])
    found: list[dict[str, int]] = []
    for _ in range(20 * count):
        if len(found) == count:
            break
        plan = random_plan(weights, widths, budget_bits, rng)
        if plan not in found:
            found.append(plan)
    return found
