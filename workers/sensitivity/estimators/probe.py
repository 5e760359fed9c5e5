"""Gauss-Newton probes: estimates for all units' candidates from a few backward passes.

A probe draws one random cotangent at the outputs (`workers.sensitivity.estimators.cotangents`) and walks it back
once. With ``g_n`` sample n's gradient of it by a unit's weight and dW a candidate's change of the weight,
``v_n = <g_n, dW>`` has an expected square of the candidate's cost for sample n to second order: the generalised
Gauss-Newton form of the KL divergence (Martens 2020, "New insights and perspectives on the natural gradient
method", section 8), estimated without bias by random signs (Hutchinson 1990). All uses of a unit add up inside the
square, as they must: their errors are correlated.

What a large change does right behind its unit is seldom linear. Changes of few bits are therefore followed through what is
computed there, up to the next weights (`workers.sensitivity.estimators.reaches`), and ``v_n`` is the product of what they change
at that place with what comes back to it. Changes of the last weights, whose outputs are the model's, are known whole:
their own exact cost takes the place of its estimate.

The values are more than costs: ``v_a v_b`` averages to the interaction of changes a and b, so that the Gram matrix of
the values' rows is a sketch of the pairwise model.

Cost in forward passes over the samples: one per group of probes, and per probe a backward pass of the activations
(about 1.2) and the products with all candidates (about 1 to 2).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import Node

from workers.contracts import Candidate
from workers.errors import RequestRefused
from workers.graph.dataflow import Dataflow
from workers.graph.residency import tensors_in
from workers.graph.units import Unit
from workers.sensitivity.activations import QuantizedOperands
from workers.sensitivity.estimators.changes import Changes, Quantizer, round_to_nearest
from workers.sensitivity.estimators.contraction import InnerProducts, contract
from workers.sensitivity.estimators.cotangents import random_signs
from workers.sensitivity.estimators.entries import Entries
from workers.sensitivity.estimators.feeds import Feed, layouts_of
from workers.sensitivity.estimators.following import Following
from workers.sensitivity.estimators.headway import Amount, Headway, Progress
from workers.sensitivity.estimators.precision import Precision
from workers.sensitivity.estimators.reaches import Reaches
from workers.sensitivity.estimators.starts import costs_of, start_of
from workers.sensitivity.estimators.tape import Place, Plan, Tape, Visit
from workers.sensitivity.estimators.totals import ProbeValues, Totals
from workers.sensitivity.estimators.uses import Uses
from workers.sensitivity.estimators.visited import VisitedStep
from workers.sensitivity.exact import Setup
from workers.sensitivity.sharding import free_positions

FOLLOWED_BITS = 3
"""Finer candidates change so little that following them tells nothing: rank correlations and regrets on EfficientNet-Lite0,
SmolLM2-135M."""

ActivationChanges = Callable[[Unit, Node, Tensor, Tensor], Iterable[Tensor]]
"""How a unit's input changes under its activation candidates: unit, node, value of the input, and what the unit's step sees of it
as it is -> a change of that for each."""

Cotangents = Callable[[int, Tensor, Tensor | None, Feed], Tensor]
"""Where walks start: number of the walk, outputs of the samples that count, mask of their positions, what was fed -> the
cotangent of these outputs."""

PositionMasks = Callable[[int], Tensor | None]
"""Which output positions of a batch count: number of the batch -> ``[kept, positions]``, or ``None`` for all."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeOptions:
    """How to probe.

    Args:
        probes: How many independent probes.
        together: How many share a forward pass; more need more memory (cotangents of a cut of the graph) and less time.
        seed: Chooses the signs.
        dtype: ``torch.bfloat16`` for matrix products of float32 in that precision; ``None`` for the model's.
        follow_bits: Changes of candidates of at most so many bits are followed; 0: none is, everything is linear.
        changes_bytes: Bound on the candidates' weights that are kept from batch to batch; others are made again.
        quantize: Makes a candidate's weight.
        activation_changes: Also estimate changes of the units' inputs, apart from the weights'.
        operands: Inputs of units that are quantized to begin with.
        position_masks: Which positions count; ``None`` for all.
        progress: Told whenever a walk has passed a unit's use (each sample counts once per probe, those in hand by how far
            they are).
    """

    probes: int = 4
    together: int = 4
    seed: int = 0
    dtype: torch.dtype | None = None
    follow_bits: int = FOLLOWED_BITS
    changes_bytes: int = 2 << 30
    quantize: Quantizer = round_to_nearest
    activation_changes: ActivationChanges | None = None
    operands: QuantizedOperands = field(default_factory=dict)
    position_masks: PositionMasks | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        for name in ("probes", "together"):
            if getattr(self, name) < 1:
                raise RequestRefused(
                    f"{name} is {getattr(self, name)}", name, getattr(self, name), "whole numbers from 1"
                )

    def tell(self, done: float, total: int) -> None:
        """Tell how many samples are done, and of how many, if somebody wants to know."""
        if self.progress is not None:
            self.progress(done, total)

    def mask(self, batch: int, offset: int, kept: int) -> Tensor | None:
        """The mask of some samples of a batch."""
        found = None if self.position_masks is None else self.position_masks(batch)
        return None if found is None else found[offset : offset + kept]


def probe(
    setup: Setup, wanted: Sequence[tuple[str, Candidate]], options: ProbeOptions | None = None
) -> Iterator[ProbeValues]:
    """Probe a model.

    Args:
        setup: What to work on; its reference gives the metric (``kl`` or ``mse``) and the outputs' variance.
        wanted: Unit names and candidates, in the order of the entries.
        options: How.

    Yields:
        One value of each entry and sample per probe. The same seed gives the same values, whatever the batches
        (up to rounding).

    Raises:
        RequestRefused: Unknown unit, or a metric without an estimate.
        ModelRefused: A weight is not finite.
        MeasurementFailed: An operator failed or has no derivative, or a model with a fixed batch mixes samples.
    """
    options = options or ProbeOptions()
    yield from walk(setup, wanted, options, signed(setup, options.seed), range(options.probes))


def walk(
    setup: Setup,
    wanted: Sequence[tuple[str, Candidate]],
    options: ProbeOptions,
    cotangents: Cotangents,
    numbers: range,
) -> Iterator[ProbeValues]:
    """Walk cotangents back, and multiply what comes back to the weights with the candidates' changes.

    Args:
        setup: As for `probe`, like what follows.
        wanted: Unit names and candidates.
        options: How; ``probes`` and ``seed`` are the caller's to use.
        cotangents: Where the walks start.
        numbers: Of the walks.

    Yields:
        Products of each entry and sample, per walk.

    Raises:
        WorkerError: As `probe`.
    """
    run = _Probing(setup, wanted, options, cotangents, len(numbers))
    for first in range(0, len(numbers), options.together):
        yield from run.group(numbers[first : first + options.together])
    run.end()


def signed(setup: Setup, seed: int) -> Cotangents:
    """Random vectors whose squared products expect costs (`workers.sensitivity.estimators.cotangents`)."""
    reference = setup.reference

    def start(number: int, output: Tensor, mask: Tensor | None, feed: Feed) -> Tensor:
        samples = setup.batches.samples[feed.samples].tolist()
        signs = random_signs(seed, number, samples, output[0].numel())
        return start_of(reference, output, signs, mask)

    return start


@dataclass(frozen=True, kw_only=True, eq=False)
class _Walk:
    """Some samples' walk: what is fed, which positions count, what is followed, and where values go."""

    feed: Feed
    mask: Tensor | None
    following: Following
    totals: Totals


class _Probing:
    def __init__(
        self,
        setup: Setup,
        wanted: Sequence[tuple[str, Candidate]],
        options: ProbeOptions,
        cotangents: Cotangents,
        walks: int,
    ) -> None:
        self._setup = setup
        self._options = options
        self._cotangents = cotangents
        self._flow = Dataflow.of(setup.program.model)
        self._entries = Entries.of(setup.table, wanted)
        self._uses = Uses.of(self._flow, self._entries.units)
        self._used_once = self._uses.once()
        self._reaches = self._find_reaches()
        self._plan = Plan(
            program=setup.program,
            flow=self._flow,
            active=self._uses.active,
            wanted=self._uses.at,
            through=options.activation_changes is not None,
            precision=Precision(device=setup.program.device, products=options.dtype),
            kept=self._reaches.kept,
            quantizers={setup.program.steps[i].node: found for i, found in options.operands.items()},
        )
        self._layouts = layouts_of(self._plan, self._start, setup.batches)
        batches, groups = setup.batches, -(-walks // options.together)
        feeds = groups * sum(1 for i in range(len(batches)) for _ in self._layouts.feeds(batches, i))
        self._changes = Changes(
            program=setup.program,
            units=self._entries.units,
            candidates=self._entries.candidates,
            operands=self._uses.operands,
            quantize=options.quantize,
            memory_bytes=options.changes_bytes if feeds > 1 else 0,  # else nothing kept is of use
        )
        inputs = setup.program.model.inputs
        shapes = {info.name: fed.shape for info, fed in zip(inputs, batches.inputs, strict=True)}
        amount = Amount(
            samples=len(batches.samples),
            positions=free_positions(inputs, shapes),
            probes=walks,
            groups=groups,
            feeds=feeds,
            again=[self._changes.made_again(unit) for unit in range(len(self._entries.units))],
        )
        self._headway = Headway(self._uses.at, self._entries, amount, options.tell)

    def _find_reaches(self) -> Reaches:
        if self._options.follow_bits < 1:
            return Reaches.none()
        everything = Uses.of(self._flow, self._setup.table.units)
        return Reaches.find(self._setup.program, self._flow, everything, self._uses.at)

    def end(self) -> None:
        """All groups are done."""
        self._headway.end()

    def group(self, probes: range) -> Iterator[ProbeValues]:
        """Probes that share their forward passes."""
        batches = self._setup.batches
        totals = Totals(len(probes), self._entries.count, len(batches.samples))
        for batch in range(len(batches)):
            for feed in self._layouts.feeds(batches, batch):
                self._walk(probes, feed, totals)
        yield from totals.each()

    @property
    def _start(self) -> Place | None:
        """The first output, unless nothing that is probed could change it."""
        output = self._flow.outputs[0]
        return (output, 0) if isinstance(output, Node) and output in self._uses.active else None

    def _walk(self, probes: range, feed: Feed, totals: Totals) -> None:
        tape = Tape(self._plan, feed.inputs)
        output = tape.outputs[0]
        mask = self._options.mask(feed.batch, feed.offset, feed.kept)
        totals.counted[feed.samples] = True if mask is None else (mask != 0).any(-1).cpu()
        if self._start is None:
            return
        self._headway.fed(feed.kept, len(probes))
        following = Following(
            reaches=self._reaches,
            output=self._start[0],
            outputs=output,
            starts=[self._cotangent(index, output, mask, feed) for index in probes],
            layouts=self._layouts,
            constant=self._setup.program.constant_value,
        )
        walk = _Walk(feed=feed, mask=mask, following=following, totals=totals)

        def visited(visit: Visit) -> None:
            node = visit.step.node
            following.pass_by(visit)
            if node in self._uses.at:
                if any(visit.outputs):
                    self._visit(visit, walk)
                following.leave(node)
                self._headway.passed(node)

        tape.backward(following.begin(), visited)

    def _cotangent(self, number: int, output: Tensor, mask: Tensor | None, feed: Feed) -> Tensor:
        """Where a walk starts; 0 for fillers."""
        found = self._cotangents(number, output[: feed.kept], mask, feed)
        if feed.kept == len(output):
            return found.to(output.dtype)
        return torch.cat([found.to(output.dtype), torch.zeros_like(output[feed.kept :])])

    def _visit(self, visit: Visit, walk: _Walk) -> None:
        node, feed = visit.step.node, walk.feed
        step = VisitedStep(
            visit=visit,
            constant=self._setup.program.constant,
            layouts={number: self._layouts.of((node, number)) for number in visit.outputs[0]},
            samples=feed.fed,
            precision=self._plan.precision,
        )
        known = walk.following.knows(node)
        for use in self._uses.at[node]:
            for changes in self._changes.of(use.unit):
                rows = self._entries.rows[use.unit][changes.candidates]
                candidates = self._entries.candidates[use.unit][changes.candidates]
                of = {operand: changes.of[operand] for operand in use.operands}
                count = sum(self._follows(candidate, node) for candidate in candidates) if known else 0
                if count:
                    first = {n: change[:count] for n, change in of.items()}
                    self._follow(step, first, rows[:count], walk, alone=use.unit in self._used_once)
                if count < len(rows):
                    found = contract(step, {n: change[count:] for n, change in of.items()})
                    walk.totals.weights[:, rows[count:], feed.samples] += found[:, :, : feed.kept].cpu()
            if self._options.activation_changes is not None:
                self._visit_inputs(self._entries.units[use.unit], step, walk)

    def _follows(self, candidate: Candidate, node: Node) -> bool:
        """Whether a candidate's change is followed from a unit's step; of all its candidates, those of the fewest bits are."""
        return candidate.bits <= self._options.follow_bits or self._reaches.of[node].whole

    def _follow(
        self, step: VisitedStep, changes: dict[Node, Tensor], rows: Tensor, walk: _Walk, *, alone: bool
    ) -> None:
        """Follow changes of a unit's constants, one for each row, from one of its uses; ``alone``: from the only one."""
        feed, following, totals = walk.feed, walk.following, walk.totals
        before = following.outputs[: feed.kept]
        for index, found in enumerate(following.follow(step, changes)):
            row, values = int(rows[index]), found.values[:, : feed.kept].cpu()
            if not bool(values.isfinite().all()):  # a function was left behind where it is defined
                one = {node: change[index : index + 1] for node, change in changes.items()}
                values = contract(step, one)[:, 0, : feed.kept].cpu()
            totals.weights[:, row, feed.samples] += values
            if found.outputs is None:
                continue
            costs = costs_of(self._setup.reference, before, found.outputs[: feed.kept], walk.mask)
            if alone:
                totals.know(row, feed.samples, costs)
            else:
                totals.know_part(row, values, costs)

    def _visit_inputs(self, unit: Unit, step: VisitedStep, walk: _Walk) -> None:
        """Products of a unit's input changes with what comes back to its inputs through this use."""
        assert self._options.activation_changes is not None
        feed = walk.feed
        for place in step.visit.sources[0]:
            source, number = place
            seen = list(tensors_in(step.visit.values[source]))[number]
            value = (
                list(tensors_in(step.visit.before[source]))[number] if source in step.visit.before else seen
            )
            products = InnerProducts(
                [back[place] for back in step.visit.sources], self._layouts.of(place), feed.fed
            )
            for index, change in enumerate(self._options.activation_changes(unit, source, value, seen)):
                found = products.with_output(change)[:, : feed.kept]
                walk.totals.add_activation(unit.info.name, index, feed.samples, found)
