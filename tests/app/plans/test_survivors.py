"""Which candidates stay in question: properties over random tables, and that plans do not change by what is dropped."""

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from app.plans.planner import Cell, prepare
from app.plans.spec import PlanSpec
from app.sensitivities.knowledge import Sensitivity, Source
from app.sensitivities.survivors import SURE, survivors
from tests.app.world import description, unit
from workers.contracts import ModelDescription

SCHEMES = ("channel-symmetric", "channel-asymmetric", "channel-asymmetric-mse", "group:32-asymmetric")


def row(name="u", bits=4, scheme=SCHEMES[0], mean=1.0, storage=100, **more):
    return Sensitivity(
        unit=name,
        bits=bits,
        scheme=scheme,
        metric="kl",
        size_bits=80,
        storage_bits=storage,
        mean=mean,
        samples=4,
        seconds=0.0,
        **({"standard_error": None, "source": Source.ESTIMATED, "model_error": 0.0} | more),
    )


ROWS = st.lists(
    st.builds(
        row,
        name=st.sampled_from("ab"),
        bits=st.sampled_from([2, 4]),
        activation_bits=st.sampled_from([None, 8]),
        scheme=st.sampled_from(SCHEMES),
        mean=st.floats(0, 10),
        storage=st.integers(1, 3),
        model_error=st.floats(0, 2),
    ),
    max_size=14,
)


@given(ROWS)
def test_a_candidate_goes_exactly_when_one_that_is_no_larger_is_cheaper_for_sure(rows):
    kept = survivors(rows)
    assert kept == [r for r in rows if any(r is k for k in kept)], "the order stays"
    for one in rows:
        beaten = any(
            (other.unit, other.bits, other.activation_bits) == (one.unit, one.bits, one.activation_bits)
            and other.storage_bits <= one.storage_bits
            and one.mean - other.mean > SURE * math.sqrt(one.model_error**2 + other.model_error**2)
            for other in rows
        )
        assert any(one is k for k in kept) is not beaten


@given(ROWS)
def test_the_cheapest_of_each_width_stays_and_dropping_twice_drops_no_more(rows):
    kept = survivors(rows)
    for key in {(r.unit, r.bits, r.activation_bits) for r in rows}:
        mine = [r.mean for r in rows if (r.unit, r.bits, r.activation_bits) == key]
        assert min(mine) in [r.mean for r in kept if (r.unit, r.bits, r.activation_bits) == key]
    assert survivors(kept) == kept


def test_measured_candidates_go_by_their_standard_error():
    measured = {"source": Source.MEASURED, "model_error": 9.0}
    cheap = row(scheme=SCHEMES[1], mean=1.0, standard_error=0.3, **measured)
    near, far = (row(mean=mean, standard_error=0.4, **measured) for mean in (1.99, 2.01))
    assert survivors([near, cheap]) == [near, cheap]
    assert survivors([far, cheap]) == [cheap]


def test_tied_units_keep_all():
    rows = [row(name, scheme=s, mean=m) for name in "abc" for s, m in zip(SCHEMES, (1, 2, 3, 4), strict=True)]
    kept = survivors(rows, ties=[["a", "b"]])
    assert [r.unit for r in kept] == ["a"] * 4 + ["b"] * 4 + ["c"]


@given(st.data())
def test_plans_and_uniform_plans_stay_the_same_where_costs_are_certain(data):
    units = (unit("a", (4, 8)), unit("b", (6, 8)), unit("c", (2, 8)))
    rows = [
        row(u["name"], bits, scheme, data.draw(st.floats(0.01, 5)), 40 * bits + extra)
        for u in units
        for bits in (2, 4)
        for scheme, extra in zip(SCHEMES, (0, 5, 5, 9), strict=True)
    ]
    rows = [replace(r, size_bits=weights_of(units, r.unit) * r.bits) for r in rows]
    ties = data.draw(st.sampled_from([(), (("a", "b"),)]))
    spec = PlanSpec(budget="", ties=ties)
    both = [search(units, part, spec) for part in (rows, survivors(rows, ties=ties))]
    for budget in ("2 bits", "2.7 bits", "3.4 bits"):
        full, pruned = (s.plan(budget, time_limit_s=5).objective for s in both)
        assert math.isclose(full, pruned, rel_tol=1e-9)
    for bits in (2, 4):
        assert both[0].uniform(bits).choices == both[1].uniform(bits).choices


def weights_of(units, name):
    return next(u["weights"] for u in units if u["name"] == name)


def search(units, rows, spec):
    cells = [
        Cell(
            unit=r.unit,
            bits=r.bits,
            scheme=r.scheme,
            cost=r.mean,
            size_bits=r.size_bits,
            storage_bits=r.storage_bits,
        )
        for r in rows
    ]
    return prepare(ModelDescription.from_json(description(units)), cells, spec, metric="kl")
