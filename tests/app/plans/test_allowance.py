"""How many passes refining may take."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.plans.allowance import (
    LEAST_OPERATIONS,
    SHARE,
    Allowance,
    allowance_of,
    probe_passes,
)
from app.plans.refinement import End
from workers.contracts import InputInfo

STEP = 15.0


def allowed(ordinal=0, *, budgets=1, entries=0.0, samples=16, macs=10**15, tokens=None, **request):
    return allowance_of(
        {"budgets": ["4 bits"] * budgets} | request,
        SimpleNamespace(
            units=[SimpleNamespace(macs=macs), SimpleNamespace(macs=0)],
            inputs=[InputInfo(name="ids", dtype="int64", shape=(None, None if tokens else 1))],
        ),
        ordinal=ordinal,
        entries=entries,
        samples=samples,
        shapes={"ids": (2 * samples, tokens or 1)},
        first_step=STEP,
    )


@given(st.integers(1, 8), st.floats(0, 1000), st.integers(0, 16))
def test_budgets_share_what_the_job_may_take(budgets, entries, probes):
    """No more than the share in all; whoever has any can pay a step, or nobody could and the first has it all."""
    known = entries + 2.2 * probes
    request = {"probes": probes} if probes else {}
    each = [
        allowed(i, budgets=budgets, entries=entries, macs=10**30, **request).passes for i in range(budgets)
    ]
    assert sum(each) == pytest.approx(SHARE * known, abs=1e-9)
    assert each == sorted(each, reverse=True)
    if SHARE * known >= STEP:
        assert all(passes >= STEP or passes < 1e-9 for passes in each)


@pytest.mark.parametrize("macs", [10, 10**30])
def test_what_was_asked_for_is_what_may_be_taken(macs):
    """Whatever the costs took, and however short a pass is."""
    each = [allowed(i, budgets=3, entries=7.0, macs=macs, refine_passes=40.0).passes for i in range(3)]
    assert each == [20.0, 20.0, 0.0]
    assert allowed(macs=macs, refine_passes=5.0).passes == 5.0


@pytest.mark.parametrize(("macs", "tokens"), [(34_426_847_232, None), (134_479_872, 256)])
def test_smollm2_has_a_step_and_not_two(macs, tokens):
    """What two jobs of SmolLM2-135M at one budget took: 45 and 51 passes for entries, four probes.

    As a file for windows of 256 tokens, and as a folder, whose operations are counted for one token.
    """
    for entries, samples in ((45.1, 12), (50.6, 16)):
        passes = allowed(entries=entries, samples=samples, macs=macs, tokens=tokens, probes=4).passes
        assert STEP + 3 <= passes < STEP + 23


@given(st.integers(1, 10**12), st.integers(1, 1000))
def test_operations_count_where_passes_are_short(macs, samples):
    passes = allowed(1, budgets=2, samples=samples, macs=macs).passes
    assert passes * macs * samples == pytest.approx(LEAST_OPERATIONS)


def test_a_model_without_products_has_a_bound_too():
    assert allowed(macs=0).passes == LEAST_OPERATIONS


@pytest.mark.parametrize(
    ("max_passes", "spent", "measured", "end"),
    [
        (None, 0, 0, None),
        (None, 35, 4, None),
        (None, 35.1, 4, End.PASSES),
        (14, 0, 0, None),
        (13.9, 0, 0, End.MAX_PASSES),
        (18, 24, 4, None),
        (17.9, 24, 4, End.MAX_PASSES),
    ],
)
def test_a_step_is_paid_for_before_it_is_begun(max_passes, spent, measured, end):
    allowance = Allowance(entries=10.0, passes=50.0, max_passes=max_passes)
    assert allowance.ends(spent=spent, measured=measured, probing=probe_passes(5), measuring=4.0) is end
