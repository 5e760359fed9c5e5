"""The graph of a file as an FX graph over allowed operators."""

import operator
import re
from dataclasses import dataclass, field
from typing import Any, Final

from torch._ops import OpOverload
from torch.fx import Graph, Node

from workers.intake.arguments import DROPPED, ArgumentReader
from workers.intake.jsontext import Json
from workers.intake.limits import Limits
from workers.intake.operators import EVALUATION, TARGETS, Target, is_assertion, schema_of, why_refused
from workers.intake.refusals import refuse
from workers.intake.signature import Input
from workers.intake.tensor_meta import MetaReader

_NAME: Final = re.compile(r"[A-Za-z_]\w*", re.ASCII)
# A power of numbers is computed at once, however large; sizes need no more than this.
_LARGEST_POWER: Final = 8
_NOT_OURS: Final = ("device", "layout", "pin_memory")
_REGION: Final = "torch.ops.higher_order."
# Regions of the source that change nothing in evaluation -> (arguments before the graph, which one must be what).
_REGIONS: Final[dict[str, tuple[int, int | None]]] = {
    f"{_REGION}wrap_with_set_grad_enabled": (1, None),
    f"{_REGION}wrap_with_autocast": (4, 2),
}


@dataclass(kw_only=True)
class _Body:
    """One graph of the file: the outer one, or a region within it."""

    json: Json
    nodes: dict[str, Node] = field(default_factory=dict)


class GraphReader:
    """Reads the graph of a model; the result is in `graph`.

    Args:
        limits: Bounds.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._count = 0
        self.metas = MetaReader(limits)
        self.graph = Graph()

    def read(self, json: Json, inputs: list[Input]) -> None:
        """Read the outer graph.

        Raises:
            ModelRefused: An operator, an argument or a structure that is not allowed.
        """
        body = _Body(json=json)
        self._check_inputs(json["inputs"], inputs)
        for item in inputs:
            if item.kind != "constant_input":
                name = self._name(item.name, json.where)
                node = self._describe(self.graph.placeholder(name), body, name)
                node.name = name
        outputs = self._operations(body)
        tensors = tuple(node for node in outputs if "shape" in node.meta)
        if not tensors:
            raise refuse(
                "no-output",
                "the model returns no tensor",
                field="graph.outputs",
                allowed="one or more tensors",
            )
        self.graph.output(tensors)

    def _check_inputs(self, json: Json, inputs: list[Input]) -> None:
        listed = list(json.items())
        kept = [i.name for i in inputs if i.kind != "constant_input"]
        given = [
            value["name"].text() for kind, value in (item.union() for item in listed) if kind == "as_tensor"
        ]
        if len(listed) != len(inputs) or given != kept or len(set(kept)) != len(kept):
            raise refuse(
                "signature",
                "the graph's inputs and the model's signature do not agree",
                field=json.where,
                value=len(listed),
                allowed=f"the {len(inputs)} inputs of the signature, in order, each once",
            )

    def _operations(self, body: _Body) -> list[Node]:
        """Read all nodes of a body; its tensor results."""
        arguments = ArgumentReader(body.nodes, self.metas, self._limits)
        for kind in ("sym_int_values", "sym_bool_values", "sym_float_values"):
            for _, value in body.json[kind].fields():
                if value.has("as_expr"):
                    self.metas.expression(value)
        for node in body.json["nodes"].items():
            self._operation(node, body, arguments)
        results = [arguments.read(item) for item in body.json["outputs"].items()]
        return [node for node in results if isinstance(node, Node)]

    def _operation(self, json: Json, body: _Body, arguments: ArgumentReader) -> None:
        name = json["target"].text()
        where = json["name"].text() if json.has("name") else json.where
        if is_assertion(name):
            return
        if name in _REGIONS:
            self._region(name, where, json, body, arguments)
            return
        target = TARGETS.get(name)
        if target is None:
            rule, why = why_refused(name)
            raise refuse(
                rule,
                f"the operator {name!r} of node {where!r} is not accepted: {why}",
                field=where,
                value=name,
                allowed="operators of ATen that compute values from values",
            )
        args, kwargs = self._arguments(target, json, where, arguments)
        self._check_evaluation(target, args, kwargs, where)
        self._results(self._call(target, args, kwargs, where), json, body)

    def _call(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> Node:
        self._count += 1
        if self._count > self._limits.max_nodes:
            raise refuse(
                "too-many-nodes",
                f"the graph has more than {self._limits.max_nodes} nodes",
                field=name,
                allowed=f"at most {self._limits.max_nodes}",
            )
        label = name if _NAME.fullmatch(name) and len(name) <= self._limits.max_name_length else None
        return self.graph.create_node("call_function", target, args, kwargs, name=label)

    def _arguments(
        self, target: Target, json: Json, where: str, arguments: ArgumentReader
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments in the order of the operator's schema."""
        given: dict[str, Any] = {}
        positional: list[Any] = []
        for item in json["inputs"].items():
            name, value = item["name"].text(), arguments.read(item["arg"])
            if name in given:
                raise _misused(where, name, "is given twice")
            given[name] = value
            positional.append(value)
        if not isinstance(target, OpOverload):
            if target is operator.pow and not (
                type(positional[-1]) is int and 0 <= positional[-1] <= _LARGEST_POWER
            ):
                raise _misused(where, "b", f"is not a number from 0 to {_LARGEST_POWER}")
            return tuple(positional), {}
        return _fit(target, given, where)

    def _check_evaluation(
        self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], where: str
    ) -> None:
        """Refuse operators in training mode."""
        rule = EVALUATION.get(target)
        if rule is None:
            return
        name, wanted = rule
        schema = [a.name for a in schema_of(target).arguments]
        position = schema.index(name)
        value = kwargs.get(name, args[position] if position < len(args) else wanted)
        if isinstance(value, Node) or value != wanted:
            raise refuse(
                "training-mode",
                f"node {where!r} runs in training mode ({name}={value}); call .eval() before exporting",
                field=where,
                value=str(value),
                allowed=f"{name}={wanted}",
            )

    def _results(self, node: Node, json: Json, body: _Body) -> None:
        """Name the results of a node; several results are picked out by ``operator.getitem``."""
        outputs = [item.union() for item in json["outputs"].items()]
        if len(outputs) == 1 and outputs[0][0] != "as_tensors":
            self._result(node, outputs[0], body)
            return
        if len(outputs) == 1:
            outputs = [("as_tensor", item) for item in outputs[0][1].items()]
        for index, output in enumerate(outputs):
            if output[0] != "as_none":
                picked = self._call(operator.getitem, (node, index), {}, f"{node.name}_{index}")
                self._result(picked, output, body)

    def _result(self, node: Node, output: tuple[str, Json], body: _Body) -> None:
        kind, value = output
        if kind == "as_none":
            return
        if kind not in ("as_tensor", "as_sym_int", "as_sym_float", "as_sym_bool"):
            raise refuse(
                "output-kind",
                f"node {node.name!r} has a result of kind {kind!r}",
                field=node.name,
                value=kind,
            )
        name = value["name" if kind == "as_tensor" else "as_name"].text()
        if kind == "as_tensor":
            self._describe(node, body, name)
        else:
            self._define(node, body, name)

    def _describe(self, node: Node, body: _Body, name: str) -> Node:
        """Attach the declared shape and type of a tensor, and make its name known."""
        meta = self.metas.tensor(body.json["tensor_values"][name])
        node.meta["shape"], node.meta["dtype"] = meta.shape, meta.dtype
        return self._define(node, body, name)

    def _define(self, node: Node, body: _Body, name: str) -> Node:
        if name in body.nodes:
            raise refuse(
                "duplicate-value",
                f"two nodes compute {name!r}",
                field=name,
                value=name,
                allowed="every name once",
            )
        body.nodes[name] = node
        return node

    def _region(self, target: str, where: str, json: Json, body: _Body, arguments: ArgumentReader) -> None:
        """Put the nodes of a wrapped region (no gradients, no automatic casts) in the place of the region."""
        leading, must_be_off = _REGIONS[target]
        items = [item["arg"] for item in json["inputs"].items()]
        if len(items) <= leading or not items[leading].has("as_graph"):
            raise _misused(where, "graph", "is missing")
        if must_be_off is not None and arguments.read(items[must_be_off]) is not False:
            raise refuse(
                "automatic-casts",
                f"node {where!r} runs under torch.autocast; export the model without it",
                field=where,
                value=target,
                allowed="autocast regions that are switched off",
            )
        inner = _Body(json=items[leading]["as_graph"]["graph"])
        values = [arguments.read(item) for item in items[leading + 1 :]]
        names = [_bound_name(item) for item in inner.json["inputs"].items()]
        if len(names) != len(values):
            raise _misused(where, "graph", f"takes {len(names)} values and gets {len(values)}")
        for name, value in zip(names, values, strict=True):
            if isinstance(value, Node):
                self._define(value, inner, name)
        self._region_results(where, self._operations(inner), json, body)

    def _region_results(self, where: str, results: list[Node], json: Json, body: _Body) -> None:
        outputs = [item.union() for item in json["outputs"].items()]
        if len(outputs) == 1 and outputs[0][0] == "as_tensors":
            outputs = [("as_tensor", item) for item in outputs[0][1].items()]
        if len(outputs) != len(results):
            raise _misused(where, "graph", f"returns {len(results)} values where {len(outputs)} are named")
        for node, (kind, value) in zip(results, outputs, strict=True):
            self._define(node, body, value["name" if kind == "as_tensor" else "as_name"].text())

    def _name(self, name: str, where: str) -> str:
        if not _NAME.fullmatch(name) or len(name) > self._limits.max_name_length:
            raise refuse(
                "value-name",
                f"{where} has an input named {name!r}",
                field=where,
                value=name,
                allowed=f"an identifier of at most {self._limits.max_name_length} characters",
            )
        return name


def _fit(target: OpOverload, given: dict[str, Any], where: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arrange named arguments by an operator's schema; devices, layouts and pinning are left out."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    given = {k: v for k, v in given.items() if k not in _NOT_OURS and v is not DROPPED}
    skipped = False
    for argument in schema_of(target).arguments:
        if argument.name not in given:
            if not argument.has_default_value():
                raise _misused(where, argument.name, "is missing")
            skipped = True
            continue
        value = given.pop(argument.name)
        if skipped or argument.kwarg_only:
            kwargs[argument.name] = value
        else:
            args.append(value)
    if given:
        raise _misused(where, next(iter(given)), f"is no argument of {target}")
    return tuple(args), kwargs


def _bound_name(json: Json) -> str:
    kind, value = json.union()
    if kind == "as_tensor":
        return value["name"].text()
    return value["as_name"].text() if value.object().get("as_name") is not None else ""


def _misused(where: str, argument: str, why: str) -> Exception:
    return refuse(
        "invalid-arguments",
        f"the argument {argument!r} of node {where!r} {why}",
        field=where,
        value=argument,
        allowed="the operator's own arguments",
    )
