"""How many passes measuring again around plans may take.

Pure, and counted in passes, never in seconds: the same request always takes the same steps.

A job may say how many. Else what refining is worth is held against what the costs were worth: a share of the passes that the
job has spent on knowing them. Its budgets divide that among them; where the parts would be too small for a step, the first
budgets have it. Where passes are short that share would stop steps that nobody has to wait for, so that each budget may take a
number of multiply-accumulates in any case.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.plans.refinement import End
from workers.contracts import ModelDescription
from workers.sensitivity.sharding import free_positions

SHARE = 0.6
"""Of the passes spent on knowing costs. In time it is less, since entries take longer than their work says."""
LEAST_OPERATIONS = 1e13
"""Multiply-accumulates that refining the plan of a budget may take in any case: about two minutes of a core."""
PASSES_PER_WALK = 2.2
"""What walking back once, with the products of all candidates' changes, is reckoned at: five walks around a plan take as long as 9.7
to 13.9 passes of the steps from it, 11 in the median (EfficientNet-Lite0, MiniLM, SmolLM2-135M)."""


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """What refining the plan of one budget may take, in float passes over the samples.

    Args:
        entries: What the job's entries took.
        passes: For everything that refining does.
        max_passes: For entries and what is measured around plans together; ``None``: no bound.
    """

    entries: float
    passes: float
    max_passes: float | None

    def ends(self, spent: float, measured: float, probing: float, measuring: float) -> End | None:
        """Why one more step cannot be afforded; ``None`` if it can.

        Args:
            spent: By refining this budget's plan so far.
            measured: The part of it that is not probes.
            probing: What the step's probes take.
            measuring: What else it takes.
        """
        if self.max_passes is not None and self.entries + measured + measuring > self.max_passes:
            return End.MAX_PASSES
        return End.PASSES if spent + probing + measuring > self.passes else None

    def cut(self, spent: float, ahead: float) -> float:
        """As much of what is likely to follow as there are passes for.

        Args:
            spent: By refining this budget's plan so far, with what is queued.
            ahead: What is likely to follow.
        """
        return max(min(ahead, self.passes - spent), 0.0)


def probe_passes(probes: int) -> float:
    """What so many probes on all samples are reckoned at."""
    return PASSES_PER_WALK * probes


def allowance_of(  # noqa: PLR0913 - one keyword for each thing it depends on
    request: Mapping[str, Any],
    description: ModelDescription,
    *,
    ordinal: int,
    entries: float,
    samples: int,
    shapes: Mapping[str, Sequence[int]],
    first_step: float,
) -> Allowance:
    """What refining the plan of one of a job's budgets may take.

    Args:
        request: Of the job.
        description: Of its model.
        ordinal: Of the budget.
        entries: Passes that the job's entries took.
        samples: Calibrated on.
        shapes: Of the calibration data's tensors, by name, samples first.
        first_step: Passes that a first step takes.
    """
    known = entries + (probe_passes(request["probes"]) if "probes" in request else 0.0)
    asked = request.get("refine_passes")
    shared = SHARE * known if asked is None else asked
    among = max(min(len(request["budgets"]), int(shared // first_step)), 1)
    own = shared / among if ordinal < among else 0.0
    positions = free_positions(description.inputs, shapes)
    operations = samples * positions * sum(unit.macs for unit in description.units)
    least = LEAST_OPERATIONS / max(operations, 1)
    return Allowance(
        entries=entries,
        passes=max(own, least) if asked is None else own,
        max_passes=request.get("max_passes"),
    )
