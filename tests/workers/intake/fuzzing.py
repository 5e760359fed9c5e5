"""Deterministic mutations of model files: bytes, archive headers, and the tree of the JSON."""

import io
import json
import random
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

NUMBERS = [
    0,
    1,
    -1,
    2,
    3,
    7,
    255,
    65535,
    1 << 31,
    (1 << 31) - 1,
    1 << 40,
    (1 << 62) - 1,
    (1 << 63) - 1,
    -(1 << 63),
    10**19,
    10**30,
]
TEXTS = [
    "", "x", "weight_0", "weight_1", "tensor_0", "Infinity", "NaN", "\u0661", "a" * 3000, "../x", "cpu", "meta", "cuda",
    "Symbol('s0', positive=True, integer=True)", "Add(Integer(1), Integer(1))", "FloorDiv(Integer(1), Integer(0))",
    "Integer(99999999999999999999)", "__import__('os').getpid()", "torch.ops.aten.relu.default", "torch.ops.aten.relu_.default",
    "torch.ops.aten.add_.Tensor", "torch.ops.aten.view.default", "torch.ops.aten.zeros.default", "torch.ops.aten.unbind.int",
    "torch.ops.aten.cat.default", "torch.ops.aten.expand.default", "torch.ops.aten.copy_.default", "torch.ops.aten.t.default",
    "torch.ops.aten.einsum.default", "torch.ops.aten.lstm.input", "torch.ops.aten.repeat.default", "torch.ops.aten.arange.default",
    "_operator.mul", "_operator.pow", "_operator.floordiv", "torch.sym_max", "torch.ops.aten.sym_size.int",
]  # fmt: skip
KINDS = [
    "as_int", "as_ints", "as_float", "as_floats", "as_bool", "as_bools", "as_none", "as_string", "as_tensor", "as_tensors",
    "as_optional_tensors", "as_sym_int", "as_sym_ints", "as_scalar_type", "as_memory_format", "as_layout", "as_device",
    "as_expr", "as_graph", "as_name", "user_input", "parameter", "buffer", "tensor_constant", "constant_input",
]  # fmt: skip


def mutate(content: bytes, seed: int) -> tuple[str, bytes]:
    """One mutation of a file.

    Args:
        content: A ``.pt2`` file.
        seed: Which one; equal seeds make equal mutations.

    Returns:
        What was done, and the new file.
    """
    random_ = random.Random(seed)
    kind = random_.choices(["bytes", "headers", "json", "config"], [1, 2, 6, 2])[0]
    if kind == "bytes":
        return kind, _bytes(content, random_)
    if kind == "headers":
        return kind, _headers(content, random_)
    entries = _unpack(content)
    suffix = (
        "models/model.json"
        if kind == "json"
        else random_.choice(["weights_config.json", "constants_config.json"])
    )
    name = next(name for name in entries if name.endswith(suffix))
    entries[name] = _json(entries[name], random_, skip=0 if kind == "config" else 1)
    return kind, _pack(entries)


def _bytes(content: bytes, random_: random.Random) -> bytes:
    data = bytearray(content)
    action = random_.randrange(3)
    if action == 0:
        return bytes(data[: random_.randrange(len(data))])
    if action == 1:
        start = random_.randrange(len(data))
        del data[start : start + random_.randrange(1, 200)]
        return bytes(data)
    for _ in range(random_.randrange(1, 6)):
        data[random_.randrange(len(data))] ^= 1 << random_.randrange(8)
    return bytes(data)


def _headers(content: bytes, random_: random.Random) -> bytes:
    """Change bytes of the archive's own structures: the table of contents, its end, and local headers."""
    data = bytearray(content)
    places = [at for magic in (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06") for at in _find(data, magic)]
    for _ in range(random_.randrange(1, 4)):
        at = random_.choice(places)
        offset = at + random_.randrange(4, 46)
        if offset < len(data):
            data[offset] = random_.choice([0, 1, 0xFF, data[offset] ^ 1, random_.randrange(256)])
    return bytes(data)


def _find(data: bytearray, magic: bytes) -> Iterator[int]:
    at = data.find(magic)
    while at >= 0:
        yield at
        at = data.find(magic, at + 1)


def _unpack(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _pack(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def _json(text: bytes, random_: random.Random, skip: int) -> bytes:
    tree = json.loads(text)
    for _ in range(random_.choices([1, 2, 4], [6, 2, 1])[0]):
        places = list(_places(tree, skip))
        if not places:
            break
        container, key = random_.choice(places)
        _ACTIONS[random_.randrange(len(_ACTIONS))](container, key, random_, places)
    return json.dumps(tree).encode()


def _places(tree: Any, skip: int) -> Iterator[tuple[Any, Any]]:
    """Every container with each of its keys; texts for people (``metadata``) are left alone, if ``skip``."""
    stack = [tree]
    while stack:
        value = stack.pop()
        keys = list(value) if isinstance(value, dict) else range(len(value))
        for key in keys:
            if skip and key in ("metadata", "module_call_graph", "device", "requires_grad"):
                continue
            yield value, key
            if isinstance(value[key], dict | list):
                stack.append(value[key])


def _change_number(container: Any, key: Any, random_: random.Random, _places: Any) -> None:
    old = container[key]
    container[key] = old + random_.choice([-1, 1, 8]) if type(old) is int else random_.choice(NUMBERS)


def _replace(container: Any, key: Any, random_: random.Random, _places: Any) -> None:
    container[key] = random_.choice(
        [None, True, False, 1.5, -0.0, [], {}, [[]], random_.choice(NUMBERS), random_.choice(TEXTS)]
    )


def _set_text(container: Any, key: Any, random_: random.Random, _places: Any) -> None:
    container[key] = random_.choice(TEXTS)


def _set_number(container: Any, key: Any, random_: random.Random, _places: Any) -> None:
    container[key] = random_.choice(NUMBERS)


def _remove(container: Any, key: Any, _random: random.Random, _places: Any) -> None:
    del container[key]


def _duplicate(container: Any, key: Any, random_: random.Random, _places: Any) -> None:
    if isinstance(container, list):
        container.insert(random_.randrange(len(container) + 1), json.loads(json.dumps(container[key])))
    else:
        container[f"{key}x"] = container[key]


def _rename(container: Any, key: Any, random_: random.Random, _places: Any) -> None:
    if isinstance(container, dict):
        container[random_.choice(KINDS)] = container.pop(key)
    else:
        random_.shuffle(container)


def _nest(container: Any, key: Any, random_: random.Random, _places: Any) -> None:
    value = container[key]
    for _ in range(random_.choice([1, 3, 100])):
        value = [value] if random_.random() < 0.5 else {random_.choice(KINDS): value}
    container[key] = value


def _swap(container: Any, key: Any, random_: random.Random, places: Any) -> None:
    """Put the value of one place into another of the same type: the mutation that keeps most files readable."""
    old = container[key]
    others = [c[k] for c, k in places if type(c[k]) is type(old) and k == key]
    container[key] = json.loads(json.dumps(random_.choice(others)))


_ACTIONS: list[Callable[[Any, Any, random.Random, Any], None]] = [
    _change_number, _replace, _set_text, _set_number, _remove, _duplicate, _rename, _nest, _swap, _swap, _swap, _swap,
]  # fmt: skip
