"""Entity tags, preferences, cursors, identifiers."""

from base64 import urlsafe_b64encode
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidRequest
from app.kit.http import etag_matches, preferred_wait, weak_etag
from app.kit.ids import canonical_json, content_sha256, is_id, new_id
from app.kit.pages import Cursor

TAG = weak_etag(["job", 1])


@pytest.mark.parametrize(
    ("header", "matches"),
    [
        (None, False),
        ("", False),
        (TAG, True),
        (TAG.removeprefix("W/"), True),
        (f'"a", {TAG}', True),
        ("*", True),
        (" * ", True),
        ('"a", "b"', False),
        (TAG[:-2] + '"', False),
    ],
)
def test_if_none_match_compares_weakly(header, matches):
    assert etag_matches(header, TAG) is matches


def test_tags_follow_values_not_the_order_of_keys():
    assert weak_etag({"a": 1, "b": 2}) == weak_etag({"b": 2, "a": 1})
    assert weak_etag({"a": 1}) != weak_etag({"a": 2})
    assert TAG.startswith('W/"')


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ([], None),
        (["wait=10"], 10.0),
        (["respond-async, wait=10"], 10.0),
        (["return=minimal", "wait=2.5"], 2.5),
        (['wait="7"'], 7.0),
        (["wait = 7 ; foo"], 7.0),
        (["wait=86400"], 60.0),
        (["wait=0"], 0.0),
        (["wait"], None),
        (["wait=-1"], None),
        (["wait=soon"], None),
        (["wait=1e3"], None),
        (["wait=٣"], None),
        (["await=3"], None),
        (["wait=" + "9" * 400], None),
    ],
)
def test_preferences(headers, seconds):
    assert preferred_wait(headers) == seconds


@given(st.datetimes(timezones=st.just(UTC)))
def test_cursors_come_back(moment):
    cursor = Cursor(created_at=moment, id=new_id("job"))
    assert Cursor.decode(cursor.encode()) == cursor


def test_a_cursor_is_the_same_in_every_time_zone():
    moment = datetime(2026, 1, 1, 12, tzinfo=UTC)
    there = moment.astimezone(timezone(timedelta(hours=5)))
    assert Cursor(created_at=there, id="job_1").encode() == Cursor(created_at=moment, id="job_1").encode()


@given(st.text() | st.binary().map(lambda raw: urlsafe_b64encode(raw).decode()))
def test_anything_else_is_no_cursor(text):
    with pytest.raises(InvalidRequest):
        Cursor.decode(text)


def test_identifiers_are_in_the_order_of_time():
    made = [new_id("job") for _ in range(100)]
    assert len(set(made)) == 100
    assert all(is_id("job", i) for i in made)
    assert [i[:14] for i in made] == sorted(i[:14] for i in made)


@pytest.mark.parametrize(
    "text", ["", "job", "job_", "dat_1", "job_I", "job_1\n", "job_\x00", "job_é", "job_" + "1" * 33]
)
def test_what_is_no_identifier_is_not_looked_up(text):
    assert not is_id("job", text)


def test_equal_values_have_one_text():
    assert canonical_json({"b": [1, 2.5], "a": "é"}) == '{"a":"é","b":[1,2.5]}'
    assert content_sha256({"a": 1, "b": 2}) == content_sha256({"b": 2, "a": 1})
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))
