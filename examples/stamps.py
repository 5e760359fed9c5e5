"""Photos of things with their ImageNet classes, to calibrate EfficientNet-Lite0 with and to see what it still recognizes.

Run it to write the model and the photos into a folder (Debian and Ubuntu; it fetches 160 MB)::

    python examples/stamps.py FOLDER

The photos are stamps of Tux Paint (GPL-2, Debian's package ``tuxpaint-stamps-default``): animals, fruit, vehicles, tools
and instruments, one on each. They are fetched when they are needed and are no part of this repository. Which classes are right
for each of them was decided by hand (``stamps.txt``). Every second class goes to calibration, so that what resembles
each other, two frogs or three traffic lights, is never on both sides.
"""

from dataclasses import dataclass
from pathlib import Path

import efficientnet_lite0
import numpy as np
import packaged
from numpy.typing import NDArray
from packaged import Assets
from PIL import Image

from app.export import write_dataset

SIZE = efficientnet_lite0.SIZE
PACKAGE = "tuxpaint-stamps-default"
FOLDER = Path("usr/share/tuxpaint/stamps")
"""Where the package keeps them."""
MARGIN = 0.05
"""White that is left on each side of a thing, as a share of the picture."""


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """A photo: its name as in the package, and the classes that are right for it."""

    name: str
    classes: tuple[int, ...]


def stamps() -> tuple[tuple[Stamp, ...], tuple[Stamp, ...]]:
    """Those to calibrate with and those to evaluate with; no class is in both."""
    lines = (Path(__file__).with_suffix(".txt")).read_text().splitlines()
    words = [line.split() for line in lines if not line.startswith("#")]
    groups: list[list[Stamp]] = []
    for name, *numbers in sorted(words):
        stamp = Stamp(name=name, classes=tuple(map(int, numbers)))
        related = [g for g in groups if any(set(stamp.classes) & set(other.classes) for other in g)]
        groups = [g for g in groups if g not in related]
        groups.append([*(each for g in related for each in g), stamp])
    first, second = ([stamp for group in groups[i::2] for stamp in group] for i in (0, 1))
    return tuple(first), tuple(second)


def photos(place: Path, wanted: tuple[Stamp, ...]) -> NDArray[np.float32]:
    """The photos on white, as the network wants them, ``(stamps, 3, 224, 224)``: ``(x - 127) / 128`` of the 8-bit RGB values."""
    images = np.empty((len(wanted), 3, SIZE, SIZE), np.float32)
    for index, stamp in enumerate(wanted):
        picture = Image.open(place / f"{stamp.name}.png").convert("RGBA")
        side = round(max(picture.size) / (1 - 2 * MARGIN))
        canvas = Image.new("RGBA", (side, side), "white")
        canvas.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        pixels = canvas.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        images[index] = (np.asarray(pixels, np.float32).transpose(2, 0, 1) - 127) / 128
    return images


def accuracy(outputs: NDArray[np.floating], right: tuple[tuple[int, ...], ...]) -> float:
    """Share of photos whose first answer is one of the right classes, given logits ``(photos, classes)``."""
    answers = outputs.argmax(axis=1).tolist()
    return sum(a in classes for a, classes in zip(answers, right, strict=True)) / len(right)


def build(folder: Path) -> Assets:
    """Write model, calibration and evaluation file into a folder; what is there is taken as it is."""
    assets = Assets(
        model=folder / "efficientnet-lite0.pt2",
        calibration=folder / "stamps-calibration.safetensors",
        evaluation=folder / "stamps-evaluation.safetensors",
    )
    efficientnet_lite0.write_model(assets.model)
    for path, wanted in zip((assets.calibration, assets.evaluation), stamps(), strict=True):
        if not path.exists():
            write_dataset(path, {"inputs": photos(packaged.debian_package(folder, PACKAGE) / FOLDER, wanted)})
    return assets


if __name__ == "__main__":
    calibration, evaluation = stamps()
    packaged.main(
        __doc__,
        build,
        {"calibration": f"{len(calibration)} photos", "evaluation": f"{len(evaluation)} of other classes"},
    )
