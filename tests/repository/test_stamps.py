"""Photos of things with their classes: what is calibrated and evaluated with, and how answers are counted."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def stamps():
    pytest.importorskip("efficientnet_lite_pytorch")
    if str(ROOT / "examples") not in sys.path:
        sys.path.insert(0, str(ROOT / "examples"))
    import stamps

    return stamps


def test_no_class_is_both_calibrated_and_evaluated_with(stamps):
    calibration, evaluation = stamps.stamps()
    names = [stamp.name for stamp in (*calibration, *evaluation)]
    assert len(set(names)) == len(names) == 156
    assert min(len(calibration), len(evaluation)) > 70
    theirs, others = ({c for stamp in part for c in stamp.classes} for part in (calibration, evaluation))
    assert theirs
    assert not theirs & others
    assert all(0 <= c < 1000 for c in theirs | others)
    assert stamps.stamps() == (calibration, evaluation)


def test_stamps_that_share_a_class_with_a_third_stay_together(stamps, tmp_path, monkeypatch):
    (tmp_path / "stamps.txt").write_text("# name, classes\na 1\nb 2\nc 3\nd 1 3\ne 4\n")
    monkeypatch.setattr(stamps, "__file__", str(tmp_path / "stamps.py"))
    first, second = ({stamp.name for stamp in part} for part in stamps.stamps())
    assert {"a", "c", "d"} in ({"a", "c", "d"} & first, {"a", "c", "d"} & second)
    assert first | second == set("abcde")


def test_a_thing_lies_on_white_in_the_middle(stamps, tmp_path):
    picture = Image.new("RGBA", (40, 90), (0, 0, 0, 0))
    picture.paste((255, 0, 0, 255), (10, 20, 30, 70))
    (tmp_path / "things").mkdir()
    picture.save(tmp_path / "things" / "red.png")
    (image,) = stamps.photos(tmp_path, (stamps.Stamp(name="things/red", classes=(1,)),))
    assert image.shape == (3, 224, 224)
    assert image.dtype == np.float32
    red, blank = (255 - 127) / 128, (0 - 127) / 128
    np.testing.assert_allclose(image[:, 112, 112], [red, blank, blank], atol=1e-6)
    for corner in (image[:, 0, 0], image[:, -1, -1], image[:, 112, 0]):
        np.testing.assert_allclose(corner, [red, red, red], atol=1e-6)  # white
    across, along = np.flatnonzero(image[1, 112] < 0), np.flatnonzero(image[1, :, 112] < 0)
    assert len(across) == pytest.approx(20 / 100 * 224, abs=2)  # 90 of 100 pixels are the picture's
    assert len(along) == pytest.approx(50 / 100 * 224, abs=2)
    assert across.mean() == pytest.approx(111.5, abs=1)
    assert along.mean() == pytest.approx(111.5, abs=1)


def test_any_of_the_right_classes_counts(stamps):
    outputs = np.array([[0, 2, 1], [5, 1, 1], [0, 0, 3], [0, 1, 0]], np.float32)
    assert stamps.accuracy(outputs, ((1,), (1, 2), (0, 2), (1,))) == 0.75
