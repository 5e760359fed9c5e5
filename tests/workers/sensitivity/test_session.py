import pytest
import torch

from workers.errors import RequestRefused
from workers.sensitivity import session
from workers.sensitivity.engine import measure
from workers.sensitivity.recent import RecentlyUsed
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
