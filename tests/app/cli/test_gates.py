"""Gates: what they accept, and what they compare."""

import click
import pytest

from app.cli.gates import Gate

RESULT = {
    "measured": {
        "kl": {"calibration": 0.01, "evaluation": 0.02},
        "top1_agreement": {"calibration": 0.95, "evaluation": None},
        "mse": {"calibration": None, "evaluation": None},
    }
}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("kl<=0.02", True),  # evaluation data decide, and equality is enough
        ("kl<0.02", False),
        ("kl<=0.015", False),  # calibration data alone would pass
        ("kl >= 0.02", True),
        ("kl>0.02", False),
        ("top1_agreement>=0.95", True),  # no evaluation data: calibration decides
        ("top1_agreement>=9.6e-1", False),
        ("kl<=inf", True),
    ],
)
def test_conditions(text: str, holds: bool) -> None:
    assert Gate.parse(text).holds(RESULT) is holds


@pytest.mark.parametrize(
    "text", ["", "kl", "kl<=", "<=3", "kl=0.1", "kl==0.1", "kl<=x", "kl<=nan", "kl<=1 2", "k l<=1"]
)
def test_what_is_no_gate(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a gate"):
        Gate.parse(text)


@pytest.mark.parametrize("metric", ["psnr", "mse"])
def test_what_was_not_measured_cannot_be_decided(metric: str) -> None:
    with pytest.raises(click.UsageError, match="was not measured"):
        Gate.parse(f"{metric}<=1").holds(RESULT)


def test_words_name_condition_and_value() -> None:
    assert (
        Gate.parse("kl<=0.015").missed_words(RESULT) == "Gate missed: kl<=0.015 is not met, measured 0.02000"
    )
