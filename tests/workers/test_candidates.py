"""The text form of candidates."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.contracts import Candidate, Scheme
from workers.errors import RequestRefused

WIDTHS = st.integers(2, 16)
SCHEMES = st.sampled_from(
    [
        "channel-asymmetric",
        "group:64-symmetric-mse",
        "tensor-symmetric-full",
        "tensor-asymmetric-percentile:1",
    ]
)


@given(bits=WIDTHS, activation_bits=st.none() | WIDTHS, scheme=SCHEMES)
def test_round_trip(bits, activation_bits, scheme):
    candidate = Candidate(bits=bits, scheme=Scheme.parse(scheme), activation_bits=activation_bits)
    assert Candidate.parse(str(candidate)) == candidate


def test_text():
    scheme = Scheme.parse("channel-asymmetric")
    assert str(Candidate(bits=4, scheme=scheme)) == "4:channel-asymmetric"
    assert str(Candidate(bits=4, scheme=scheme, activation_bits=8)) == "4a8:channel-asymmetric"


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("4", "candidate"),  # no scheme
        ("channel-asymmetric", "candidate"),  # no width
        ("a8:channel-asymmetric", "candidate"),  # activations alone
        ("4a:channel-asymmetric", "candidate"),  # half a pair
        ("4 a8:channel-asymmetric", "candidate"),  # a space
        ("-4:channel-asymmetric", "candidate"),  # a sign
        ("1:channel-asymmetric", "candidates"),  # too narrow
        ("17:channel-asymmetric", "candidates"),  # too wide
        ("4a1:channel-asymmetric", "activation_candidates"),
        ("4a17:channel-asymmetric", "activation_candidates"),
        ("4a8:rows", "scheme"),  # no such scheme
    ],
)
def test_refused(text, field):
    with pytest.raises(RequestRefused) as caught:
        Candidate.parse(text)
    assert caught.value.field == field
    assert caught.value.allowed
