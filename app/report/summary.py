"""What is read off a result document: rows of tables, comparisons, shares. Pure; templates only lay it out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.report import quantities
from app.report.words import measured_cost, output_words

METHODS = {
    "auto": "estimated, then measured where that could change a plan",
    "kl": "all measured",
    "mse": "all measured",
    "loss": "all measured",
}
"""How costs are come by, in words; estimators go by their names."""
Plan = dict[str, Any]
Result = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A plan next to the best uniform plan of at most its budget.

    Args:
        uniform: The uniform plan with the least measured cost among those that fit.
        factor: Measured cost of the uniform plan over that of the plan; above 1 the plan is better.
    """

    uniform: Plan
    factor: float


@dataclass(frozen=True, kw_only=True)
class ChoiceRow:
    """One unit of a plan.

    Args:
        unit: The unit's description (name, operator, shape, weights, …).
        bits: Chosen bit-width; ``None`` when the unit stays in float.
        activation_bits: That of its inputs; ``None`` when they stay in float.
        scheme: Chosen quantizer.
        cost: Predicted cost of the choice alone, in the metric's unit; ``None`` when not known.
        standard_error: Of ``cost``.
        share: Part of the plan's predicted cost, in [0, 1]; ``None`` when the cost is negative or not known.
        size_bits: Weights times bits.
    """

    unit: dict[str, Any]
    bits: int | None
    activation_bits: int | None
    scheme: str
    cost: float | None
    standard_error: float | None
    share: float | None
    size_bits: int | None


def candidate_words(candidate: dict[str, Any]) -> str:
    """A candidate in words: ``4 · channel-asymmetric``, or ``4/a8 · channel-asymmetric`` with 8-bit activations.

    Args:
        candidate: A choice or a sensitivity: `bits`, `scheme`, and `activation_bits` where these are quantized.
    """
    activation = candidate.get("activation_bits")
    return f"{candidate['bits']}{'' if activation is None else f'/a{activation}'} · {candidate['scheme']}"


def metric_of(result: Result) -> str:
    """The metric that the search minimises, and that plans are judged by."""
    return str(result["settings"]["compare"])


def metrics_of(result: Result) -> list[str]:
    """All measured metrics: the job's own first, then the others in the order of the document."""
    own = metric_of(result)
    found = [m for plan in (*result["plans"], *result["baselines"]) for m in plan.get("measured") or ()]
    return [own, *dict.fromkeys(m for m in found if m != own)]


def parts_of(result: Result) -> list[str]:
    """On which data plans were measured: ``calibration``, and ``evaluation`` where there is any."""
    plans = (*result["plans"], *result["baselines"])
    values = [v for plan in plans for v in (plan.get("measured") or {}).values()]
    has_evaluation = any(v.get("evaluation") is not None for v in values)
    return ["calibration", "evaluation"] if has_evaluation else ["calibration"]


def featured(result: Result, plan_id: str | None = None) -> Plan | None:
    """The plan a page is about: the one asked for, else that of the first budget."""
    plans = [*result["plans"], *result["baselines"]]
    if plan_id is not None:
        return next((p for p in plans if p["id"] == plan_id), None)
    return plans[0] if result["plans"] else None


def counts_operations(result: Mapping[str, Any]) -> bool:
    """Whether bit operations tell plans apart by more than their sizes do: activations are quantized, or they are limited."""
    settings = result["settings"]
    return bool(settings.get("activation_candidates") or settings.get("limits"))


def limit_rows(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Each further limit of a plan: its name, and what the searched units take of how much."""
    limits = (plan.get("spec") or {}).get("limits") or {}
    takes = (plan.get("solver") or {}).get("limited") or {}
    return [
        (name.replace("_", " ").capitalize(), f"{quantities.operations(takes.get(name))} of {text}")
        for name, text in limits.items()
    ]


def by_size(result: Result) -> list[Plan]:
    """Requested and uniform plans, smallest first; a requested one before a uniform one of its size."""
    rank = {"requested": 0}
    return sorted(
        (*result["plans"], *result["baselines"]), key=lambda p: (p["size_bits"] or 0, rank.get(p["role"], 1))
    )


def against_uniform(result: Result, plan: Plan) -> Comparison | None:
    """The plan next to the best measured uniform plan that fits its budget; ``None`` without one to compare."""
    metric = metric_of(result)
    on_file = result["settings"].get("budget_counts") == "file"
    size = "file_size_bits" if on_file else "size_bits"
    limit = plan.get("budget_bits") or plan.get(size)
    own = measured_cost(plan.get("measured"), metric)
    fitting = [
        (cost, uniform)
        for uniform in result["baselines"]
        if (cost := measured_cost(uniform.get("measured"), metric)) is not None
        and limit is not None
        and uniform.get(size) is not None
        and uniform[size] <= limit
    ]
    if own is None or own <= 0 or not fitting:
        return None
    cost, uniform = min(fitting, key=lambda pair: pair[0])
    return Comparison(uniform=uniform, factor=cost / own)


def choice_rows(result: Result, plan: Plan) -> list[ChoiceRow]:
    """The plan, unit by unit in execution order, with each choice's share of the predicted cost."""
    metric = result["settings"]["predicts"]
    entries = {(e["unit"], candidate_words(e)): e for e in result["sensitivities"] if e["metric"] == metric}
    chosen = {
        unit["name"]: entries.get((unit["name"], candidate_words(choice)))
        for unit in result["units"]
        if (choice := plan["choices"].get(unit["name"]))
    }
    total = sum(max(e["mean"], 0.0) for e in chosen.values() if e is not None)
    return [
        _choice_row(unit, plan["choices"].get(unit["name"]), chosen.get(unit["name"]), total)
        for unit in result["units"]
    ]


def _choice_row(
    unit: dict[str, Any], choice: dict[str, Any] | None, entry: dict[str, Any] | None, total: float
) -> ChoiceRow:
    cost = None if entry is None else float(entry["mean"])
    return ChoiceRow(
        unit=unit,
        bits=choice["bits"] if choice else None,
        activation_bits=choice.get("activation_bits") if choice else None,
        scheme=choice["scheme"] if choice else "",
        cost=cost,
        standard_error=entry.get("standard_error") if entry else None,
        share=cost / total if cost is not None and cost >= 0 and total > 0 else None,
        size_bits=unit["weights"] * choice["bits"] if choice else None,
    )


def settings_rows(result: Result) -> list[tuple[str, str]]:
    """The settings as label and text, those that say nothing left out."""
    settings = result["settings"]
    pins = ", ".join(f"{unit} at {bits} bits" for unit, bits in (settings.get("pins") or {}).items())
    ties = "; ".join(" = ".join(group) for group in settings.get("ties") or ())
    counts = {"weights": "the searched weights", "file": "the whole file"}
    rows = {
        "Candidates": ", ".join(map(str, settings["candidates"])) + " bits",
        "Activations": ", ".join(map(str, settings.get("activation_candidates") or ()))
        + (" bits" if settings.get("activation_candidates") else ""),
        "Quantizers": quantizer_words(settings),
        "Costs": METHODS.get(settings["metric"], settings["metric"]),
        "Compared": quantities.measure(metric_of(result)).title + output_words(settings.get("output")),
        "Computed in": "the model's own type" if settings.get("compute_dtype") == "model" else "",
        "Tolerated regret": quantities.percent(settings["regret"]) if "regret" in settings else "",
        "Measured at most": f"{settings['max_passes']:g} passes" if settings.get("max_passes") else "",
        "Refined with at most": f"{settings['refine_passes']:g} passes"
        if settings.get("refine_passes")
        else "",
        "Probes": str(settings.get("probes", "")),
        "Limits": ", ".join(
            f"{name.replace('_', ' ')} at most {text}"
            for name, text in (settings.get("limits") or {}).items()
        ),
        "Budgets": ", ".join(settings.get("budgets") or ()),
        "Budget counts": counts.get(str(settings.get("budget_counts")), ""),
        "Pins": pins,
        "Ties": ties,
        "Left in float": ", ".join(settings.get("exclude") or ()),
        "Samples used": "all" if settings.get("samples") is None else str(settings["samples"]),
        "Held out": f"{100 * settings['holdout']:g} %" if settings.get("holdout") else "",
        "Seed": str(settings.get("seed", "")),
        "Samples per pass": "by size" if settings.get("batch_size") is None else str(settings["batch_size"]),
    }
    return [(label, text) for label, text in rows.items() if text]


def quantizer_words(settings: dict[str, Any]) -> str:
    """Which quantizers were on offer."""
    if settings.get("target"):
        return f"{settings['menu']} menu for {settings['target']}"
    return ", ".join(settings["schemes"])


def times(result: Result) -> list[tuple[str, float]]:
    """Stages with the seconds they took, those that have not begun left out."""
    seconds = result.get("seconds") or {}
    measuring = "Estimating and measuring" if "estimator" in result["settings"] else "Measuring"
    names = {"measure": measuring, "solve": "Solving", "verify": "Verifying", "total": "Altogether"}
    return [(name, seconds[stage]) for stage, name in names.items() if seconds.get(stage) is not None]
