import pytest
import torch

from workers.errors import RequestRefused
from workers.sampling import SampleBlock
from workers.sensitivity import session
from workers.sensitivity.engine import measure
from workers.sensitivity.recent import RecentlyUsed
from workers.sensitivity.reference import Reference
from workers.sensitivity.session import prepare, resolve_device, take_prefixes


def test_the_least_recently_used_is_forgotten():
    cache, made = RecentlyUsed(2), []

    def get(key):
        return cache.get(key, lambda: made.append(key) or key.upper())

    assert [get(key) for key in "abacab"] == list("ABACAB")
    assert "".join(made) == "abcb"


def test_a_failure_is_not_remembered():
    cache = RecentlyUsed(1)
    with pytest.raises(ZeroDivisionError):
        cache.get("a", lambda: 1 // 0)
    assert cache.get("a", lambda: 7) == 7


def test_taken_values_are_gone():
    cache = RecentlyUsed(1)
    cache.put("a", 1)
    assert (cache.take("a"), cache.take("a")) == (1, None)


def test_what_was_used_last_is_kept_while_it_fits():
    cache = RecentlyUsed(9)
    for key in "abcd":
        cache.put(key, key)
    cache.get("b", str)
    cache.keep_while(lambda value: value != "c")
    assert cache.values() == ["d", "b"]
    cache.keep_while(lambda value: value == "d")
    assert cache.values() == [], "the last one used did not fit"


def blocks_of(case, **values):
    """Requests for four blocks of two samples."""
    return [case.request(block=SampleBlock(start=i, stop=i + 2), **values) for i in (0, 2, 4, 6)]


def test_rounds_find_the_outputs_of_blocks_again(make_case, monkeypatch):
    case = make_case()
    requests = blocks_of(case)
    setups = [prepare(request) for request in requests]
    monkeypatch.setattr(Reference, "measure", None)  # nothing is run again
    assert all(prepare(request) is setup for request, setup in zip(requests, setups, strict=True))


def test_outputs_of_blocks_are_kept_within_half_of_the_memory(make_case):
    case = make_case()
    one = prepare(blocks_of(case)[0]).reference.kept_bytes
    assert one > 0
    session.forget()
    requests = blocks_of(case, memory_bytes=2 * (2 * one) + 2)
    first, second, third, _ = [prepare(request) for request in requests]
    assert prepare(requests[2]) is third
    again = prepare(requests[0])
    assert again is not first
    # Prefixes have what is left beside both.
    prefixes = take_prefixes(requests[0], again)
    assert prefixes._limit == 2 * one + 2
    assert prepare(requests[2]) is third
    assert prepare(requests[1]) is not second


def test_outputs_for_another_model_are_not_kept(make_case):
    first = prepare(make_case().request())
    other = prepare(make_case(seed=1).request())
    assert other.program is not first.program
    assert session._CACHES.setups.values() == [other]


def test_prefixes_go_on_where_the_last_shard_stopped(make_case):
    case = make_case()
    request = case.request()
    list(measure(request))
    setup = prepare(request)
    kept = take_prefixes(request, setup)
    assert kept.cut == setup.table.unit(case.units[-1]).first_step
    assert take_prefixes(request, setup).cut == 0


def test_prefixes_of_another_measurement_are_dropped(make_case):
    case = make_case()
    list(measure(case.request()))
    other = case.request(samples=4)
    assert take_prefixes(other, prepare(other)).cut == 0
    assert take_prefixes(case.request(), prepare(case.request())).cut == 0


def test_what_was_kept_can_be_dropped(make_case):
    case = make_case()
    list(measure(case.request()))
    setup = prepare(case.request())
    assert prepare(case.request()) is setup
    session.forget()
    assert prepare(case.request()) is not setup


def test_devices():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in {"cpu", "cuda"}
    with pytest.raises(RequestRefused, match="abacus"):
        resolve_device("abacus")
