"""In-place operators become functional ones, so that no value ever changes once computed.

Measuring re-runs suffixes of the graph on shared values; an operator that writes into one of them would spoil
the runs that follow. Exports of ordinary models do contain such operators: ``relu_`` on a fresh value, ``+=``
on a residual, ``x[:, 0] = y`` through views. Reading the graph in order, each write makes a new version of the
memory that was written: the view's new value is put back into the value it is a view of (``slice_scatter`` and
the like), and views that are used later are taken afresh.
"""

import operator
from collections.abc import Callable, Collection
from typing import Any, Final

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from workers.intake.operators import IN_PLACE, may_alias, schema_of
from workers.intake.refusals import refuse

_ATEN: Final = torch.ops.aten
# In-place operators that change nothing in evaluation.
_IDENTITIES: Final = frozenset(
    {
        _ATEN.detach_.default,
        _ATEN.dropout_.default,
        _ATEN.alpha_dropout_.default,
        _ATEN.feature_dropout_.default,
        _ATEN.feature_alpha_dropout_.default,
    }
)
_LOGICAL: Final = frozenset(
    twin
    for twin in IN_PLACE.values()
    if str(twin)
    .removeprefix("aten.")
    .partition(".")[0]
    .startswith(("eq", "ne", "lt", "le", "gt", "ge", "greater", "less", "not_equal", "logical"))
)
_DEEPEST_VIEW: Final = 64
_MOST_WORK: Final = 2_000_000
# What one more node counts, in steps of a loop.
_EMITTED: Final = 100


def functionalize(graph: Graph, stored: Collection[str]) -> None:
    """Rewrite a graph so that no operator writes into its arguments.

    Args:
        graph: Changed in place; nodes need their declared ``meta["dtype"]``.
        stored: Names of the placeholders that are parameters, buffers or constants.

    Raises:
        ModelRefused: A write into a parameter or a buffer, or through views that cannot be followed.
    """
    if any(node.target in IN_PLACE for node in graph.nodes):
        _Functionalizer(graph, frozenset(stored)).run()


class _Functionalizer:
    """One pass over a graph.

    A *value* is the node that first computed a tensor; the result of an in-place operator is the same value. Values
    that are exact views lead to what they are views of, up to a *root*. Each write gives the root a new version;
    ``_current`` holds the node that has a value's present content, and the version it belongs to.
    """

    def __init__(self, graph: Graph, stored: frozenset[str]) -> None:
        self._graph = graph
        self._stored = stored
        self._nodes = list(graph.nodes)
        self._position = {node: i for i, node in enumerate(self._nodes)}
        self._same: dict[Node, Node] = {}
        self._view_of: dict[Node, Node] = {}
        self._root: dict[Node, Node] = {}
        self._depth: dict[Node, int] = {}
        self._group: dict[Node, list[Node]] = {}
        self._last_use: dict[Node, int] = {}
        self._version: dict[Node, int] = {}
        self._current: dict[Node, tuple[Node, int]] = {}
        self._work = 0

    def run(self) -> None:
        """Find aliases, then rewrite in order."""
        for node in self._nodes:
            self._find_aliases(node)
        for node in self._nodes:
            with self._graph.inserting_before(node):
                if node in self._same:
                    if node.target not in _IDENTITIES:
                        self._write(node)
                else:
                    self._resolve_arguments(node)
                    self._current[node] = node, self._version.get(self._root[node], 0)
        for node in reversed(self._nodes):
            if node in self._same:
                self._graph.erase_node(node)

    def _value(self, node: Node) -> Node:
        return self._same.get(node, node)

    def _find_aliases(self, node: Node) -> None:
        for argument in node.all_input_nodes:
            self._last_use[self._value(argument)] = self._position[node]
        if node.target in IN_PLACE:
            self._same[node] = self._value(_first(node))
            return
        self._group[node] = [node]
        self._root[node], self._depth[node] = node, 0
        alias = may_alias(node.target) if node.op == "call_function" else False
        if alias is None and _changes_type(node):
            alias = False
        if node.target is operator.getitem:
            # Picking from the pieces of one tensor is a view; picking from several results is not.
            alias = may_alias(_first(node).target)
        if alias:
            parent = self._value(_first(node))
            self._view_of[node] = parent
            self._root[node], self._depth[node] = self._root[parent], self._depth[parent] + 1
            self._join(node, parent)
        elif alias is None:
            for argument in node.all_input_nodes:
                self._join(node, self._value(argument))

    def _join(self, one: Node, other: Node) -> None:
        small, large = sorted((self._group[one], self._group[other]), key=len)
        if small is not large:
            large.extend(small)
            self._group.update(dict.fromkeys(small, large))

    def _resolve(self, value: Node) -> Node:
        """The node that holds a value now; a view of memory written since it was taken is taken again."""
        version = self._version.get(self._root[value], 0)
        current, known = self._current[value]
        if known != version:
            if self._depth[value] > _DEEPEST_VIEW:
                raise _untraceable(value, f"a chain of {self._depth[value]} views")
            self._count(value, _EMITTED)
            parent = self._resolve(self._view_of[value])
            current = self._graph.node_copy(value, lambda argument: argument)
            current.args = (parent, *current.args[1:])
            self._current[value] = current, version
        return current

    def _resolve_arguments(self, node: Node) -> None:
        def now(argument: Node) -> Node:
            return self._resolve(self._value(argument))

        node.args, node.kwargs = map_arg(node.args, now), map_arg(node.kwargs, now)

    def _write(self, node: Node) -> None:
        """Replace one in-place operator by its twin, and put the result into whatever shares the memory."""
        target = self._same[node]
        shared = self._check(node, target)
        self._resolve_arguments(node)
        name = node.name.strip("_") or None
        result = self._graph.create_node("call_function", IN_PLACE[node.target], node.args, node.kwargs, name)
        updates = {target: self._cast(_described(result, node), node, target)}
        value = target
        while shared and value in self._view_of:
            parent = self._view_of[value]
            updates[parent] = self._put_back(node, value, updates[value], self._resolve(parent))
            value = parent
        root = self._root[target]
        self._version[root] = self._version.get(root, 0) + 1
        for changed, now in updates.items():
            self._current[changed] = now, self._version[root]

    def _check(self, node: Node, target: Node) -> bool:
        """Whether another value that shares the memory is used after the write; refuse what cannot be followed."""
        position = self._position[node]
        group = self._group[target]
        self._count(node, len(group))
        before = [value for value in group if self._position[value] < position]
        stored = next((v for v in before if v.op == "placeholder" and v.name in self._stored), None)
        if stored is not None:
            raise refuse(
                "training-mode",
                f"node {node.name!r} writes into the stored tensor {stored.name!r}, as training does; "
                "call .eval() before exporting",
                field=node.name,
                value=str(node.target),
                allowed="models that change nothing when they run",
            )
        shared = [v for v in before if v is not target and self._last_use.get(v, -1) > position]
        if any(self._root[v] is not self._root[target] for v in shared):
            raise _untraceable(node, "a value that may or may not share memory with another")
        return bool(shared)

    def _count(self, node: Node, work: int) -> None:
        """Bound what a graph of writes and views can cost."""
        self._work += work
        if self._work > _MOST_WORK:
            raise _untraceable(node, "too many views of the same memory")

    def _cast(self, result: Node, node: Node, target: Node) -> Node:
        """A write keeps the type of what it writes to, whatever the types of the other operands."""
        dtype = target.meta["dtype"]
        others = {argument.meta.get("dtype", dtype) for argument in node.all_input_nodes}
        if others == {dtype} and IN_PLACE[node.target] not in _LOGICAL:
            return result
        del result.meta["dtype"]  # known only once it has been computed
        return _described(self._graph.call_function(_ATEN.to.dtype, (result, dtype)), node)

    def _put_back(self, node: Node, view: Node, updated: Node, parent: Node) -> Node:
        """The value a view was taken of, with the view's new content in it."""
        rule = _PUT_BACK.get(view.target)
        if rule is None:
            raise _untraceable(node, f"a view taken by {view.target}")
        self._count(node, _EMITTED)
        names = [argument.name for argument in schema_of(view.target).arguments]
        given = {**dict(zip(names, view.args, strict=False)), **view.kwargs}
        target, args = rule(given, parent, updated)
        return _described(self._graph.call_function(target, args), self._view_of[view])


def _put_back_slice(given: dict[str, Any], parent: Node, updated: Node) -> tuple[Any, tuple[Any, ...]]:
    bounds = (given.get("dim", 0), given.get("start"), given.get("end"), given.get("step", 1))
    return _ATEN.slice_scatter.default, (parent, updated, *bounds)


def _put_back_diagonal(given: dict[str, Any], parent: Node, updated: Node) -> tuple[Any, tuple[Any, ...]]:
    axes = (given.get("offset", 0), given.get("dim1", 0), given.get("dim2", 1))
    return _ATEN.diagonal_scatter.default, (parent, updated, *axes)


def _put_back_permuted(given: dict[str, Any], _parent: Node, updated: Node) -> tuple[Any, tuple[Any, ...]]:
    # Whatever else stands there has no inverse; the dry run refuses it with the view itself.
    dims = [dim % len(given["dims"]) for dim in given["dims"] if isinstance(dim, int)]
    return _ATEN.permute.default, (updated, sorted(range(len(dims)), key=dims.__getitem__))


def _put_back_shaped(_given: dict[str, Any], parent: Node, updated: Node) -> tuple[Any, tuple[Any, ...]]:
    return _ATEN.reshape_as.default, (updated, parent)


_PUT_BACK: Final[dict[Any, Callable[[dict[str, Any], Node, Node], tuple[Any, tuple[Any, ...]]]]] = {
    _ATEN.slice.Tensor: _put_back_slice,
    _ATEN.diagonal.default: _put_back_diagonal,
    _ATEN.permute.default: _put_back_permuted,
    _ATEN.select.int: lambda g, parent, v: (_ATEN.select_scatter.default, (parent, v, g["dim"], g["index"])),
    _ATEN.transpose.int: lambda g, _, v: (_ATEN.transpose.int, (v, g["dim0"], g["dim1"])),
    _ATEN.t.default: lambda _g, _p, v: (_ATEN.t.default, (v,)),
    **dict.fromkeys(
        (
            _ATEN.alias.default,
            _ATEN.detach.default,
            _ATEN.view.default,
            _ATEN.view_as.default,
            _ATEN.unsqueeze.default,
            _ATEN.squeeze.default,
            _ATEN.squeeze.dim,
            _ATEN.squeeze.dims,
            _ATEN.unflatten.int,
        ),
        _put_back_shaped,
    ),
}


def _changes_type(node: Node) -> bool:
    """Whether a node has another type than its first argument: then its memory cannot be the same."""
    before = node.all_input_nodes[0].meta.get("dtype") if node.all_input_nodes else None
    return "dtype" in node.meta and before is not None and before is not node.meta["dtype"]


def _first(node: Node) -> Node:
    """The argument an in-place operator writes to, or a view is taken of."""
    first = node.args[0] if node.args else None
    if not isinstance(first, Node):
        raise refuse(
            "invalid-arguments",
            f"node {node.name!r} writes to, or is a view of, something that is no tensor",
            field=node.name,
            value=str(node.target),
            allowed="a tensor as first argument",
        )
    return first


def _described(result: Node, like: Node) -> Node:
    result.meta.update({key: like.meta[key] for key in ("shape", "dtype") if key in like.meta})
    return result


def _untraceable(node: Node, what: str) -> Exception:
    return refuse(
        "aliased-mutation",
        f"node {node.name!r} ({node.target}) writes into memory that other values see, through {what}; "
        "rewrite that assignment as torch.where, torch.cat or another operation that makes a new tensor",
        field=node.name,
        value=str(node.target),
        allowed="writes that can be followed",
    )
