"""The demo's network and photos, and what the demo says of a result."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load("examples", "efficientnet_lite0")


def load(folder: str, name: str) -> ModuleType:
    for path in (ROOT / "examples", ROOT / folder):
        if str(path) not in sys.path:
            sys.path.insert(0, str(path))
    return importlib.import_module(name)


def test_photos_ship_with_the_packages_and_are_disjoint(example: ModuleType) -> None:
    calibration, evaluation = example.CALIBRATION_PHOTOS, example.EVALUATION_PHOTOS
    assert not set(calibration) & set(evaluation)
    # One scene from two sides: at most one of them may be used.
    assert not {"skimage/motorcycle_left.png", "skimage/motorcycle_right.png"} <= {*calibration, *evaluation}
    for name in (*calibration, *evaluation):
        folder, file = name.split("/")
        with Image.open(load("examples", "photos").FOLDERS[folder] / file) as picture:
            assert min(picture.size) >= example.SMALLEST_CROP


def test_crops_are_the_networks_input_and_follow_the_seed(example: ModuleType) -> None:
    photos = example.CALIBRATION_PHOTOS[:2]
    crops = example.crops(photos, 5, seed=3)
    assert crops.shape == (5, 3, 224, 224)
    assert crops.dtype == np.float32
    # (x - 127) / 128 of 8-bit values: multiples of 1/128 in [-127/128, 1].
    assert np.array_equal(crops * 128, np.rint(crops * 128))
    assert -127 / 128 <= crops.min() < -0.5
    assert 0.5 < crops.max() <= 1
    assert np.array_equal(crops, example.crops(photos, 5, seed=3))
    assert not np.array_equal(crops, example.crops(photos, 5, seed=4))


def plan(bits: float, kl: float, agreement: float, **members: object) -> dict[str, object]:
    return {
        "average_bits": bits,
        "status": "optimal",
        "origin": "search",
        "predicted": {"kl": kl / 2},
        "measured": {
            "kl": {"calibration": kl / 3, "evaluation": kl},
            "top1_agreement": {"calibration": 1.0, "evaluation": agreement},
        },
        "measured_standard_error": {
            "kl": {"calibration": 0.0, "evaluation": kl / 10},
            "top1_agreement": {"calibration": 0.0, "evaluation": 0.0},
        },
        **members,
    }


def test_the_demo_tells_at_once_that_its_result_cannot_be_written(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "demo.py"), "--exit", "--json", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert "--json" in ended.stderr
    assert "a folder's" in ended.stderr


def test_the_demo_compares_with_the_uniform_plan_of_the_same_average() -> None:
    demo = load("examples", "demo")
    baselines = [plan(3.0, 9.0, 0.1), plan(4.0, 2.0, 0.25), plan(5.0, 1.0, 0.5)]
    said = " ".join(demo.gain({**plan(3.99, 0.5, 0.75), "baselines": baselines}).split())
    assert "0.500 instead of 2.00 nats (4\u00d7 less)" in said
    assert "75 % instead of 25 %" in said


def test_the_benchmark_of_refinement_compares_with_the_plan_of_added_costs() -> None:
    benchmark = load("benchmarks", "refinement")
    added, other = (
        {"choices": {"a": 1}, "measured": {}},
        {"choices": {"a": 2}, "origin": "interactions", "budget": "4 bits"},
    )
    again = {"choices": {"a": 3}, "origin": "remeasured", "budget": "4 bits"}
    handed = {**again, "solver": {"search": added}}
    elsewhere = {**again, "budget": "3 bits"}
    document = {"plans": [handed], "alternatives": [other, again, elsewhere]}
    found = benchmark.plans_of(document, 0)
    assert found == {"added costs": added, "interactions": other, "remeasured": again}
    assert next(iter(found)) == "added costs"
    kept = {"choices": {"a": 1}, "origin": "search", "budget": "4 bits"}
    assert benchmark.plans_of({"plans": [kept], "alternatives": []}, 0) == {"added costs": kept}


def test_what_the_benchmark_of_refinement_reports_on_had_no_part_in_the_choice(tmp_path: Path) -> None:
    benchmark = load("benchmarks", "refinement")
    whole = {"x": np.arange(14, dtype=np.float32).reshape(7, 2), "labels": np.arange(7)}
    save_file(whole, tmp_path / "data.safetensors")
    chosen_by, reported_on = (
        load_file(path) for path in benchmark.halves(tmp_path / "data.safetensors", tmp_path)
    )
    assert (len(chosen_by["x"]), len(reported_on["x"])) == (3, 4)
    for name, values in whole.items():
        np.testing.assert_array_equal(np.concatenate([chosen_by[name], reported_on[name]]), values)


def test_packages_are_found_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged = load("examples", "packaged")
    assert packaged.python_package("rich", "rich==1").name == "rich"
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps no-such-thing==1"):
        packaged.python_package("no_such_thing", "no-such-thing==1")
    asked: list[list[str]] = []
    monkeypatch.setattr(packaged.subprocess, "run", lambda command, **_: asked.append(command))
    archive = packaged.npm_package(tmp_path / "new", "@upscalerjs/esrgan-slim@1.0.0")
    assert archive == tmp_path / "new" / "upscalerjs-esrgan-slim-1.0.0.tgz"
    assert asked == [["npm", "pack", "@upscalerjs/esrgan-slim@1.0.0"]]
    archive.write_bytes(b"")
    packaged.npm_package(tmp_path / "new", "@upscalerjs/esrgan-slim@1.0.0")
    assert len(asked) == 1, "what is there is not fetched again"


def test_debian_packages_are_unpacked_once_and_never_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged = load("examples", "packaged")
    asked: list[list[str]] = []

    def run(command: list[str], *, cwd: str, **_: object) -> None:
        asked.append(command)
        if command[0] == "apt-get":
            (Path(cwd) / "some-stamps_1.0_all.deb").write_bytes(b"")
        else:
            (Path(cwd) / command[-1]).mkdir()

    monkeypatch.setattr(packaged.subprocess, "run", run)
    monkeypatch.setattr(packaged.shutil, "which", lambda tool: f"/usr/bin/{tool}")
    place = packaged.debian_package(tmp_path / "new", "some-stamps")
    assert place == tmp_path / "new" / "some-stamps"
    assert asked == [
        ["apt-get", "download", "some-stamps"],
        ["dpkg-deb", "-x", "some-stamps_1.0_all.deb", "contents"],
    ]
    assert list((tmp_path / "new").iterdir()) == [place], "nothing else is left"
    assert packaged.debian_package(tmp_path / "new", "some-stamps") == place
    assert len(asked) == 2, "what is there is not fetched again"
    monkeypatch.setattr(packaged.shutil, "which", lambda _: None)
    with pytest.raises(FileNotFoundError, match="Debian's package other is fetched by"):
        packaged.debian_package(tmp_path / "new", "other")
