"""From sites to units: which tensor is quantized, along which axes, and what else shows its memory."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod

from torch.fx import Node
from torch.fx.node import map_arg

from workers.graph.axes import element_numbers, moved, source_axis
from workers.graph.dataflow import Dataflow, depends_on, shape_of
from workers.graph.sites import Site
from workers.graph.storage import Alias, Region


@dataclass(kw_only=True, eq=False)
class Root:
    """The tensor of one unit.

    Args:
        node: The constant node whose value is quantized.
        aliases: All nodes that show the same values, ``node`` first.
        shape: Of the tensor.
        names: Qualified names, the unit's own first.
        sources: Parameters it is computed from (of a parameter: the parameters that share its memory).
        derived: It is computed.
        sites: Its uses, in execution order.
        output_axis: Output-channel axis.
        group_axis: Input axis.
    """

    node: Node
    aliases: tuple[Alias, ...]
    shape: tuple[int, ...]
    names: tuple[str, ...]
    sources: tuple[Node, ...]
    derived: bool
    sites: list[Site]
    output_axis: int = 0
    group_axis: int = 1

    @property
    def nodes(self) -> list[Node]:
        """The nodes whose values change with a choice."""
        return [alias.node for alias in self.aliases]


@dataclass(eq=False)
class RootFinder:
    """Groups sites by the tensor they use.

    Args:
        flow: The graph.
        symbols: Value of each symbolic size for one sample.

    Attributes:
        roots: The tensors to quantize.
        refused: Parameter -> why it cannot be quantized although a site uses it.
    """

    flow: Dataflow
    symbols: Mapping[str, int]
    roots: list[Root] = field(default_factory=list)
    refused: dict[Node, str] = field(default_factory=dict)

    def find(self, sites: Iterable[Site]) -> None:
        """Fill ``roots`` and ``refused``."""
        parameters: dict[Node, list[Site]] = defaultdict(list)
        computed: dict[Node, list[Site]] = defaultdict(list)
        for site in sites:
            if site.root.op == "call_function":
                computed[site.root].append(site)
            elif str(site.root.target) in self.flow.model.parameters:
                parameters[site.root].append(site)
        self._find_parameters(parameters)
        self._find_computed(computed)

    def _find_parameters(self, sites: dict[Node, list[Site]]) -> None:
        """One root per stretch of memory: the largest parameter that covers it."""
        regions = {node: Region.of(self.flow.tensor(node)) for node in self.flow.stored}
        pending = sorted(sites, key=lambda node: -regions[node].elements)
        while pending:
            base = pending[0]
            same = [node for node in self.flow.stored if regions[node].overlaps(regions[base])]
            pending = [node for node in pending if node not in same]
            uses = sorted(
                (site for node in same for site in sites.get(node, ())), key=lambda site: site.position
            )
            reason = _why_unusable(base, same, regions)
            if reason is None:
                reason = self._add_parameter(base, same, regions, uses)
            if reason is not None:
                self.refused |= dict.fromkeys((node for node in same if node in sites), reason)

    def _add_parameter(
        self, base: Node, same: list[Node], regions: dict[Node, Region], uses: list[Site]
    ) -> str | None:
        """Add the root of a parameter; a reason if its axes cannot be told."""
        tensor = self.flow.tensor(base)
        ordered = sorted(same, key=lambda node: regions[node].elements != regions[base].elements)
        aliases = {
            node: Alias(
                node=node,
                shape=tuple(self.flow.tensor(node).shape),
                strides=self.flow.tensor(node).stride(),
                offset=regions[node].start - regions[base].start,
            )
            for node in (base, *(node for node in ordered if node is not base))
        }
        root = Root(
            node=base,
            aliases=tuple(aliases.values()),
            shape=tuple(tensor.shape),
            names=tuple(self.flow.qualified_name(node) for node in ordered),
            sources=tuple(same),
            derived=False,
            sites=uses,
        )
        for site in uses:
            axes = self._axes(site, root.shape, tensor.stride(), aliases[site.root])
            if axes is not None:
                root.output_axis, root.group_axis = axes
                self.roots.append(root)
                return None
        return self._add_view(uses, root)

    def _add_view(self, uses: list[Site], root: Root) -> str | None:
        """For a parameter whose axes mean nothing to its operator the reshaped tensor is the unit, if there is one."""
        operands = {site.operand for site in uses}
        operand = uses[0].operand
        if len(operands) > 1 or self.flow.is_live(operand):
            return "it is used reshaped, so that no axis of it is the output-channel axis"
        root.node, root.derived = operand, True
        root.shape = shape_of(operand, self.symbols)
        root.aliases = (Alias(node=operand, shape=root.shape),)
        root.output_axis, root.group_axis = uses[0].output_axis, uses[0].group_axis
        self.roots.append(root)
        return None

    def _axes(
        self, site: Site, shape: tuple[int, ...], strides: tuple[int, ...] | None, alias: Alias
    ) -> tuple[int, int] | None:
        """The site's axes on the root's tensor; ``None`` if there is no such output-channel axis."""
        if not site.path and alias.shape == shape and alias.strides == strides:
            return site.output_axis, site.group_axis
        elements = element_numbers(shape, strides) if len(shape) > 1 else None
        if elements is None:
            return None
        seen = moved(alias.view(elements), site.path, self.symbols)
        if seen is None:
            return None
        output = source_axis(site.output_axis, seen, shape)
        if output is None:
            return None
        group = source_axis(site.group_axis, seen, shape)
        if group is None or group == output:
            group = max((axis for axis in range(len(shape)) if axis != output), key=lambda axis: shape[axis])
        return output, group

    def _find_computed(self, sites: dict[Node, list[Site]]) -> None:
        """One root per distinct computation; what is computed from another root belongs to that root."""
        same = self._equal_constants()
        groups: dict[int, list[Node]] = defaultdict(list)
        for node in self.flow.constants:
            groups[same[node]].append(node)
        seen: set[int] = set()
        for node in self.flow.constants:
            if node not in sites or same[node] in seen:
                continue
            seen.add(same[node])
            twins = groups[same[node]]
            uses = sorted(
                (site for twin in twins for site in sites.get(twin, ())), key=lambda site: site.position
            )
            owner = next(
                (root for root in self.roots if depends_on(self.flow.constants, root.nodes) & set(twins)),
                None,
            )
            if owner is not None:
                owner.sites = sorted([*owner.sites, *uses], key=lambda site: site.position)
            else:
                self._add_computed(node, twins, uses)

    def _add_computed(self, node: Node, twins: list[Node], uses: list[Site]) -> None:
        shape = shape_of(node, self.symbols)
        sources = self._parameters_behind(node)
        if not sources:
            return
        if prod(shape) > sum(self.flow.tensor(source).numel() for source in sources):
            reason = f"{uses[0].operator} takes a weight computed from it that is larger than what it is computed from"
            self.refused |= dict.fromkeys(sources, reason)
            return
        alias = Alias(node=node, shape=shape)
        for site in uses:
            axes = self._axes(site, shape, None, alias)
            if axes is not None:
                break
        else:
            self.refused |= dict.fromkeys(
                sources, "the weight computed from it is used reshaped, without output channels"
            )
            return
        largest = max(sources, key=lambda source: self.flow.tensor(source).numel())
        root = Root(
            node=node,
            aliases=tuple(
                Alias(node=twin, shape=shape) for twin in (node, *(t for t in twins if t is not node))
            ),
            shape=shape,
            names=(_plain_name(self.flow.qualified_name(largest)),),
            sources=tuple(sources),
            derived=True,
            sites=uses,
        )
        root.output_axis, root.group_axis = axes
        self.roots.append(root)

    def _parameters_behind(self, node: Node) -> list[Node]:
        """The floating-point parameters that a constant is computed from, in the order of the signature."""
        found, pending = {node}, [node]
        while pending:
            for source in pending.pop().all_input_nodes:
                if source not in found:
                    found.add(source)
                    pending.append(source)
        return [
            source
            for source in self.flow.stored
            if source in found
            and str(source.target) in self.flow.model.parameters
            and self.flow.tensor(source).is_floating_point()
        ]

    def _equal_constants(self) -> dict[Node, int]:
        """Numbers for constants; equal ones are the same computation of the same stored tensors."""
        numbers: dict[str, int] = {}
        result: dict[Node, int] = {}
        for node in self.flow.stored:
            tensor = self.flow.tensor(node)
            key = f"{Region.of(tensor)} {tensor.shape} {tensor.stride()} {tensor.dtype}"
            result[node] = numbers.setdefault(key, len(numbers))
        for node in self.flow.constants:
            arguments = map_arg((node.args, node.kwargs), lambda source: f"%{result[source]}")
            result[node] = numbers.setdefault(f"{node.target} {arguments}", len(numbers))
        return result


def _why_unusable(base: Node, same: list[Node], regions: dict[Node, Region]) -> str | None:
    region = regions[base]
    if not region.elements:
        return "it is empty"
    if region.elements > region.stop - region.start:
        return "it shows the same memory several times (an expanded tensor)"
    others = [node for node in same if node is not base]
    if any(not region.contains(regions[node]) for node in others) or (others and not region.dense):
        return "it shares a part of its memory with another tensor"
    return None


def _plain_name(name: str) -> str:
    """The name a module shows: ``l.weight`` for ``l.parametrizations.weight.original1`` or ``l.weight_v``."""
    head, marker, tail = name.partition("parametrizations.")
    if marker and ".original" in tail:
        return head + tail.split(".original")[0]
    for suffix in ("_v", "_orig"):  # torch.nn.utils.weight_norm, spectral_norm and prune
        if name.endswith(f"weight{suffix}"):
            return name.removesuffix(suffix)
    return name
