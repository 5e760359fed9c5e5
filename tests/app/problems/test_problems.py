"""Every error has a status, survives pickling, and becomes a document that tells what users need and no more."""

import json
import pickle
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import problems
from app.errors import AppError, DatabaseUnavailable, InvalidRequest, JobFinished, NotFound
from solver import SolverError
from solver.errors import BudgetError
from workers.errors import MeasurementFailed, ModelRefused, WorkerError


def test_statuses_are_those_agreed_on():
    assert problems.status_of(NotFound("x")) == HTTPStatus.NOT_FOUND
    assert problems.status_of(JobFinished("x")) == HTTPStatus.CONFLICT
    assert problems.status_of(InvalidRequest("x")) == HTTPStatus.UNPROCESSABLE_ENTITY
    assert problems.status_of(DatabaseUnavailable("x")) == HTTPStatus.SERVICE_UNAVAILABLE
    assert problems.status_of(ModelRefused("x")) == HTTPStatus.UNPROCESSABLE_ENTITY
    assert problems.status_of(MeasurementFailed("x")) == HTTPStatus.INTERNAL_SERVER_ERROR
    assert problems.status_of(BudgetError("x")) == HTTPStatus.UNPROCESSABLE_ENTITY
    assert problems.status_of(ValueError("x")) == HTTPStatus.INTERNAL_SERVER_ERROR


def test_a_document_has_all_members():
    error = ModelRefused(
        "entry data.pkl is a pickle", "data.pkl", "pickle", "raw tensors", {"rule": "no-pickle", "status": 1}
    )
    assert problems.document(error, "/v1/models") == {
        "type": "urn:bitwright:problem:model-refused",
        "title": "The model file was refused",
        "status": 422,
        "detail": "entry data.pkl is a pickle",
        "instance": "/v1/models",
        "field": "data.pkl",
        "value": "pickle",
        "allowed": "raw tensors",
        "rule": "no-pickle",
    }


def test_members_that_do_not_apply_are_absent():
    document = problems.document(JobFinished("it is over"))
    assert set(document) == {"type", "title", "status", "detail"}


@pytest.mark.parametrize(
    "error", [ValueError("password=hunter2"), KeyError("/srv/secret"), OSError(5, "x", "/srv/secret")]
)
def test_a_defect_tells_nothing_of_the_inside(error):
    document = problems.document(error, "/v1/jobs")
    assert document["status"] == 500
    assert "hunter2" not in json.dumps(document)
    assert "secret" not in json.dumps(document)


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()))
    | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
        | st.tuples(inner)
    ),
    max_leaves=20,
)


@given(_VALUES)
def test_whatever_a_user_sent_can_be_sent_back(value):
    document = problems.document(InvalidRequest("no", "field", value, value, {"extra": value}))
    text = json.dumps(document, allow_nan=False, ensure_ascii=False).encode()
    assert json.loads(text)["field"] == "field"


@pytest.mark.parametrize("size", [10**5, 10**7])
def test_answers_stay_small(size):
    document = problems.document(
        InvalidRequest("no", "field", "x" * size, list(range(min(size, 10**6))), {"n": 10**5000})
    )
    assert len(json.dumps(document)) < 10_000


def test_values_of_ordinary_size_come_back_as_they_are():
    value = {"a": [1, 2.5, "text", None, True], "b": {"c": 2**62}}
    assert problems.document(InvalidRequest("no", "field", value))["value"] == value


def _subclasses(kind):
    return {kind}.union(*(_subclasses(sub) for sub in kind.__subclasses__()))


_ALL = sorted(
    (kind for root in (AppError, WorkerError, SolverError) for kind in _subclasses(root)),
    key=lambda kind: (kind.__module__, kind.__qualname__),
)


@pytest.mark.parametrize("kind", _ALL, ids=lambda kind: kind.__name__)
def test_every_error_is_mapped_titled_and_pickles(kind):
    error = kind("what failed", "field", [1, 2], "allowed", {"minimum_bits": 3})
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    for member in ("message", "field", "value", "allowed", "extra", "args", "kind"):
        assert getattr(back, member) == getattr(error, member)
    assert str(back) == "what failed"

    document = problems.document(error)
    assert document == problems.document(back)
    assert document["status"] == problems.status_of(error)
    assert document["detail"] == "what failed"
    if kind.__module__ != "app.dispatch.errors":  # told on a terminal, never over HTTP
        assert kind.kind in problems.TITLES
        # A class of its own has a kind of its own.
        assert kind.kind not in {parent.kind for parent in kind.__mro__[1:] if hasattr(parent, "kind")}


def test_every_error_is_looked_at():
    # Those of modules that this test does not import would be missed; they are counted here.
    assert {k.__name__ for k in _ALL} >= {"AppError", "KeyReused", "ModelRefused", "BudgetError", "TieError"}
    assert len(_ALL) >= 30
