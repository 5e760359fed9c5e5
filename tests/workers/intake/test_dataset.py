"""Data files: what is read, and one row for each thing that is refused."""

import json
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from workers.contracts import InputInfo
from workers.errors import DatasetRefused
from workers.intake import dataset_header
from workers.intake.dataset import read_dataset
from workers.intake.dataset_header import check_against, check_values, read_header

IMAGE = InputInfo(name="image", dtype="float32", shape=(None, 3, 4, 4))
TOKENS = InputInfo(name="ids", dtype="int64", shape=(None, None))
LOGITS = InputInfo(name="logits", dtype="float32", shape=(None, 10))
TOKEN_LOGITS = InputInfo(name="logits", dtype="float32", shape=(None, None, 7))


@pytest.fixture
def save(tmp_path):
    def write(tensors):
        path = tmp_path / "data.safetensors"
        save_file(tensors, path)
        return path

    return write


def raw(tmp_path, header, data=b""):
    """A file with a header of our own making."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "raw.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool],
)
def test_values_come_back_as_saved(save, dtype):
    torch.manual_seed(0)
    image = (torch.randn(5, 3, 4, 4) * 3).to(dtype)
    info = InputInfo(name="image", dtype=str(dtype).removeprefix("torch."), shape=(None, 3, 4, 4))
    # One byte of another tensor first: what follows is not aligned.
    data = read_dataset(
        save({"image": image, "a": torch.ones(5, 1, dtype=torch.bool)}),
        (info, InputInfo(name="a", dtype="bool", shape=(None, 1))),
    )
    assert data.samples == 5
    assert data.labels is None
    assert data.inputs["image"].dtype is dtype
    assert torch.equal(data.inputs["image"], image)
    assert all(t.data_ptr() % t.element_size() == 0 for t in data.inputs.values())


def test_unaligned_data_are_aligned(tmp_path):
    """Ours to arrange: a header of odd length puts what follows at odd addresses."""
    values = np.arange(6, dtype=np.float32)
    header = json.dumps({"x": {"dtype": "F32", "shape": [3, 2], "data_offsets": [0, 24]}}).encode()
    header += b" " * (1 - len(header) % 2)
    data = read_dataset(
        raw(tmp_path, header, values.tobytes()), (InputInfo(name="x", dtype="float32", shape=(None, 2)),)
    )
    assert (8 + len(header)) % 4
    assert data.inputs["x"].data_ptr() % 4 == 0
    assert data.inputs["x"].flatten().tolist() == values.tolist()


def test_labels_per_sample_and_per_token(save):
    path = save({"image": torch.zeros(3, 3, 4, 4), "labels": torch.tensor([0, 9, 4], dtype=torch.int32)})
    data = read_dataset(path, (IMAGE,), outputs=(LOGITS,))
    assert data.labels.dtype is torch.int64
    assert data.labels.tolist() == [0, 9, 4]
    path = save(
        {"ids": torch.zeros(2, 5, dtype=torch.int64), "labels": torch.tensor([[6, 0, -100, 1, 2]] * 2)}
    )
    assert read_dataset(path, (TOKENS,), outputs=(TOKEN_LOGITS,)).labels.shape == (2, 5)


def test_a_model_may_have_an_input_called_labels(save):
    info = InputInfo(name="labels", dtype="float32", shape=(None, 2))
    data = read_dataset(save({"labels": torch.ones(4, 2)}), (info,), outputs=(LOGITS,))
    assert data.labels is None
    assert data.inputs["labels"].shape == (4, 2)


def test_a_fixed_batch_does_not_bind_the_number_of_samples(save):
    info = InputInfo(name="image", dtype="float32", shape=(8, 3, 4, 4))
    assert read_dataset(save({"image": torch.zeros(3, 3, 4, 4)}), (info,)).samples == 3


def with_value(dtype, value):
    image = torch.zeros(6, 3, 4, 4, dtype=dtype)
    image[4, 2, 1, 0] = value
    return {"image": image}


IMAGES = torch.zeros(2, 3, 4, 4)
REFUSED = [
    # tensors, inputs, outputs, rule, field, words of the message
    ({"picture": IMAGES}, (IMAGE,), None, "input-names", "dataset", ["'image'", "'picture'"]),
    ({"image": IMAGES, "extra": IMAGES + 0}, (IMAGE,), None, "input-names", "dataset", ["'extra'"]),
    ({"image": IMAGES}, (IMAGE, TOKENS), None, "input-names", "dataset", ["'ids'"]),
    ({"image": IMAGES.half()}, (IMAGE,), None, "input-dtype", "image", ["float16", "float32"]),
    ({"image": torch.zeros(2, 3, 4, 5)}, (IMAGE,), None, "input-shape", "image", ["[2, 3, 4, 5]", "[samples, 3, 4, 4]"]),
    ({"image": torch.zeros(2, 48)}, (IMAGE,), None, "input-shape", "image", ["[2, 48]"]),
    ({"ids": torch.zeros(2, 0, dtype=torch.int64)}, (TOKENS,), None, "input-shape", "ids", ["[2, 0]"]),
    ({"image": torch.zeros(0, 3, 4, 4)}, (IMAGE,), None, "empty", "dataset", ["no sample"]),
    ({}, (IMAGE,), None, "empty", "dataset", ["no tensor"]),
    ({"image": torch.tensor(1.0)}, (IMAGE,), None, "samples", "image", ["single number"]),
    ({"image": IMAGES, "ids": torch.zeros(3, 1, dtype=torch.int64)}, (IMAGE, TOKENS), None, "samples", None, ["2", "3"]),
    ({"image": IMAGES, "labels": torch.zeros(3, dtype=torch.int64)}, (IMAGE,), None, "samples", None, ["2", "3"]),
    ({"image": IMAGES, "labels": torch.zeros(2)}, (IMAGE,), None, "label-dtype", "labels", ["float32"]),
    ({"image": IMAGES, "labels": torch.zeros(2, 3, dtype=torch.int64)}, (IMAGE,), (LOGITS,), "label-shape", "labels", ["[samples]"]),
    ({"image": IMAGES, "labels": torch.zeros(2, 3, 4, dtype=torch.int64)}, (IMAGE,), None, "label-shape", "labels", ["[samples, tokens]"]),
    ({"image": IMAGES, "labels": torch.tensor([3, 10])}, (IMAGE,), (LOGITS,), "label-range", "labels", ["sample 1", "10"]),
    ({"image": IMAGES, "labels": torch.tensor([-1, 0])}, (IMAGE,), None, "label-range", "labels", ["sample 0", "-1"]),
    (with_value(torch.float32, float("nan")), (IMAGE,), None, "non-finite-data", "image", ["sample 4"]),
    (with_value(torch.float32, float("inf")), (IMAGE,), None, "non-finite-data", "image", ["sample 4"]),
    (with_value(torch.bfloat16, float("-inf")), (InputInfo(name="image", dtype="bfloat16", shape=(None, 3, 4, 4)),), None, "non-finite-data", "image", ["sample 4"]),
    (with_value(torch.bfloat16, float("nan")), (InputInfo(name="image", dtype="bfloat16", shape=(None, 3, 4, 4)),), None, "non-finite-data", "image", ["sample 4"]),
    (with_value(torch.float16, float("nan")), (InputInfo(name="image", dtype="float16", shape=(None, 3, 4, 4)),), None, "non-finite-data", "image", ["sample 4"]),
]  # fmt: skip


@pytest.mark.parametrize(("tensors", "inputs", "outputs", "rule", "field", "words"), REFUSED)
def test_refused(save, tensors, inputs, outputs, rule, field, words):
    with pytest.raises(DatasetRefused) as caught:
        read_dataset(save(tensors), inputs, outputs=outputs)
    refusal = caught.value
    assert refusal.extra["rule"] == rule
    assert refusal.field == field or field is None
    assert refusal.allowed is not None
    assert all(word in refusal.message for word in words), refusal.message
    json.dumps([refusal.value, refusal.allowed, refusal.extra])


ENTRY = {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]}
BROKEN = [
    # header, data, rule
    (b"no json", b"", "not-safetensors"),
    (b"[]", b"", "not-safetensors"),
    (b'{"x": 3}', b"", "not-safetensors"),
    (b'{"x": {"dtype": "F32", "shape": [2, 1]}}', b"", "not-safetensors"),
    (b'{"x": {"dtype": 5, "shape": [2, 1], "data_offsets": [0, 8]}}', bytes(8), "not-safetensors"),
    (b"[" * 5000 + b"]" * 5000, b"", "not-safetensors"),
    (b'{"x": ' + json.dumps(ENTRY).encode() + b', "x": ' + json.dumps(ENTRY).encode() + b"}", bytes(8), "not-safetensors"),
    ({"x": {**ENTRY, "dtype": "F8_E4M3"}}, bytes(8), "tensor-dtype"),
    ({"x": {**ENTRY, "shape": [2, 2]}}, bytes(8), "tensor-bytes"),
    ({"x": {**ENTRY, "shape": [-2, -1]}}, bytes(8), "tensor-bytes"),
    ({"x": {**ENTRY, "shape": [2**62, 2**62]}}, bytes(8), "tensor-bytes"),
    ({"x": {**ENTRY, "data_offsets": [8, 0]}}, bytes(8), "tensor-bytes"),
    ({"x": {**ENTRY, "data_offsets": [0, 8, 8]}}, bytes(8), "tensor-bytes"),
    ({"x": ENTRY, "y": ENTRY}, bytes(8), "tensor-layout"),
    ({"x": ENTRY, "y": {**ENTRY, "data_offsets": [4, 12]}}, bytes(12), "tensor-layout"),
    ({"x": ENTRY, "y": {**ENTRY, "data_offsets": [16, 24]}}, bytes(24), "tensor-layout"),
    ({"x": {**ENTRY, "data_offsets": [-8, 0]}}, bytes(8), "tensor-layout"),
    ({"x": ENTRY}, bytes(7), "file-size"),
    ({"x": ENTRY}, bytes(9), "file-size"),
]  # fmt: skip


@pytest.mark.parametrize(("header", "data", "rule"), BROKEN)
def test_broken_files(tmp_path, header, data, rule):
    with pytest.raises(DatasetRefused) as caught:
        read_header(raw(tmp_path, header, data))
    assert caught.value.extra["rule"] == rule
    json.dumps([caught.value.field, caught.value.value, caught.value.allowed])


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"\xff" * 64, b"\x80\x02}q\x00.", struct.pack("<Q", 2**40) + b"{}"]
)
def test_other_files(tmp_path, content):
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(DatasetRefused) as caught:
        read_header(path)
    assert caught.value.extra["rule"] == "not-safetensors"


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.data())
def test_any_change_is_refused_or_harmless(tmp_path_factory, data):
    """A damaged header never leads to an exception of another kind, nor outside the file."""
    path = tmp_path_factory.mktemp("x") / "d"
    save_file({"image": IMAGES, "labels": torch.tensor([1, 2])}, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 200 if len(content) > 400 else 100))] = data.draw(
            st.integers(0, 255)
        )
    path.write_bytes(content)
    try:
        found = read_dataset(path, (IMAGE,), outputs=(LOGITS,))
    except DatasetRefused as refusal:
        json.dumps([refusal.field, refusal.value, refusal.allowed, refusal.extra])
        return
    (images,) = found.inputs.values()
    assert images.shape[1:] == IMAGES.shape[1:]
    assert 1 <= len(images) == found.samples
    assert images.nbytes <= len(content), "it was read outside the file"
    assert bool(images.isfinite().all())


def test_values_are_read_in_pieces(save, monkeypatch):
    monkeypatch.setattr(dataset_header, "_CHUNK", 7)
    for name, tensors in (
        ("non-finite-data", with_value(torch.float32, float("nan"))),
        (None, {"image": IMAGES}),
    ):
        path = save(tensors)
        header = read_header(path)
        check_against(header, (IMAGE,))
        if name is None:
            check_values(path, header, (IMAGE,))
            continue
        with pytest.raises(DatasetRefused, match="sample 4") as caught:
            check_values(path, header, (IMAGE,))
        assert caught.value.extra["rule"] == name


def test_bfloat16_is_judged_by_its_bits():
    """The bit test agrees with torch on every bfloat16 there is."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    ours = (bits & dataset_header._EXPONENT_BF16) == dataset_header._EXPONENT_BF16
    theirs = ~torch.isfinite(torch.from_numpy(bits).view(torch.bfloat16))
    assert np.array_equal(ours, theirs.numpy())


def test_the_header_check_needs_no_torch():
    code = "import sys, workers.intake.dataset_header; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
