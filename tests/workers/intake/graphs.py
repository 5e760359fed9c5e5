"""Graphs made by hand, in the form of the file's JSON."""

BATCH = "Symbol('s0', positive=True, integer=True)"
HUGE = 1 << 40
FLOAT, LONG, BOOL = 7, 5, 12


def size(value):
    return (
        {"as_int": value}
        if isinstance(value, int)
        else {"as_expr": {"expr_str": value, "hint": {"as_int": 2}}}
    )


def meta(shape, dtype=FLOAT):
    return {
        "dtype": dtype,
        "sizes": [size(s) for s in shape],
        "requires_grad": False,
        "device": {"type": "cpu", "index": None},
        "strides": [size(1)] * len(shape),
        "storage_offset": size(0),
        "layout": 7,
    }


def tensor(name):
    return {"as_tensor": {"name": name}}


def argument(value):
    """A plain value as the file writes it; text names a tensor, ``"#n"`` a number computed in the graph."""
    if isinstance(value, dict):
        return value
    if isinstance(value, str):
        return {"as_sym_int": {"as_name": value[1:]}} if value.startswith("#") else tensor(value)
    if isinstance(value, list) and value and isinstance(value[0], str):
        return {"as_tensors": [{"name": name} for name in value]}
    kind = {bool: "as_bool", int: "as_int", float: "as_float", list: "as_ints", type(None): "as_none"}[
        type(value)
    ]
    return {kind: True if value is None else value}


def node(target, arguments, name, *outputs):
    """One node; without outputs it has one tensor result with its own name."""
    return {
        "target": target if target.startswith("_operator.") else f"torch.ops.aten.{target}",
        "inputs": [{"name": k, "arg": argument(v), "kind": 1} for k, v in arguments.items()],
        "outputs": list(outputs) or [tensor(name)],
        "metadata": {},
        "name": name,
    }


def sym(name):
    return {"as_sym_int": {"as_name": name}}


RELU = node("relu.default", {"self": "x"}, "y")
SHAPED = {"y": ((BATCH, 4),)}
