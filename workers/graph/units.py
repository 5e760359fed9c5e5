"""The units of a model: which weights get a choice, and how a choice is put into the graph.

A *site* is an operator with a weight operand. Following the operand back through operators that only move
elements ends at its root, which is one of

* a parameter: the unit is the parameter, under its qualified name. A choice replaces the parameter wherever the graph
  reads it, so transposed views, fused parameters used in slices, modules called twice and several names of
  one storage need nothing special: each is one unit. Where uses disagree about the output-channel axis, the
  first use decides.
* a constant computed from parameters (weight norm, scaling, masking): the computed tensor is what a runtime
  stores, so it is the unit (``derived``). If it is computed from another unit, it follows that unit instead.
* a buffer, or a value that depends on the input: not a weight; the former is listed as unsupported.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor
from torch.fx import Node

from workers.contracts import UnitInfo, UnsupportedWeight
from workers.errors import RequestRefused
from workers.graph.dataflow import Dataflow, depends_on, one_sample
from workers.graph.leftovers import unsupported_buffers, unsupported_parameters
from workers.graph.model import GraphModel
from workers.graph.roots import Root, RootFinder
from workers.graph.sites import find_sites
from workers.graph.storage import Alias
from workers.graph.uses import Use, use_of


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A unit and its places in the graph.

    Args:
        info: What the outside knows of it.
        node: The constant node whose value is quantized.
        aliases: All constant nodes that show this tensor, ``node`` first.
        parameters: Parameters that need not be stored once the unit is quantized.
        first_step: Index of the first live node that depends on it.
        uses: The operators that use it as a weight, in execution order.
    """

    info: UnitInfo
    node: Node
    aliases: tuple[Alias, ...]
    parameters: tuple[Node, ...]
    first_step: int
    uses: tuple[Use, ...]

    def changes(self, weight: Tensor) -> dict[Node, Tensor]:
        """The constants to override so that the model uses another weight.

        Args:
            weight: Of the unit's shape, on the program's device.

        Returns:
            For `Program.override`.
        """
        laid_out = self.aliases[0].lay_out(weight)
        return {alias.node: alias.view(laid_out) for alias in self.aliases}


@dataclass(frozen=True, kw_only=True)
class UnitTable:
    """All units of a model in execution order, and the weights that stay in float."""

    units: tuple[Unit, ...]
    unsupported: tuple[UnsupportedWeight, ...]

    def unit(self, name: str) -> Unit:
        """The unit of that name; a tied name will do.

        Raises:
            RequestRefused: There is no such unit.
        """
        for unit in self.units:
            if name == unit.info.name or name in unit.info.tied:
                return unit
        raise RequestRefused(
            f"the model has no unit {name!r}", "unit", name, [unit.info.name for unit in self.units]
        )


def find_units(model: GraphModel) -> UnitTable:
    """Find the units of a model without running it.

    Raises:
        ModelRefused: The graph writes to its inputs.
    """
    flow = Dataflow.of(model)
    symbols = one_sample(model)
    sites, unclear = find_sites(flow, symbols)
    finder = RootFinder(flow, symbols)
    finder.find(sites)
    still_needed = _needed_besides(flow, finder.roots)
    first_steps = {root.node: _first_step(flow, root.nodes) for root in finder.roots}
    ordered = sorted(finder.roots, key=lambda root: (first_steps[root.node], root.names[0]))
    names = _unique([root.names[0] for root in ordered])
    uses = {root.node: tuple(use_of(flow, site) for site in root.sites) for root in finder.roots}
    reached = _reached_macs(flow, finder.roots)
    units = tuple(
        Unit(
            info=_info(model, root, name, uses[root.node], reached[root.node]),
            node=root.node,
            aliases=root.aliases,
            parameters=tuple(source for source in root.sources if source not in still_needed),
            first_step=first_steps[root.node],
            uses=uses[root.node],
        )
        for root, name in zip(ordered, names, strict=True)
    )
    handled = {source for root in finder.roots for source in root.sources}
    return UnitTable(
        units=units,
        unsupported=(
            *unsupported_parameters(flow, handled, unclear | finder.refused),
            *unsupported_buffers(flow, sites),
        ),
    )


def _info(model: GraphModel, root: Root, name: str, uses: Iterable[Use], reached_macs: int) -> UnitInfo:
    return UnitInfo(
        name=name,
        operator=root.sites[0].operator,
        shape=root.shape,
        weights=prod(root.shape),
        output_channel_axis=root.output_axis,
        group_axis=root.group_axis,
        macs=sum(site.macs for site in root.sites) // (model.batch_size or 1),
        tied=root.names[1:],
        derived=root.derived,
        activations=sum(len(use.inputs) for use in uses),
        reached_macs=reached_macs // (model.batch_size or 1),
    )


def _reached_macs(flow: Dataflow, roots: Sequence[Root]) -> dict[Node, int]:
    """Root's node -> multiply-accumulates of the sites that its change reaches."""
    macs = [0] * len(flow.live)
    for root in roots:
        for site in root.sites:
            macs[site.position] += site.macs
    at_sites = [position for position, amount in enumerate(macs) if amount]
    # From each live node on, sites as bits of a number: one walk back gives them for all units.
    behind = [0] * len(flow.live)
    for number, position in enumerate(at_sites):
        behind[position] = 1 << number
    for position in reversed(range(len(flow.live))):
        for source in flow.live[position].all_input_nodes:
            if source in flow.position:
                behind[flow.position[source]] |= behind[position]
    found = {}
    for root in roots:
        changed = {*root.nodes, *depends_on(flow.constants, root.nodes)}
        bits = 0
        for node in changed:
            for user in node.users:
                bits |= behind[flow.position[user]] if user in flow.position else 0
        found[root.node] = sum(macs[at] for number, at in enumerate(at_sites) if bits >> number & 1)
    return found


def _needed_besides(flow: Dataflow, roots: Iterable[Root]) -> set[Node]:
    """Stored tensors that the graph reads in other ways than through units."""
    units = {node for root in roots for node in root.nodes}
    reached: set[Node] = set()
    pending = [source for node in (*flow.live,) for source in node.all_input_nodes]
    pending += [node for node in flow.outputs if isinstance(node, Node)]
    while pending:
        node = pending.pop()
        if node not in reached and node not in units and not flow.is_live(node):
            reached.add(node)
            pending.extend(node.all_input_nodes)
    return reached


def _first_step(flow: Dataflow, nodes: list[Node]) -> int:
    changed = {*nodes, *depends_on(flow.constants, nodes)}
    return next(
        (i for i, node in enumerate(flow.live) if any(source in changed for source in node.all_input_nodes)),
        len(flow.live),
    )


def _unique(names: list[str]) -> list[str]:
    """The names, a number added to those that appeared before: two computed weights may come from one parameter."""
    result: list[str] = []
    for name in names:
        number, unique = 1, name
        while unique in result:
            unique = f"{name}[{number}]"
            number += 1
        result.append(unique)
    return result
