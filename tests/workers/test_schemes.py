"""The text of quantizer schemes: what is written is read, and the other way round."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.models.tables import Measurement
from workers.contracts import PerChannel, PerGroup, PerTensor, RangeMethod, Rounding, Scheme
from workers.errors import RequestRefused

granularities = st.one_of(st.just(PerTensor()), st.just(PerChannel()), st.integers(2, 999_999).map(PerGroup))
# The default where the method is another: the text does not carry it.
percentiles = st.integers(1, 49_999_999).map(lambda millionths: millionths / 1e6)


@st.composite
def schemes(draw):
    symmetric, method = draw(st.booleans()), draw(st.sampled_from(RangeMethod))
    changes = {}
    if method is RangeMethod.PERCENTILE:
        changes["percentile"] = draw(percentiles)
    corrected = draw(st.booleans())
    return Scheme(
        granularity=draw(granularities),
        symmetric=symmetric,
        range_method=method,
        full_range=symmetric and draw(st.booleans()),
        corrected=corrected,
        rounding=Rounding.NEAREST if corrected else draw(st.sampled_from(Rounding)),
        **changes,
    )


@settings(derandomize=True, deadline=None, max_examples=500)
@given(schemes())
def test_texts_are_read_as_they_were_written(scheme):
    assert Scheme.parse(str(scheme)) == scheme
    assert len(str(scheme)) <= Measurement.__table__.c.scheme.type.length


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.from_regex(r"(tensor|channel|group:64)-a?symmetric(-[a-z0-9:.]{1,12}){0,3}", fullmatch=True))
def test_whatever_is_read_has_one_text(text):
    try:
        scheme = Scheme.parse(text)
    except RequestRefused:
        return
    assert Scheme.parse(str(scheme)) == scheme


@pytest.mark.parametrize(
    ("text", "needs_inputs", "needs_matrix"),
    [
        ("channel-symmetric", False, False),
        ("channel-symmetric-corrected", False, False),
        ("channel-symmetric-l3", False, False),
        ("channel-symmetric-weighted-mse", True, False),
        ("channel-symmetric-gptq", True, True),
        ("group:32-asymmetric-weighted-mse-gptq", True, True),
    ],
)
def test_what_a_scheme_needs(text, needs_inputs, needs_matrix):
    scheme = Scheme.parse(text)
    assert (scheme.needs_inputs, scheme.needs_input_matrix) == (needs_inputs, needs_matrix)


@pytest.mark.parametrize(
    "text",
    [
        "channel-symmetric-corrected-gptq",  # the rounding moves the mean on purpose
        "channel-symmetric-gptq-corrected",
        "channel-symmetric-corrected-full",  # the order is fixed: one scheme, one text
        "channel-symmetric-gptq-mse",
        "channel-asymmetric-full",
        "channel-symmetric-l2",
        "channel-symmetric-weighted",
        "channel-symmetric-percentile:0.1234567",
        "channel-symmetric-percentile:0.0000",
        "channel-symmetric-corrected-corrected",
    ],
)
def test_other_texts_are_refused(text):
    with pytest.raises(RequestRefused) as refused:
        Scheme.parse(text)
    assert refused.value.value == text
