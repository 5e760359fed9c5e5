"""Photos that lie inside the wheels of scikit-learn and scikit-image, in two sets that share none; nothing is downloaded.

In each set are four scenes that people photograph, two textures, and two things seen through lenses. The right picture of
scikit-image's stereo pair of a motorcycle shows what the left one shows, so it is in neither.
"""

from pathlib import Path

import skimage
import sklearn
from PIL import Image

CALIBRATION_PHOTOS = (
    "sklearn/china.jpg",
    "skimage/astronaut.png",
    "skimage/coffee.png",
    "skimage/motorcycle_left.png",
    "skimage/grass.png",
    "skimage/brick.png",
    "skimage/ihc.png",
    "skimage/moon.png",
)
EVALUATION_PHOTOS = (
    "sklearn/flower.jpg",
    "skimage/chelsea.png",
    "skimage/rocket.jpg",
    "skimage/camera.png",
    "skimage/gravel.png",
    "skimage/coins.png",
    "skimage/retina.jpg",
    "skimage/hubble_deep_field.jpg",
)
FOLDERS = {
    "sklearn": Path(sklearn.__file__).parent / "datasets" / "images",
    "skimage": Path(skimage.__file__).parent / "data",
}


def opened(photos: tuple[str, ...]) -> list[Image.Image]:
    """The photos of these names, in RGB."""
    return [Image.open(FOLDERS[p.split("/")[0]] / p.split("/")[1]).convert("RGB") for p in photos]
