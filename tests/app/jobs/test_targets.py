"""Targets instead of schemes: each unit is offered what the target stores, the rest stays in float and is told."""

import pytest

from app.jobs.offer import MENUS, offer_of, unit_menu
from app.models import Job
from tests.app.world import description, unit
from workers.contracts import ModelDescription, PerGroup, RangeMethod
from workers.menus import Target, menu, offered_bits, short_menu

UNITS = ("stem.weight", "q.weight", "k.weight", "head.weight")  # a convolution and three linear layers


def submitted(api, world, **members):
    return api.post("/v1/jobs", json=world.body(**members))


def offered(world, job_id):
    with world.database.read() as session:
        return offer_of(ModelDescription.from_json(description()), session.get_one(Job, job_id).request)


@pytest.mark.parametrize("target", Target)
def test_every_unit_is_offered_exactly_its_menu(api, world, target):
    answer = submitted(api, world, target=target, budgets=["8 bits"])
    assert answer.status_code == 202, answer.text
    request = answer.json()["request"]
    assert (request["target"], request["menu"], request["schemes"]) == (target, "short", [])
    assert request["candidates"] == [b for b in (2, 3, 4, 5, 6, 8) if b in offered_bits(target)]
    units = ModelDescription.from_json(description()).units
    found = offered(world, answer.json()["id"])
    for one in units:
        mine = tuple(c for name, c in found if name == one.name)
        assert mine == short_menu(target, one, request["candidates"])
        assert (one.name in request["left_in_float"]) == (not mine)
        assert (one.name in request["exclude"]) == (not mine)
    # Every searched unit can take every width: pins, uniform plans and the smallest plan rest on that.
    for name in {name for name, _ in found}:
        assert {c.bits for n, c in found if n == name} == set(request["candidates"])


def test_what_the_target_leaves_in_float_is_told_and_not_searched(api, world):
    job = submitted(api, world, target="gptq-awq", budgets=["4 bits"]).json()
    assert job["request"]["left_in_float"] == ["stem.weight"]
    result = api.get(f"/v1/jobs/{job['id']}/result").json()
    assert result["left_in_float"] == ["stem.weight"]
    refused = api.post(
        f"/v1/jobs/{job['id']}/plans", json={"budget": "4 bits", "pins": {"stem.weight": 4}}
    ).json()
    assert refused["field"] == "pins.stem.weight"


def test_the_offer_holds_activation_pairs_too(api, world):
    job = submitted(api, world, target="int8-kernels", activation_candidates=[8], budgets=["8 bits"]).json()
    with_inputs = {u.name for u in ModelDescription.from_json(description()).units if u.activations}
    for name, candidate in offered(world, job["id"]):
        assert candidate.activation_bits == (8 if name in with_inputs else None)


def test_the_full_menu_holds_the_short_one(api, world):
    one = next(u for u in ModelDescription.from_json(description()).units if u.name == "q.weight")
    for target in Target:
        short, full = (unit_menu(one, target, kind, (2, 4, 8)) for kind in MENUS)
        assert set(short) < set(full)


@pytest.mark.parametrize("target", Target)
def test_a_short_menu_is_short(target):
    one = ModelDescription.from_json(description((unit("w", (64, 256)),))).units[0]
    found = short_menu(target, one, range(2, 17))
    assert set(found) <= set(menu(target, one, range(2, 17)))
    assert {c.bits for c in found} == set(offered_bits(target))
    for bits in offered_bits(target):
        mine = [c.scheme for c in found if c.bits == bits]
        assert 1 <= len(mine) <= 6
        # Searching ranges is what takes long.
        assert any(s.range_method is not RangeMethod.MINMAX for s in mine) == (bits <= 4)
        assert all(
            s.granularity in (PerGroup(32), PerGroup(128)) or str(s.granularity) == "channel" for s in mine
        )


BAD = [
    ("an unknown target", {"target": "onnx"}, "target", "onnx", list(Target)),
    ("a target and a scheme", {"target": "any", "scheme": "channel-symmetric"}, "target", "any", "either"),
    ("a target and schemes", {"target": "any", "schemes": ["channel-symmetric"]}, "target", "any", "either"),
    ("a menu alone", {"menu": "full"}, "menu", "full", "together with a target"),
    ("an unknown menu", {"target": "any", "menu": "long"}, "menu", "long", ["short", "full"]),
    ("a width that it does not store", {"target": "gguf", "candidates": [4, 6]}, "candidates", 6, [4, 5, 8]),
    ("a pin of what it leaves", {"target": "gguf", "pins": {"stem.weight": 8}}, "pins.stem.weight", "stem.weight", "quantizes"),
    ("a tie of what it leaves", {"target": "gguf", "ties": [["q.weight", "stem.weight"]]}, "ties.0.1", "stem.weight", "quantizes"),
    ("nothing that it quantizes", {"target": "gguf", "exclude": ["q.weight", "k.weight", "head.weight"]}, "target", "gguf", [t for t in Target if t != "gguf"]),
]  # fmt: skip


@pytest.mark.parametrize("row", BAD, ids=[row[0] for row in BAD])
def test_bad_targets_are_refused_by_name(api, world, problem, row):
    _, members, field, value, allowed = row
    body = world.body(**members)
    before = world.rows()
    refused = problem(api.post("/v1/jobs", json=body), 422, "invalid-request", field)
    assert refused["value"] == value
    assert allowed in refused["allowed"] if isinstance(allowed, str) else refused["allowed"] == allowed
    assert world.rows() == before
