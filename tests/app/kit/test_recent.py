"""A memory of what was made lately."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from app.kit.recent import Recent


def test_values_are_made_once_while_they_are_remembered():
    made = []
    recent = Recent(2)

    def get(key):
        return recent.get(key, lambda: made.append(key) or key.upper())

    assert [get(k) for k in "abab"] == ["A", "B", "A", "B"]
    assert made == ["a", "b"]
    get("a")
    get("c")  # "b" is the one that was not asked for
    get("a")
    assert made == ["a", "b", "c"]
    get("b")
    assert made == ["a", "b", "c", "b"]


def test_what_fails_is_tried_again():
    recent = Recent(2)
    with pytest.raises(ZeroDivisionError):
        recent.get("a", lambda: 1 // 0)
    assert recent.get("a", lambda: 1) == 1


def test_threads_get_the_same_value():
    recent = Recent(4)
    with ThreadPoolExecutor(8) as pool:
        values = list(pool.map(lambda i: recent.get(i % 3, object), range(300)))
    assert len({id(v) for v in values}) == 3
