"""The image example against a forward pass of its own: the layers of the package's file, one after the other, in NumPy."""

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import esrgan

# The file's layers in its order: name, kind, inputs; of convolutions also kernel, inputs and outputs.
LAYERS = (
    ("F_m1", "Conv2D", ("LR",), (3, 3, 64)),
    ("F_0", "Conv2D", ("F_m1",), (3, 64, 64)),
    ("F_1_1", "Conv2D", ("F_0",), (3, 64, 4)),
    ("F_1_1_Relu", "Activation", ("F_1_1",), None),
    ("RDB_Concat_1_1", "Concatenate", ("F_0", "F_1_1_Relu"), None),
    ("LFF_1", "Conv2D", ("RDB_Concat_1_1",), (1, 68, 64)),
    ("LRL_1", "Add", ("LFF_1", "F_0"), None),
    ("F_2_1", "Conv2D", ("LRL_1",), (3, 64, 4)),
    ("F_2_1_Relu", "Activation", ("F_2_1",), None),
    ("RDB_Concat_2_1", "Concatenate", ("LRL_1", "F_2_1_Relu"), None),
    ("LFF_2", "Conv2D", ("RDB_Concat_2_1",), (1, 68, 64)),
    ("LRL_2", "Add", ("LFF_2", "LRL_1"), None),
    ("LRLs_Concat", "Concatenate", ("LRL_1", "LRL_2"), None),
    ("GFF_1", "Conv2D", ("LRLs_Concat",), (1, 128, 64)),
    ("GFF_2", "Conv2D", ("GFF_1",), (3, 64, 64)),
    ("FDF", "Add", ("GFF_2", "F_m1"), None),
    ("UPN1", "Conv2D", ("FDF",), (5, 64, 64)),
    ("UPN1_Relu", "Activation", ("UPN1",), None),
    ("UPN2", "Conv2D", ("UPN1_Relu",), (3, 64, 32)),
    ("UPN2_Relu", "Activation", ("UPN2",), None),
    ("UPN3", "Conv2D", ("UPN2_Relu",), (3, 32, 12)),
    ("UPsample", "UpSampling2D", ("UPN3",), None),
    ("SR", "Conv2D", ("UPsample",), (3, 12, 3)),
)


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(0)
    found = {}
    for name, kind, _, sizes in LAYERS:
        if kind == "Conv2D":
            kernel, inputs, outputs = sizes
            scale = 1 / np.sqrt(kernel * kernel * inputs)
            values = rng.normal(size=(kernel, kernel, inputs, outputs)) * scale
            found[f"{name}/kernel"] = values.astype(np.float32)
            found[f"{name}/bias"] = rng.normal(size=outputs).astype(np.float32)
    return found


@pytest.fixture(scope="module")
def archive(weights, tmp_path_factory):
    """A package like the real one: tensors in the order of their names, one after the other."""
    path = tmp_path_factory.mktemp("package") / "esrgan.tgz"
    names = sorted(weights)
    tensors = [{"name": n, "shape": list(weights[n].shape), "dtype": "float32"} for n in names]
    manifest = {"weightsManifest": [{"paths": ["weights.bin"], "weights": tensors}]}
    files = {"model.json": json.dumps(manifest).encode()}
    files["weights.bin"] = b"".join(weights[n].tobytes() for n in names)
    with tarfile.open(path, "w:gz") as package:
        for name, content in files.items():
            info = tarfile.TarInfo(f"package/models/x2/{name}")
            info.size = len(content)
            package.addfile(info, io.BytesIO(content))
    return path


def convolved(image, kernel, bias):
    """``[height, width, inputs]`` with zeros around it, in float64."""
    size, height, width = kernel.shape[0], *image.shape[:2]
    padded = np.pad(image, ((size // 2,) * 2, (size // 2,) * 2, (0, 0)))
    result = np.zeros((height, width, kernel.shape[3])) + bias
    for y in range(size):
        for x in range(size):
            result += padded[y : y + height, x : x + width] @ kernel[y, x].astype(np.float64)
    return result


def forward(image, weights):
    values = {"LR": image}
    for name, kind, inputs, _ in LAYERS:
        given = [values[i] for i in inputs]
        values[name] = {
            "Conv2D": lambda g, n=name: convolved(g[0], weights[f"{n}/kernel"], weights[f"{n}/bias"]),
            "Activation": lambda g: np.maximum(g[0], 0),
            "Concatenate": lambda g: np.concatenate(g, 2),
            "Add": lambda g: g[0] + g[1],
            "UpSampling2D": lambda g: g[0].repeat(2, 0).repeat(2, 1),
        }[kind](given)
    return values["SR"]


def test_the_network_is_the_files_layers(archive, weights):
    image = np.random.default_rng(1).uniform(0, 255, (7, 6, 3))
    model = esrgan.with_weights(esrgan.stored_weights(archive))
    with torch.no_grad():
        output = model(torch.tensor(image.transpose(2, 0, 1)[None], dtype=torch.float32))
    expected = forward(image, weights)
    assert output.shape == (1, 3, 14, 12)
    np.testing.assert_allclose(output[0].numpy().transpose(1, 2, 0), expected, rtol=1e-4, atol=1e-3)


def test_crops_are_paired_and_follow_the_seed():
    small, large = esrgan.pairs(esrgan.CALIBRATION_PHOTOS[:3], 4, seed=5)
    assert (small.shape, large.shape) == ((4, 3, 48, 48), (4, 3, 96, 96))
    # Halving keeps what is seen: means over 2 x 2 pixels are near the small picture.
    means = large.reshape(4, 3, 48, 2, 48, 2).mean((3, 5))
    assert np.abs(means - small).mean() < 0.2 * np.abs(small - small.mean((2, 3), keepdims=True)).mean()
    again = esrgan.pairs(esrgan.CALIBRATION_PHOTOS[:3], 4, seed=5)
    assert np.array_equal(small, again[0])
    assert not np.array_equal(small, esrgan.pairs(esrgan.CALIBRATION_PHOTOS[:3], 4, seed=6)[0])


def test_psnr_is_of_the_clipped_inside():
    wanted = np.full((2, 3, 20, 20), 255.0)
    images = wanted + 30  # cut off: no error
    images[..., 0, :] = 0  # the edge does not count
    images[0, :, 10, 10] = 0
    images[1, :, 10, 10] = 155
    # Twelve by twelve pixels are inside; one is off by 255 in one image, by 100 in the other.
    one, other = 144.0, 144.0 * 2.55**2
    assert esrgan.psnr(images, wanted) == pytest.approx(5 * (np.log10(one) + np.log10(other)))
