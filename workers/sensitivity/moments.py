"""Second moments of all units' inputs, from one pass of the float model."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from workers.errors import MeasurementFailed
from workers.graph.axes import element_numbers, moved, root_of
from workers.graph.dataflow import Dataflow, one_sample
from workers.graph.program import Program
from workers.graph.units import Unit, UnitTable
from workers.graph.uses import Use
from workers.quant import InputMoments
from workers.sensitivity.activations import counting
from workers.sensitivity.batches import Batches
from workers.sensitivity.operand_moments import OperandMoments, operand_moments


def collect_moments(  # noqa: PLR0913 - what the moments depend on, and within which bounds
    program: Program,
    table: UnitTable,
    batches: Batches,
    *,
    units: Collection[str] | None = None,
    matrices: Collection[str] = (),
    memory_bytes: int = 1 << 30,
    mask: Tensor | None = None,
) -> dict[str, InputMoments]:
    """Run the float model and accumulate the moments of its units' inputs, in float64.

    Units that share a weight between look-ups and products (tied embeddings) get the moments of the products: errors in
    both cannot be added up. Units whose weight is computed from another unit's on its way to the operator have none.

    Args:
        program: The model.
        table: Its units.
        batches: The samples.
        units: Names of the units asked for; ``None`` for all.
        matrices: Names of the units whose whole matrix is asked for; given where inputs are plain vectors (linear
            layers, matrix products, 1x1 convolutions).
        memory_bytes: Bound on the matrices held while one pass runs; matrices beyond it take further passes.
        mask: ``[samples of the data, positions]``, bool: the positions that count, for tensors whose first two axes are
            samples and positions.

    Returns:
        Unit name -> moments.

    Raises:
        RequestRefused: There is no such unit.
        MeasurementFailed: An operator failed, or an input is not finite.
    """
    wanted = [table.unit(name) for name in units] if units is not None else list(table.units)
    with_matrix = {table.unit(name).info.name for name in matrices}
    flow, symbols = Dataflow.of(program.model), one_sample(program.model)
    places = {unit.info.name: list(_places(unit, symbols)) for unit in wanted}
    found: dict[str, InputMoments] = {}
    for part in _parts(wanted, with_matrix, memory_bytes):
        sums = {
            unit.info.name: _Sums(unit, places[unit.info.name], with_matrix=unit.info.name in with_matrix)
            for unit in part
        }
        _run(program, flow, batches, list(sums.values()), mask)
        found |= {name: moments for name, one in sums.items() if (moments := one.moments()) is not None}
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class _Place:
    """A use and how its operand shows the unit's weight.

    Args:
        use: The use.
        elements: The operand's shape, holding the number of each element in the weight; ``None`` if it is the weight.
        keeps_inputs: The operand's input axis is the weight's, whole and in its order.
    """

    use: Use
    elements: Tensor | None
    keeps_inputs: bool


def _places(unit: Unit, symbols: dict[str, int]) -> Iterator[_Place]:
    aliases = {alias.node: alias for alias in unit.aliases}
    shape = unit.info.shape
    for use in unit.uses:
        root, path = (use.weight, ()) if use.weight in aliases else root_of(use.weight)
        alias = aliases.get(root)
        if alias is None:
            continue
        if not path and alias.shape == shape and alias.strides == unit.aliases[0].strides:
            yield _Place(use=use, elements=None, keeps_inputs=True)
            continue
        numbers = element_numbers(shape, alias.strides and unit.aliases[0].strides)
        seen = None if numbers is None else moved(alias.view(numbers), path, symbols)
        if seen is not None:
            yield _Place(use=use, elements=seen, keeps_inputs=_keeps_inputs(seen, unit))


def _keeps_inputs(seen: Tensor, unit: Unit) -> bool:
    inputs = unit.info.shape[unit.info.group_axis]
    if seen.dim() != 2:
        return False
    coordinates = torch.unravel_index(seen.to(torch.int64), unit.info.shape)[unit.info.group_axis]
    return any(
        seen.shape[axis] == inputs and bool((coordinates.movedim(axis, -1) == torch.arange(inputs)).all())
        for axis in (0, 1)
    )


def _parts(units: Sequence[Unit], with_matrix: Collection[str], memory_bytes: int) -> Iterator[list[Unit]]:
    """Units for one pass each, so that their matrices fit; those without one all go with the first."""
    part = [unit for unit in units if unit.info.name not in with_matrix]
    room = memory_bytes
    for unit in units:
        if unit.info.name not in with_matrix:
            continue
        size = 8 * unit.info.shape[unit.info.group_axis] ** 2
        if part and size > room:
            yield part
            part, room = [], memory_bytes
        part.append(unit)
        room -= size
    if part:
        yield part


def _run(
    program: Program, flow: Dataflow, batches: Batches, sums: Sequence["_Sums"], mask: Tensor | None
) -> None:
    steps: dict[int, list[tuple[_Sums, _Place]]] = {}
    for one in sums:
        for place in one.places:
            steps.setdefault(place.use.step, []).append((one, place))
    for batch in range(len(batches)):
        counts = counting(batches, batch, mask, program.device)
        environment = program.environment(batches.inputs_of(batch))

        def value(node: Node, environment: dict[Node, object] = environment) -> object:
            return environment[node] if node in environment else program.constant(node)

        reached = 0
        for step in sorted(steps):
            program.advance(environment, reached, step)
            reached = step
            for one, place in steps[step]:
                one.add(place, operand_moments(flow.live[step], place.use, value, counts))


class _Sums:
    """What has been summed up for one unit."""

    def __init__(self, unit: Unit, places: Sequence[_Place], *, with_matrix: bool) -> None:
        self.unit, self.places = unit, places
        products = [place for place in places if place.use.inputs]
        if products:
            self.places = products
        self.second: Tensor | None = None
        self.first: Tensor | None = None
        self.matrix: Tensor | None = None
        self.count = 0
        self.with_matrix = with_matrix and all(place.keeps_inputs for place in self.places)

    def add(self, place: _Place, found: OperandMoments) -> None:
        second, first = self._on_weight(place, found.second), self._on_weight(place, found.first)
        if not bool(torch.isfinite(second).all()):
            raise MeasurementFailed(
                f"the input of unit {self.unit.info.name!r} holds NaN, infinite or too large values",
                self.unit.info.name,
                None,
                "finite values",
            )
        self.second = second if self.second is None else self.second + second
        self.first = first if self.first is None else self.first + first
        self.count += found.count
        self.with_matrix = self.with_matrix and found.rows is not None
        if self.with_matrix and found.rows is not None:
            product = (found.rows.T @ found.rows).double()
            self.matrix = product if self.matrix is None else self.matrix.add_(product)

    def moments(self) -> InputMoments | None:
        if self.second is None or self.first is None:
            return None
        count = max(1, self.count)
        return InputMoments(
            second=_narrow(self.second / count),
            matrix=self.matrix / count if self.with_matrix and self.matrix is not None else None,
            mean=_narrow(self.first / count),
            count=self.count,
        )

    def _on_weight(self, place: _Place, sums: Tensor) -> Tensor:
        """From the operand's shape to the weight's."""
        if place.elements is None:
            return sums
        whole = torch.zeros(self.unit.info.weights, dtype=sums.dtype, device=sums.device)
        numbers = place.elements.to(device=sums.device, dtype=torch.int64).reshape(-1)
        whole.index_add_(0, numbers, sums.expand(place.elements.shape).reshape(-1))
        return whole.reshape(self.unit.info.shape)


def _narrow(values: Tensor) -> Tensor:
    """The same tensor with size 1 on the axes along which it does not change, in float32."""
    for axis in range(values.dim()):
        first = values.narrow(axis, 0, 1)
        if values.shape[axis] > 1 and bool((values == first).all()):
            values = first
    return values.float()
