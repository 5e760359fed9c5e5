"""The certificate says what is proven, by what, and no more."""

import subprocess
import sys

import pytest

from app.plans.refinement import End
from app.report.quantities import NOTHING
from app.report.words import (
    certificate_headline,
    certificate_level,
    certificate_words,
    data_words,
    effort_words,
    gap_words,
    measured_cost,
    output_words,
)
from solver.solution import Proof, SolveStatus

SPACE = "\u2009"


def plan(**changes):
    base = {
        "role": "requested",
        "status": "optimal",
        "objective": 0.01,
        "lower_bound": 0.01,
        "relative_gap": 0.0,
        "origin": "search",
        "solver": {"backend": "exact", "version": "1", "proof": "search"},
        "predicted": {"kl": 0.01},
        "measured": {"kl": {"calibration": 0.02, "evaluation": 0.03}},
    }
    return base | changes


def solved_by(proof, **more):
    return {"backend": "pulp-highs", "version": "1.9", "proof": proof, **more}


@pytest.mark.parametrize(
    ("proof", "because"),
    [
        ("lagrangian", "one pass over the table of costs repeats the proof"),
        ("search", "exhaustive search"),
        ("solver", "pulp-highs 1.9 closed the gap"),
        ("minimum", "leaves one plan only"),
    ],
)
def test_optimal_plans_name_the_kind_of_proof(proof, because):
    words = certificate_words(plan(solver=solved_by(proof)))
    assert words.startswith("Proven optimal. ")
    assert because in words


def test_every_proof_and_status_of_the_solver_has_words():
    texts = {p: certificate_words(plan(solver=solved_by(p.value))) for p in Proof}
    assert len(set(texts.values())) == len(Proof)
    heads = {s: certificate_headline(plan(status=s.value)) for s in SolveStatus}
    assert "No certificate yet" not in heads.values()
    assert len(set(heads.values())) == len(SolveStatus) - 1  # no_solution and error: both "No plan found"
    for status in SolveStatus:
        for proof in Proof:
            words = certificate_words(plan(status=status.value, solver=solved_by(proof.value)))
            assert words.endswith(".")
            assert "{" not in words


def test_feasible_plans_tell_the_gap_and_what_stopped_the_search():
    words = certificate_words(
        plan(status="feasible", relative_gap=0.003, solver=solved_by("solver", stopped="time_limit"))
    )
    assert words.startswith(f"Within 0.30{SPACE}% of the optimum, time limit. ")
    assert "lower bound is that of pulp-highs 1.9" in words
    assert "Proven" not in words


def test_feasible_plans_without_a_known_cause_are_not_called_proven():
    assert certificate_headline(plan(status="feasible", relative_gap=0.02)).endswith("not proven optimal")


def test_feasible_plans_without_a_bound_claim_nothing():
    words = certificate_words(
        plan(status="feasible", lower_bound=None, relative_gap=None, solver=solved_by("none"))
    )
    assert words.startswith("A plan within the budget, without a bound.")
    assert "nothing is claimed" in words


def test_gaps_across_zero_are_not_told_as_a_percentage():
    assert "%" not in certificate_headline(plan(status="feasible", relative_gap=1.7))


def test_an_optimal_plan_within_a_requested_gap_says_so():
    words = certificate_words(plan(relative_gap=1e-4))
    assert f"remaining gap of 0.010{SPACE}%" in words
    assert "remaining" not in certificate_words(plan(relative_gap=1e-12))


def test_a_uniform_plan_handed_over_tells_both_measured_costs():
    search = {
        "objective": 0.01,
        "size_bits": 12,
        "measured": {"values": {"kl": {"calibration": 0.1, "evaluation": 0.05}}},
    }
    words = certificate_words(
        plan(
            origin="uniform", status="feasible", relative_gap=0.25, solver=solved_by("search", search=search)
        )
    )
    assert words.startswith("Uniform plan handed over: it measured better. ")
    assert f"Its KL divergence measured 0.0300{SPACE}nats" in words
    assert f"found by the search 0.0500{SPACE}nats" in words
    assert f"within 25{SPACE}% of the best predicted" in words


def test_infeasible_budgets_tell_the_smallest_plan_and_the_conflict():
    solver = solved_by("minimum", minimum_bits=8_000_000, conflict=["pin of fc at 8 bits", "size"])
    words = certificate_words(plan(status="infeasible", objective=None, solver=solver))
    assert words.startswith("No plan fits: proven infeasible.")
    assert f"1.00{SPACE}MB" in words
    assert "pin of fc at 8 bits, size" in words


def test_baselines_claim_nothing():
    words = certificate_words(plan(role="uniform", origin="uniform", status="feasible"))
    assert words == "Baseline: the same bit-width in every unit."


def test_a_plan_beside_the_one_handed_over_does_not_say_that_it_was():
    beside = plan(role="alternative", origin="interactions", status="feasible", lower_bound=None)
    words = certificate_words(beside)
    assert words.startswith("Made with interactions")
    assert "handed over" not in words
    assert certificate_level(beside) == "heuristic"
    again = plan(role="alternative", origin="remeasured", status="feasible", lower_bound=None)
    assert certificate_words(again).startswith("Found by measuring again around a plan")


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_plan_that_no_data_could_speak_for_says_so(wrapped):
    def beside(origin, evaluation):
        values = {"kl": {"calibration": 0.02, "evaluation": evaluation}}
        measured = {"values": values} if wrapped else values
        return certificate_words(
            plan(role="alternative", origin=origin, status="feasible", measured=measured)
        )

    assert beside("interactions", None).endswith("evaluation data would decide.")
    assert "evaluation data" not in beside("interactions", 0.03)
    assert "evaluation data" not in beside("remeasured", None), "its steps were crossed"
    unmeasured = plan(role="alternative", origin="interactions", status="feasible", measured=None)
    assert "evaluation data" not in certificate_words(unmeasured)


def test_between_plans_of_the_search_the_calibration_data_are_told_to_decide():
    found = {"measured": {"values": {"kl": {"calibration": 0.0625, "evaluation": 0.01}}}}
    words = certificate_words(plan(origin="interactions", status="feasible", solver={"search": found}))
    assert words.startswith("Plan with interactions handed over: it measured better.")
    told = "On the calibration data its KL divergence measured 0.0200 nats"
    assert f"{told}, that of the plan of added costs 0.0625 nats." in words.replace(SPACE, " ")


def trial(before, after, *, accepted):
    return {"before": before, "after": after, "accepted": accepted}


@pytest.mark.parametrize(
    ("trials", "words"),
    [
        ([], ""),
        ([trial(0.2, 0.1, accepted=False)], "Measured again around the plan: no step gained beyond noise."),
        ([trial(0.214, 0.203, accepted=True)], "1 round, KL divergence 0.214 nats → 0.203 nats measured on the calibration data."),
        (
            [trial(0.25, 0.2, accepted=True), trial(0.2, 0.1, accepted=False), trial(0.2, 0.125, accepted=True)],
            "Measured again around the plan: 2 rounds, KL divergence 0.250 nats → 0.125 nats",
        ),
    ],
)  # fmt: skip
def test_what_measuring_again_came_to(trials, words):
    found = {"measured": {"values": {"kl": {"calibration": 0.25, "evaluation": 0.01}}}}
    said = certificate_words(
        plan(origin="remeasured", status="feasible", solver={"search": found, "trials": trials})
    )
    assert said.startswith(
        "Plan measured again around handed over: it measured better. On the calibration data"
    )
    assert words in said.replace(SPACE, " ")
    assert ("again around the plan" in said) == bool(trials)


@pytest.mark.parametrize("end", list(End))
@pytest.mark.parametrize("trials", [[], [trial(0.2, 0.1, accepted=False)], [trial(0.2, 0.1, accepted=True)]])
def test_why_no_further_step_was_tried_is_said_last(trials, end):
    solver = {"trials": trials, "refinement": {"ended": end.value}}
    said = certificate_words(plan(status="optimal", solver=solver))
    *_, why = said.rstrip(".").split(". ")
    assert why.startswith("No further step: ")
    others = {certificate_words(plan(solver=solver | {"refinement": {"ended": e.value}})) for e in End}
    assert len(others) == len(End)


def test_an_end_that_is_no_longer_known_is_passed_over():
    """Plans from before may have ended for a reason that there is no more."""
    words = certificate_words(plan(status="optimal", solver={"refinement": {"ended": "limits"}}))
    assert "No further step" not in words


@pytest.mark.parametrize(
    ("settings", "sources", "words"),
    [
        ({}, "mmm", "3 candidates, all of them measured."),
        ({"regret": 0.01}, "mmm", "3 candidates, all of them measured on 4 of 8 samples or more, 0 that could change"),
        ({"regret": 0.01}, "fmm", "1 that could change a plan on more: the work of 2.00 entries on all samples."),
        ({"regret": 0.01}, "fff", "3 candidates, all of them measured."),
        ({"estimator": "fit"}, "eee", "3 candidates, all of them scored by fit; none was measured."),
        ({"estimator": "probe", "probes": 2}, "eee", "estimated by 2 probes; none was measured."),
        ({"estimator": "probe", "probes": 2}, "eme", "1 that could change a plan was measured: the work of 0.500 entries"),
        ({"estimator": "probe", "probes": 1}, "", ""),
    ],
)  # fmt: skip
def test_what_a_job_did_to_know_its_costs(settings, sources, words):
    names = {"m": "measured", "f": "measured", "e": "estimated"}
    rows = [{"source": names[s], "samples": 4 if s == "m" else 8} for s in sources]
    said = effort_words({"settings": settings, "calibration": {"samples": 8}, "sensitivities": rows})
    assert words in said
    assert bool(said) == bool(words)


def test_a_plan_without_anything_yet():
    assert certificate_words({}) == "No certificate yet. The plan has not been solved."


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({}, "proven"),
        ({"status": "feasible", "relative_gap": 0.1}, "bounded"),
        ({"status": "feasible", "lower_bound": None}, "heuristic"),
        ({"origin": "uniform", "status": "feasible"}, "bounded"),
        ({"origin": "uniform"}, "bounded"),  # whatever the status says: what was proven was another plan
        ({"role": "uniform"}, "none"),
        ({"status": "infeasible"}, "none"),
    ],
)
def test_level(changes, level):
    assert certificate_level(plan(**changes)) == level


def test_gap_within_rounding_is_none():
    assert gap_words(plan(relative_gap=1e-15)) == f"0{SPACE}%"
    assert gap_words(plan(relative_gap=None)) == NOTHING


def test_measured_cost_prefers_the_evaluation_data():
    assert measured_cost({"kl": {"calibration": 1.0, "evaluation": 2.0}}, "kl") == 2.0
    assert measured_cost({"kl": {"calibration": 1.0, "evaluation": None}}, "kl") == 1.0
    assert measured_cost({"kl": {"calibration": 1.0, "evaluation": 0.0}}, "kl") == 0.0
    assert measured_cost({}, "kl") is None
    assert measured_cost(None, "kl") is None


def test_evaluation_on_the_calibration_data_is_told_but_not_samples_set_aside():
    data = {"id": "dat_1", "sha256": "a"}
    assert data_words({"calibration": data, "evaluation": None}) == ""
    assert data_words({"calibration": data, "evaluation": data | {"sha256": "b"}}) == ""
    assert "are the calibration data" in data_words({"calibration": data, "evaluation": data})
    assert data_words({"calibration": data, "evaluation": data | {"held_out": True}}) == ""


def test_words_need_no_plotting_library():
    code = "import sys; import app.report.words, app.report.quantities; print([m for m in ('plotly', 'jinja2', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def taken_over(**changes):
    search = {
        "objective": 0.01,
        "size_bits": 1,
        "measured": {"values": {"kl": {"calibration": 0.04, "evaluation": 0.02}}},
    }
    measured = {"kl": {"calibration": 0.03, "evaluation": 0.05}}
    solver = solved_by("search", search=search)
    return plan(
        **{
            "origin": "interactions",
            "status": "feasible",
            "relative_gap": 0.25,
            "solver": solver,
            "measured": measured,
        }
        | changes
    )


def test_a_plan_with_interactions_tells_the_costs_that_decided():
    words = certificate_words(taken_over())
    headline = "Plan with interactions handed over: it measured better."
    assert words.startswith(f"{headline} On the calibration data its KL divergence measured 0.03")
    assert "the plan of added costs 0.04" in words
    assert "0.05" not in words
    assert f"within 25{SPACE}% of the least possible" in words
    assert "optimal" not in words.lower()
    assert certificate_level(taken_over(status="optimal")) == "bounded"


def test_costs_are_told_though_the_prediction_is_in_another_unit():
    words = certificate_words(taken_over(origin="uniform", predicted={"fisher": 3.0}))
    assert "Its KL divergence measured 0.05" in words
    assert "the plan found by the search 0.02" in words


def test_a_plan_with_interactions_that_was_not_measured_tells_no_costs():
    assert "KL divergence" not in certificate_words(taken_over(measured=None))


def test_what_outputs_were_compared():
    assert output_words(None) == output_words("") == ""
    assert output_words("logits") == " of output logits"
    assert output_words("logits=1.0:kl,boxes=0.5:mse") == (
        ", weighted sum over the outputs logits (kl, weight 1) and boxes (mse, weight 0.5)"
    )
