"""Damaged archives, absurd sizes, graphs that do not fit: each refused by its rule, within bounded memory."""

import io
import json
import struct
import tracemalloc
import zipfile

import pytest
import torch
from torch import nn

from workers.errors import ModelRefused
from workers.intake.limits import Limits
from workers.intake.pt2 import read_model

WEIGHTS = "data/weights/model_weights_config.json"
MODEL = "models/model.json"


def refusal(path, limits=None):
    with pytest.raises(ModelRefused) as caught:
        read_model(path, limits or Limits())
    error = caught.value
    assert error.field
    json.dumps([error.field, error.value, error.allowed, error.extra], allow_nan=False)
    return error


def edit(name, change):
    def apply(entries):
        value = json.loads(entries[name])
        change(value)
        entries[name] = json.dumps(value).encode()

    return apply


# --- the archive


def test_not_a_zip(tmp_path):
    path = tmp_path / "x.pt2"
    for content in (b"x", b"\x08\x08\x12\x07pytorch" * 9, b"%PDF-1.7", b"\x7fELF" + bytes(100)):
        path.write_bytes(content)
        assert refusal(path).extra["rule"] == "not-a-zip"
    path.write_bytes(b"")
    assert refusal(path).extra["rule"] == "empty-file"


def test_truncated_anywhere(conv_file, tmp_path):
    content = conv_file.read_bytes()
    path = tmp_path / "x.pt2"
    for length in [*range(4, len(content), 997), len(content) - 1]:
        path.write_bytes(content[:length])
        assert refusal(path).extra["rule"] == "truncated"


def test_appended_to_and_put_before(conv_file, tmp_path):
    content = conv_file.read_bytes()
    path = tmp_path / "x.pt2"
    path.write_bytes(content + b"more")
    assert refusal(path).extra["rule"] == "truncated"
    path.write_bytes(b"PK\x03\x04" + content)
    assert refusal(path).extra["rule"] == "damaged-archive"


def zipped(entries, **options):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return buffer.getvalue()


ARCHIVES = [
    # a bomb, two roots, no root, names that lead elsewhere, another archive, a comment
    (zipped([("m/models/model.json", bytes(1 << 24))], compression=zipfile.ZIP_DEFLATED), "compressed-entry"),
    (zipped([("a/models/model.json", b"{}"), ("b/archive_format", b"pt2")]), "archive-root"),
    (zipped([("m/../../etc/x", b"")]), "entry-name"),
    (zipped([("/m/x", b"")]), "entry-name"),
    (zipped([("m//x", b"")]), "entry-name"),
    (zipped([("m\\x", b"")]), "entry-name"),
    (zipped([("m/x\ny", b"")]), "entry-name"),
    (zipped([("m/x.txt", b"hello")]), "not-pt2"),
    (zipped([("m/models/model.json", b"{}"), ("m/archive_format", b"pt3")]), "not-pt2"),
    (zipped([("m/serialized_exported_program.json", b"{}")]), "old-format"),
    (zipped([]), "not-a-zip"),
    (zipped([("m/x", b"")])[:-2] + b"\x03\x00abc", "truncated"),
]


@pytest.mark.parametrize(("content", "rule"), ARCHIVES)
def test_other_archives(tmp_path, content, rule):
    path = tmp_path / "x.pt2"
    path.write_bytes(content)
    tracemalloc.start()
    assert refusal(path).extra["rule"] == rule
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


ENTRIES = [
    # change of the entries, rule
    (lambda e: e.update({"models/other.json": b"{}"}), "several-models"),
    (lambda e: e.update({"run_me.py": b""}), "unknown-entry"),
    (lambda e: e.update({"data/weights/weight_x": b""}), "unknown-entry"),
    (lambda e: e.update({"byteorder": b"big"}), "byte-order"),
    (lambda e: e.update({"archive_format": b"pt1"}), "not-pt2"),
    (lambda e: e.pop("byteorder"), "missing-entry"),
    (lambda e: e.pop(WEIGHTS), "missing-entry"),
    (lambda e: e.pop("data/weights/weight_0"), "missing-entry"),
    (lambda e: e.pop("data/constants/model_constants_config.json"), "missing-entry"),
    (lambda e: e.update({MODEL: b'{"a" 1}'}), "not-json"),
    (lambda e: e.update({MODEL: b"\xff{}"}), "not-json"),
    (lambda e: e.update({MODEL: b"[1, 2]"}), "json-type"),
    (lambda e: e.update({MODEL: b"{}"}), "json-key"),
    (lambda e: e.update({MODEL: b'{"a": 1, "a": 2}'}), "duplicate-key"),
    (lambda e: e.update({MODEL: b'{"a": ' + b"9" * 5000 + b"}"}), "json-number"),
    (lambda e: e.update({MODEL: b'{"a": NaN}'}), "json-number"),
    (lambda e: e.update({MODEL: b"[" * 100_000 + b"]" * 100_000}), "json-depth"),
    (lambda e: e.update({MODEL: b'{"a":' * 100_000}), "json-depth"),
    (lambda e: e.update({MODEL: b'"' + b"\\" * 100_001}), "not-json"),
]


@pytest.mark.parametrize(("change", "rule"), ENTRIES)
def test_other_entries(conv_file, tamper, change, rule):
    assert refusal(tamper(conv_file, change)).extra["rule"] == rule


def test_checksums(conv_file, tmp_path):
    content = bytearray(conv_file.read_bytes())
    with zipfile.ZipFile(conv_file) as archive:
        for info in archive.infolist():
            if info.filename.endswith(("weight_0", "model.json", "model.pt", "tensor_0", "byteorder")):
                data = content.index(info.filename.encode(), info.header_offset) + len(info.filename)
                length = struct.unpack_from("<H", content, info.header_offset + 28)[0]
                damaged = bytearray(content)
                damaged[data + length + info.file_size // 2] ^= 4
                path = tmp_path / "x.pt2"
                path.write_bytes(damaged)
                assert refusal(path).extra["rule"] == "checksum"


def central(content, name):
    """Offset of an entry's header in the table of contents."""
    start = struct.unpack_from("<I", content, len(content) - 6)[0]
    at = content.index(name, start)
    return at - 46


HEADERS = [
    # offset in the table's header, format, value, rule
    (10, "<H", 8, "compressed-entry"),
    (8, "<H", 1, "encrypted-entry"),
    (20, "<I", 5, "compressed-entry"),
    (42, "<I", 0, "damaged-archive"),
    (42, "<I", 0xFFFFFFFF, "damaged-archive"),
    (24, "<I", 0xFFFFFFFF, "damaged-archive"),
    (28, "<H", 9000, "damaged-archive"),
    (30, "<H", 60_000, "damaged-archive"),
    (16, "<I", 1, "checksum"),
]


@pytest.mark.parametrize(("offset", "form", "value", "rule"), HEADERS)
def test_headers(conv_file, tmp_path, offset, form, value, rule):
    content = bytearray(conv_file.read_bytes())
    struct.pack_into(form, content, central(content, b"model/models/model.json") + offset, value)
    path = tmp_path / "x.pt2"
    path.write_bytes(content)
    assert refusal(path).extra["rule"] == rule


@pytest.mark.parametrize(("offset", "value"), [(0, 0), (6, 1), (8, 8), (26, 3), (30, ord("x"))])
def test_local_headers_that_disagree(conv_file, tmp_path, offset, value):
    """Magic, flags, method, length of the name, the name: what another reader might believe."""
    content = bytearray(conv_file.read_bytes())
    content[content.index(b"PK\x03\x04", 100) + offset] = value
    path = tmp_path / "x.pt2"
    path.write_bytes(content)
    assert refusal(path).extra["rule"] == "damaged-archive"


def test_overlapping_entries(tmp_path):
    """The quoted-overlap bomb: many entries of the table that lead to the same bytes."""
    body = zipped([("m/a", b"x" * 1000), ("m/b", b"y")])
    start = struct.unpack_from("<I", body, len(body) - 6)[0]
    at = body.index(b"m/b", start) - 46
    content = bytearray(body)
    content[at + 46 : at + 49] = b"m/a"
    struct.pack_into("<I", content, at + 42, 0)
    struct.pack_into("<2I", content, at + 20, 1000, 1000)
    path = tmp_path / "x.pt2"
    path.write_bytes(content)
    assert refusal(path).extra["rule"] == "overlapping-entries"


def test_a_name_twice(conv_file, tmp_path):
    with zipfile.ZipFile(conv_file) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    path = tmp_path / "x.pt2"
    with pytest.warns(UserWarning, match="Duplicate name"):
        path.write_bytes(zipped([*entries, entries[0]]))
    assert refusal(path).extra["rule"] == "duplicate-entry"


# --- limits


@pytest.mark.parametrize(
    ("limit", "rule"),
    [
        ({"max_file_bytes": 1000}, "file-size"),
        ({"max_entries": 5}, "too-many-entries"),
        ({"max_json_bytes": 100}, "json-size"),
        ({"max_json_depth": 3}, "json-depth"),
        ({"max_pickle_bytes": 10}, "pickled-example-inputs"),
        ({"max_nodes": 3}, "too-many-nodes"),
        ({"max_list_length": 1}, "list-length"),
        ({"max_expression_length": 10}, "symbolic-expression"),
        ({"max_expression_depth": 0}, "symbolic-expression"),
        ({"max_symbols": 1}, "too-many-symbols"),
        ({"max_rank": 1}, "tensor-rank"),
        ({"max_value_bytes": 100}, "value-too-large"),
        ({"max_live_bytes": 400}, "too-much-memory"),
        ({"max_name_length": 20}, "damaged-archive"),
    ],
)
def test_every_limit_binds(transformer_file, limit, rule):
    read_model(transformer_file)
    assert refusal(transformer_file, Limits(**limit)).extra["rule"] == rule


# --- stored tensors


def first_meta(value):
    return next(iter(value["config"].values()))["tensor_meta"]


def number(value):
    return {"as_int": value}


STORED = [
    # change of the first tensor's entry, rule
    (lambda v: first_meta(v)["sizes"].__setitem__(0, number(1 << 40)), "storage-size"),
    (lambda v: first_meta(v)["sizes"].__setitem__(0, number(-4)), "tensor-size"),
    (lambda v: first_meta(v)["sizes"].__setitem__(0, {"as_int": True}), "json-type"),
    (lambda v: first_meta(v)["sizes"].__setitem__(0, {"as_int": 2.0}), "json-type"),
    (
        lambda v: first_meta(v)["sizes"].__setitem__(0, {"as_expr": {"expr_str": "Symbol('s0')"}}),
        "tensor-size",
    ),
    (lambda v: first_meta(v)["strides"].__setitem__(0, number(1 << 60)), "storage-size"),
    (lambda v: first_meta(v)["strides"].__setitem__(0, number(-1)), "tensor-size"),
    (lambda v: first_meta(v)["strides"].pop(), "tensor-rank"),
    (lambda v: first_meta(v).update(storage_offset=number(1)), "storage-size"),
    (lambda v: first_meta(v).update(storage_offset=number((1 << 62) - 1)), "storage-size"),
    (lambda v: first_meta(v).update(dtype=8), "storage-size"),
    (lambda v: first_meta(v).update(dtype=29), "tensor-dtype"),
    (lambda v: first_meta(v).update(dtype="float"), "json-type"),
    (lambda v: first_meta(v).update(layout=1), "tensor-layout"),
    (
        lambda v: first_meta(v).update(sizes=[number(1 << 20)] * 4, strides=[number(0)] * 4),
        "overlapping-storage",
    ),
    (lambda v: next(iter(v["config"].values())).update(path_name="../constants/tensor_0"), "payload-path"),
    (lambda v: next(iter(v["config"].values())).update(path_name="weight_999"), "missing-entry"),
    (lambda v: next(iter(v["config"].values())).update(path_name="weight_\u0661"), "payload-path"),
    (lambda v: next(iter(v["config"].values())).update(use_pickle=None), "json-type"),
    (lambda v: v["config"].pop("conv.weight"), "missing-tensor"),
]


@pytest.mark.parametrize(("change", "rule"), STORED)
def test_stored_tensors(conv_file, tamper, change, rule):
    assert refusal(tamper(conv_file, edit(WEIGHTS, change))).extra["rule"] == rule


def test_a_record_too_short(conv_file, tamper):
    path = tamper(conv_file, lambda e: e.update({"data/weights/weight_0": e["data/weights/weight_0"][:-4]}))
    error = refusal(path)
    assert error.extra["rule"] == "storage-size"
    assert error.field == "data/weights/weight_0"


class Numbers(nn.Module):
    def __init__(self, dtype, *, parameter):
        super().__init__()
        values = torch.arange(6.0).view(2, 3).to(dtype)
        if parameter:
            self.values = nn.Parameter(values)
        else:
            self.register_buffer("values", values)

    def forward(self, x):
        return x @ self.values.to(x.dtype)


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("parameter", [True, False])
def test_numbers_that_are_none(export, bad, dtype, parameter):
    module = Numbers(dtype, parameter=parameter)
    module.values.data[1, 1] = float(bad)
    path = export(module, [torch.randn(2, 2)])
    if bad != "nan" and not parameter:
        read_model(path)
        return
    error = refusal(path)
    assert error.extra["rule"] == "non-finite-weights"
    assert error.field == "values"
    assert "'values'" in error.message
