"""Documents as tables for the terminal. Numbers and words are the report's, so that page and terminal agree."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from app.report import quantities, words
from app.report.summary import candidate_words, counts_operations, limit_rows

Document = Mapping[str, Any]


def table(title: str, *columns: str) -> Table:
    """An empty table; a column whose name begins with ``>`` is aligned to the right."""
    made = Table(
        title=title, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False
    )
    for column in columns:
        name = column.removeprefix(">")
        made.add_column(name, justify="right" if column.startswith(">") else "left", overflow="fold")
    return made


def result(document: Document) -> RenderableType:
    """A finished search: plans next to uniform ones, certificate, bits of each unit."""
    parts: list[RenderableType] = [
        plans(document),
        Text(),
        Text("Certificate: ", style="bold").append(words.certificate_words(document), style="not bold"),
        _bound(document),
        *(Text(f"{label}: {text}.") for label, text in limit_rows(handed_over(document))),
        Text(),
        choices(document),
        Text(),
        choices_summary(document),
    ]
    return Group(*parts)


def handed_over(document: Document) -> dict[str, Any]:
    """The plan of a result's first budget."""
    return next(iter(document.get("plans", [])), {})


def unfinished(document: Document) -> RenderableType:
    """A search that has no plan yet: how far it is and what is known."""
    known = document.get("sensitivities", [])
    heading = quantities.heading(str(document["settings"]["predicts"]))
    shown = table("Known so far", "Unit", "Candidate", f">{heading}", ">Standard error", "Source")
    for row in known:
        shown.add_row(
            escape(row["unit"]),
            candidate_words(row),
            quantities.number(row["mean"]),
            quantities.number(row["standard_error"], 2),
            row["source"],
        )
    measured = sum(row["source"] == "measured" for row in known)
    return Group(
        Text(
            f"{document['job']} is {document['state']}; {measured} entries are measured, {len(known) - measured} estimated."
        ),
        shown,
    )


def plans(document: Document) -> Table:
    """Requested plans and uniform baselines, by size."""
    metric = str(document["settings"]["compare"])
    heading = quantities.heading(metric)
    held_out = document.get("evaluation") is not None
    where = "evaluation" if held_out else "calibration"
    operations = counts_operations(document)
    rows = [*document.get("plans", []), *document.get("baselines", [])]
    classes = any("top1_agreement" in (row.get("measured") or {}) for row in rows)
    shown = table(
        "Plans, measured on the whole model with all units quantized together",
        "Plan", ">Average", ">Weights", ">File", *([">Bit operations"] if operations else []),
        f">{heading}: predicted", f">measured ± std. error, {where}",
        *([">Top-1 agreement"] if classes else []),
    )  # fmt: skip
    for row in sorted(rows, key=lambda plan: plan.get("size_bits") or 0):
        requested = row.get("role") == "requested"
        shown.add_row(
            escape(_plan_name(row)),
            quantities.average_bits(row.get("average_bits")),
            quantities.size(row.get("size_bits")),
            quantities.size(row.get("file_size_bits")),
            *([quantities.operations(row.get("bit_operations"))] if operations else []),
            quantities.number((row.get("predicted") or {}).get(metric)),
            _measured(row, metric, where),
            *([_measured(row, "top1_agreement", where, digits_of="percent")] if classes else []),
            style="bold green" if requested else "",
        )
    return shown


def choices(document: Document) -> Table:
    """The bits of each unit, in execution order, with what the choice costs."""
    metric = str(document["settings"]["predicts"])
    costs = {(row["unit"], candidate_words(row)): row["mean"] for row in document.get("sensitivities", [])}
    chosen_of = {unit: candidate_words(choice) for unit, choice in document.get("choices", {}).items()}
    bits = {unit: choice["bits"] for unit, choice in document.get("choices", {}).items()}
    several = len({choice["scheme"] for choice in document.get("choices", {}).values()}) > 1
    total = sum(abs(costs.get(item, 0.0)) for item in chosen_of.items()) or 1.0
    shown = table(
        f"Bits for each unit at a budget of {document.get('budget')}",
        "Unit", "Operator", "Shape", ">Weights", ">Bits", "", f">{quantities.heading(metric)}", ">Share",
    )  # fmt: skip
    for unit in document.get("units", []):
        chosen = bits.get(unit["name"])
        words = chosen_of.get(unit["name"], "float")
        cost = costs.get((unit["name"], words))
        shown.add_row(
            escape(unit["name"]),
            unit["operator"],
            _shape(unit["shape"]),
            quantities.count(unit["weights"]),
            words if several else words.partition(" · ")[0],
            "▪" * (chosen or 0),
            quantities.number(cost),
            quantities.NOTHING if cost is None else quantities.percent(abs(cost) / total),
        )
    return shown


def choices_summary(document: Document) -> Table:
    """How many units and weights got which bit-width."""
    weights = {unit["name"]: unit["weights"] for unit in document.get("units", [])}
    units: Counter[int] = Counter()
    counts: Counter[int] = Counter()
    for unit, choice in document.get("choices", {}).items():
        units[choice["bits"]] += 1
        counts[choice["bits"]] += weights.get(unit, 0)
    shown = table("Bit-widths in use", ">Bits", ">Units", ">Weights", ">Of all weights")
    total = sum(counts.values()) or 1
    for bits in sorted(units):
        share = quantities.percent(counts[bits] / total)
        shown.add_row(str(bits), str(units[bits]), quantities.count(counts[bits]), share)
    return shown


def model(document: Document) -> RenderableType:
    """A model's units, and what stays in float."""
    shown = table("", "Unit", "Operator", "Shape", ">Weights", ">Axis", ">MACs", ">Inputs", "Tied with")
    for unit in document["units"]:
        shown.add_row(
            escape(unit["name"]) + (" [dim](computed)[/]" if unit.get("derived") else ""),
            unit["operator"],
            _shape(unit["shape"]),
            quantities.count(unit["weights"]),
            str(unit["output_channel_axis"]),
            quantities.count(unit["macs"]),
            str(unit["activations"]),
            escape(", ".join(unit["tied"])),
        )
    head = Text.assemble(
        (str(document.get("name", "")), "bold"),
        f": {len(document['units'])} units, {quantities.count(document['weights'])} weights, "
        f"{quantities.size(document['float_bits'])} in float; "
        + (
            "any batch"
            if document["batch_size"] is None
            else f"always {document['batch_size']} samples at once"
        ),
    )
    inputs = [_tensor(i) for i in document["inputs"]]
    outputs = [f"{number}: {_tensor(o)}" for number, o in enumerate(document["outputs"])]
    parts: list[RenderableType] = [
        head,
        Text("inputs: " + "; ".join(inputs)),
        Text("outputs: " + "; ".join(outputs)),
        shown,
    ]
    if document["unsupported"]:
        parts += [Text(), unsupported(document["unsupported"])]
    return Group(*parts)


def unsupported(rows: Iterable[Document]) -> Table:
    """What stays in float, and why."""
    shown = table("Stays in float", "Weight", "Operator", "Shape", "Reason")
    for row in rows:
        shown.add_row(escape(row["name"]), row["operator"], _shape(row["shape"]), escape(row["reason"]))
    return shown


def jobs(documents: Sequence[Document]) -> Table:
    """Jobs, one in a row."""
    shown = table("", "Job", "State", "Progress", "Name", "Created")
    for job in documents:
        progress = job.get("progress") or {}
        fraction = progress.get("fraction")
        where = f"{progress.get('stage', '')} {quantities.percent(fraction) if fraction is not None else ''}".strip()
        shown.add_row(
            job["id"], job["state"], where, escape(str(job.get("name") or "")), str(job.get("created_at", ""))
        )
    return shown


def _plan_name(plan: Document) -> str:
    if plan.get("role") == "requested":
        return f"Bitwright, {plan.get('budget')}"
    return str(plan.get("name", "plan"))


def _measured(plan: Document, metric: str, where: str, *, digits_of: str = "number") -> str:
    value = ((plan.get("measured") or {}).get(metric) or {}).get(where)
    error = ((plan.get("measured_standard_error") or {}).get(metric) or {}).get(where)
    if value is not None and digits_of == "percent":
        return quantities.percent(value)
    return quantities.metric_with_error(value, error, metric)


def _bound(plan: Document) -> Text:
    objective, bound = plan.get("objective"), plan.get("lower_bound")
    unit = quantities.measure(str(plan["settings"]["predicts"])).unit
    joint = (plan.get("solver") or {}).get("interactions")
    with_pairs = (
        f"Predicted with interactions {quantities.number(joint['objective'], 6)} {unit}. " if joint else ""
    )
    return Text(
        f"{with_pairs}Objective {quantities.number(objective, 6)} {unit}, lower bound {quantities.number(bound, 6)} {unit}, "
        f"relative gap {words.gap_words(plan)}."
    )


def _shape(sizes: Sequence[int]) -> str:
    return quantities.shape(list(sizes)).replace(" ", "")


def _tensor(value: Document) -> str:
    return f"{value['name']} {value['dtype']} [{', '.join(_sizes(value['shape']))}]"


def _sizes(shape: Sequence[int | None]) -> list[str]:
    return ["any" if size is None else str(size) for size in shape]
