"""The certificate of a plan, in words: the same ones on the page, in the report and in the terminal.

Standard library only, so that the command line can say them without a plotting library.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from app.report import quantities

CLOSE_ENOUGH = 1e-9
"""A relative gap up to this is shown as none: it is float rounding."""

_WHY_OPTIMAL = {
    "lagrangian": "The lower bound meets the plan's cost, and one pass over the table of costs repeats the proof.",
    "search": "An exhaustive search of everything the bound left open found no better plan.",
    "solver": "{backend} closed the gap within its tolerances; the plan was re-checked in whole numbers.",
    "minimum": "The budget leaves one plan only: the smallest candidate of every unit.",
    "none": "The solver gives no bound of its own for this problem.",
}
_WHY_BOUND = {
    "lagrangian": "The lower bound is a Lagrangian one, which one pass over the table of costs repeats.",
    "search": "The lower bound comes from an exhaustive search that was cut short.",
    "solver": "The lower bound is that of {backend}, within its tolerances.",
    "minimum": "The lower bound is the smallest candidate of every unit.",
    "none": "There is no lower bound, so nothing is claimed about better plans.",
}
_STOPPED = {
    "time_limit": "time limit",
    "gap": "the requested gap was reached",
    "search_limit": "search limit",
    "heuristic": "heuristic",
}


_HEADLINES = {
    "optimal": "Proven optimal",
    "infeasible": "No plan fits: proven infeasible",
    "no_solution": "No plan found",
    "error": "No plan found",
}
_BESIDE = {
    "uniform": "Baseline: the same bit-width in every unit",
    "alternative": "Made with interactions, to be measured next to the plan of added costs",
}
_UNHEARD = "Not handed over: nothing but the calibration data, which it was made from, could speak for it; evaluation data would decide."
_REMEASURED = "Found by measuring again around a plan, to be measured next to that"
_TAKEN = {
    "uniform": "Uniform plan handed over: it measured better",
    "interactions": "Plan with interactions handed over: it measured better",
    "remeasured": "Plan measured again around handed over: it measured better",
}
"""By how the plan that took the place of the search's was found."""
_ENDED = {
    "rounds": "as many were taken as were asked for",
    "no-gain": "none of those tried from the last plan held on samples that it was not made from",
    "small-gain": "the last one gained less than the tolerated regret",
    "passes": "it would take more passes than refining may (`refine_passes`)",
    "max-passes": "it would take more passes than the job may measure",
    "few-samples": "there are too few calibration samples to tell one from noise",
    "many-candidates": "there are more candidates than can be searched with interactions",
    "failed": "the model could not be measured around the plan",
}
"""By `app.plans.refinement.End`."""
_WHY_NONE = {
    "no_solution": ("Neither a plan nor a proof that there is none was found in the time given.",),
    "error": ("{backend} failed, so nothing is claimed.",),
    "None": ("The plan has not been solved.",),
}


def certificate_headline(plan: Mapping[str, Any]) -> str:
    """The certificate in a few words: ``Proven optimal``, ``Within 0.3 % of the optimum, time limit``.

    Args:
        plan: A plan as it stands in a result document.
    """
    if plan.get("role") in _BESIDE:
        return _REMEASURED if plan.get("origin") == "remeasured" else _BESIDE[str(plan["role"])]
    if plan.get("origin") in _TAKEN:
        return _TAKEN[str(plan["origin"])]
    status = str(plan.get("status"))
    return _headline_feasible(plan) if status == "feasible" else _HEADLINES.get(status, "No certificate yet")


def certificate_words(plan: Mapping[str, Any]) -> str:
    """What is proven about a plan, by what kind of proof, and why the plan was handed over.

    Args:
        plan: A plan as it stands in a result document: ``status``, ``objective``, ``lower_bound``, ``relative_gap``,
            ``origin``, ``solver`` (``proof``, ``backend``, ``multiplier``, ``search``), ``predicted``, ``measured``.

    Returns:
        One to six sentences, beginning with `certificate_headline`.
    """
    return " ".join([certificate_headline(plan) + ".", *_reasons(plan), *_rounds(plan)])


def _rounds(plan: Mapping[str, Any]) -> list[str]:
    """What measuring again around the plan came to, where that was tried, and why it ended."""
    solver = plan.get("solver") or {}
    tried = solver.get("trials") or []
    taken = [trial for trial in tried if trial["accepted"]]
    ended = _ENDED.get(solver.get("refinement", {}).get("ended"))
    why = [] if ended is None else [f"No further step: {ended}."]
    if not tried:
        return why
    if not taken:
        return ["Measured again around the plan: no step gained beyond noise.", *why]
    values = (plan.get("measured") or {}).get("values", plan.get("measured") or {})
    metric = next(iter(values), "")
    before, after = (
        quantities.metric_value(taken[i][name], metric) for i, name in ((0, "before"), (-1, "after"))
    )
    rounds = f"{len(taken)} round{'' if len(taken) == 1 else 's'}"
    title = quantities.measure(metric).title
    return [
        f"Measured again around the plan: {rounds}, {title} {before} → {after} measured on the calibration data.",
        *why,
    ]


def _reasons(plan: Mapping[str, Any]) -> list[str]:
    """The sentences after the headline."""
    if plan.get("role") in _BESIDE:
        return [_UNHEARD] if _is_unheard(plan) else []
    if plan.get("origin") in _TAKEN:
        return _handed_over(plan)
    status = plan.get("status")
    if status == "optimal":
        return [_why(_WHY_OPTIMAL, plan), *_within_requested_gap(plan)]
    if status == "feasible":
        return [_why(_WHY_BOUND, plan)]
    if status == "infeasible":
        return _infeasible(plan)
    return [text.format(backend=_backend(plan)) for text in _WHY_NONE.get(str(status), ())]


def _is_unheard(plan: Mapping[str, Any]) -> bool:
    """Whether a plan made with interactions was measured where there are no evaluation data."""
    if plan["role"] != "alternative" or plan.get("origin") == "remeasured":
        return False
    measured = plan.get("measured") or {}
    values: Mapping[str, Any] = next(iter(measured.get("values", measured).values()), {})
    return values.get("calibration") is not None and values.get("evaluation") is None


def certificate_level(plan: Mapping[str, Any]) -> str:
    """How strong the claim is, for a colour or a symbol: ``proven``, ``bounded``, ``heuristic``, ``none``."""
    if plan.get("role") == "uniform" or plan.get("status") not in ("optimal", "feasible"):
        return "none"
    if plan.get("status") == "optimal" and plan.get("origin") not in _TAKEN:
        return "proven"
    return "heuristic" if plan.get("lower_bound") is None else "bounded"


def gap_words(plan: Mapping[str, Any]) -> str:
    """The relative gap in percent: ``0.3 %``; ``0 %`` within float rounding; a dash without a bound."""
    gap = plan.get("relative_gap")
    return quantities.percent(0.0 if gap is not None and gap <= CLOSE_ENOUGH else gap)


def _headline_feasible(plan: Mapping[str, Any]) -> str:
    stopped = _STOPPED.get(str((plan.get("solver") or {}).get("stopped")), "")
    tail = f", {stopped}" if stopped else ""
    gap = plan.get("relative_gap")
    if gap is None:
        return "A plan within the budget, without a bound" + tail
    if gap > 1:
        # (objective - bound) / max(|objective|, |bound|) above 1: the two have opposite signs.
        return "Within a very wide gap of the optimum" + tail
    return f"Within {gap_words(plan)} of the optimum{tail or ', not proven optimal'}"


def _why(table: Mapping[str, str], plan: Mapping[str, Any]) -> str:
    proof = str((plan.get("solver") or {}).get("proof", "none"))
    return table.get(proof, table["none"]).format(backend=_backend(plan))


def _backend(plan: Mapping[str, Any]) -> str:
    solver = plan.get("solver") or {}
    return " ".join(
        str(part) for part in (solver.get("backend") or "The solver", solver.get("version")) if part
    )


def _within_requested_gap(plan: Mapping[str, Any]) -> list[str]:
    gap = plan.get("relative_gap")
    if not gap or gap <= CLOSE_ENOUGH:
        return []
    return [f"The remaining gap of {gap_words(plan)} is within the gap that was asked for."]


def _handed_over(plan: Mapping[str, Any]) -> list[str]:
    """Why another plan took the place of what the search gave, with both measured costs, and what is still proven.

    Between plans that a search made the calibration data decide unless the evaluation data speak against it, between those
    and uniform plans the evaluation data where there are any.
    """
    sentences = []
    search = (plan.get("solver") or {}).get("search") or {}
    measured = plan.get("measured") or {}
    # Not what is predicted: an estimator's score is a unit of its own.
    metric = next(iter(measured.get("values", measured)), None)
    joint = plan.get("origin") != "uniform"
    costs = _calibrated if joint else measured_cost
    where, other, own = (
        (
            "On the calibration data its",
            "plan of added costs",
            "Its costs add up to",
        )
        if joint
        else ("Its", "plan found by the search", "Its predicted cost is")
    )
    if metric is not None:
        ours, theirs = (costs(p.get("measured"), metric) for p in (plan, search))
        if ours is not None and theirs is not None:
            sentences.append(
                f"{where} {quantities.measure(metric).title} measured {quantities.metric_value(ours, metric)}, that of the "
                f"{other} {quantities.metric_value(theirs, metric)}."
            )
    if plan.get("relative_gap") is not None:
        best = "least possible" if joint else "best predicted one"
        sentences.append(f"{own} within {gap_words(plan)} of the {best}.")
    return sentences


def _infeasible(plan: Mapping[str, Any]) -> list[str]:
    solver = plan.get("solver") or {}
    smallest = solver.get("minimum_bits")
    sentences = []
    if smallest is not None:
        sentences.append(f"The smallest plan these pins and ties allow takes {quantities.size(smallest)}.")
    if solver.get("conflict"):
        sentences.append(f"These cannot hold together: {', '.join(map(str, solver['conflict']))}.")
    return sentences


def measured_cost(measured: Mapping[str, Any] | None, metric: str) -> float | None:
    """The cost that decides between plans: on the evaluation data where there are any, else on the calibration data.

    Args:
        measured: Metric -> {calibration, evaluation}, also under ``values``, as a plan is stored.
        metric: Which one.
    """
    values = measured or {}
    value = values.get("values", values).get(metric)
    if isinstance(value, Mapping):
        chosen = value.get("evaluation")
        value = value.get("calibration") if chosen is None else chosen
    return float(value) if isinstance(value, int | float) else None


def _calibrated(measured: Mapping[str, Any] | None, metric: str) -> float | None:
    """The cost on the calibration data."""
    values = measured or {}
    found = values.get("values", values).get(metric)
    return measured_cost({metric: found | {"evaluation": None}}, metric) if found else None


def effort_words(result: Mapping[str, Any]) -> str:
    """How a job came by its costs: how many were estimated and measured, and the passes that took; empty without any.

    Args:
        result: A result document; ``sensitivities`` may be incomplete.
    """
    rows = result.get("sensitivities") or []
    if not rows:
        return ""
    settings, samples = result["settings"], result["calibration"]["samples"]
    candidates = quantities.plural(len(rows), "candidate")
    if "estimator" not in settings:
        raced = _raced(rows, samples) if settings.get("regret") is not None else ""
        return f"{candidates}, all of them measured{raced}."
    if settings["estimator"] != "probe":
        return f"{candidates}, all of them scored by {settings['estimator']}; none was measured."
    estimated = f"{candidates}, all of them estimated by {quantities.plural(settings['probes'], 'probe')}"
    measured = [row for row in rows if row["source"] == "measured"]
    if not measured:
        return f"{estimated}; none was measured."
    passes = sum(row["samples"] for row in measured) / samples
    verb = "was" if len(measured) == 1 else "were"
    return (
        f"{estimated}; {quantities.count(len(measured))} that could change a plan {verb} measured: the work of "
        f"{quantities.number(passes)} entries on all samples instead of {quantities.count(len(rows))}."
    )


def _raced(rows: Sequence[Mapping[str, Any]], samples: int) -> str:
    """On how many samples entries were measured, where plans decided that; empty where all were on all."""
    fewest = min(row["samples"] for row in rows)
    if fewest >= samples:
        return ""
    more = sum(row["samples"] > fewest for row in rows)
    work = sum(row["samples"] for row in rows) / samples
    return (
        f" on {quantities.count(fewest)} of {quantities.count(samples)} samples or more, {quantities.count(more)} that could "
        f"change a plan on more: the work of {quantities.number(work)} entries on all samples"
    )


def data_words(result: Mapping[str, Any]) -> str:
    """What a reader has to know of the data before believing the numbers; empty when there is nothing.

    Args:
        result: A result document.
    """
    calibration, evaluation = result.get("calibration") or {}, result.get("evaluation") or {}
    same = bool(evaluation) and evaluation.get("sha256") == calibration.get("sha256")
    if same and not evaluation.get("held_out"):
        return (
            "The evaluation data are the calibration data: the plan was chosen on what it is judged by. "
            "Give other samples, or set some aside by a holdout."
        )
    return ""


def output_words(text: str | None) -> str:
    """Which output was compared, as the end of a phrase; nothing where none was named.

    Args:
        text: Its name, or several as the request has them (`workers.mixtures`).
    """
    if not text:
        return ""
    if "=" not in text:
        return f" of output {text}"
    parts = []
    for part in text.split(","):
        name, _, rest = part.partition("=")
        weight, _, compared = rest.partition(":")
        parts.append(f"{name} ({compared}, weight {float(weight):g})")
    return f", weighted sum over the outputs {' and '.join(parts)}"
