"""A job's result as the contract has it, made up but consistent."""

import copy
import math
import random
from typing import Any

from app.kit.ids import content_sha256

BITS = (2, 3, 4, 5, 6, 8)
SCHEME = "channel-asymmetric"
Document = dict[str, Any]


def units(number: int) -> list[dict[str, Any]]:
    """Convolutions of growing size, every third one depthwise and sensitive, and a classifier."""
    found = []
    for i in range(number - 1):
        channels = 16 + 8 * i
        depthwise = i % 3 == 1
        shape = [channels, 1, 3, 3] if depthwise else [channels, max(3, channels // 2), 1, 1]
        found.append(
            {
                "name": f"_blocks.{i // 3}.{('_expand_conv', '_depthwise_conv', '_project_conv')[i % 3]}.weight",
                "operator": "conv2d",
                "shape": shape,
                "weights": math.prod(shape),
                "macs": math.prod(shape) * 196,
                "output_channel_axis": 0,
                "tied": [],
                "derived": False,
            }
        )
    last = {
        "name": "_fc.weight",
        "operator": "linear",
        "shape": [1000, 256],
        "weights": 256_000,
        "macs": 256_000,
    }
    return [*found, last | {"output_channel_axis": 0, "tied": [], "derived": False}]


_DATA = {
    "calibration": {
        "id": "dat_01jd8y1b2c3d4e5f6g7h8j9kmn",
        "name": "calibration.safetensors",
        "sha256": "cd" * 32,
        "samples": 128,
    },
    "evaluation": {
        "id": "dat_01jd8y1b2c3d4e5f6g7h8j9kmp",
        "name": "evaluation.safetensors",
        "sha256": "ef" * 32,
        "samples": 64,
    },
}
_SETTINGS = {
    "candidates": list(BITS),
    "scheme": SCHEME,
    "schemes": [SCHEME],
    "activation_candidates": [],
    "limits": {},
    "metric": "kl",
    "compare": "kl",
    "predicts": "kl",
    "budgets": ["4 bits", "3 bits"],
    "budget_counts": "weights",
    "pins": {},
    "ties": [],
    "exclude": [],
    "seed": 0,
    "samples": None,
    "holdout": 0.0,
    "batch_size": 32,
    "memory_bytes": 2 << 30,
}


def _model(number: int, weights: int) -> Document:
    return {
        "id": "mdl_01jd8y0v3k6zq2m4n5p7r8s9tb",
        "name": "efficientnet-lite0.pt2",
        "sha256": "ab" * 32,
        "weights": weights,
        "units": number,
        "float_bits": weights * 32 + 42_016 * 32,
        "unit_float_bits": weights * 32,
        "unsupported": [
            {
                "name": "_bn0.weight",
                "operator": "batch_norm",
                "shape": [32],
                "weights": 32,
                "reason": "one scale per channel, read by a normalisation",
            }
        ],
    }


def result_document(number: int = 16, seed: int = 0) -> Document:
    """The result of a finished job with budgets of 4 and 3 bits on average."""
    rng = random.Random(seed)
    all_units = units(number)
    weights = sum(u["weights"] for u in all_units)
    entries = [_entry(u, bits, base, rng) for u in all_units for base in [_base(u, rng)] for bits in BITS]
    cost = {(e["unit"], e["bits"]): e["mean"] for e in entries}
    path = _greedy(all_units, cost)
    plans = [_requested(i, average, path, entries, weights) for i, average in enumerate((4, 3))]
    uniform = [_uniform(bits, all_units, entries, weights) for bits in BITS]
    document = {
        "bitwright": "0.1.0",
        "job": "job_01jd8y0v3k6zq2m4n5p7r8s9ta",
        "name": "EfficientNet at 4 bits",
        "state": "done",
        "stage": None,
        "problem": None,
        "model": _model(number, weights),
        **copy.deepcopy(_DATA),
        "settings": copy.deepcopy(_SETTINGS),
        "plans": plans,
        "alternatives": [],
        "baselines": uniform,
        "sensitivities": entries,
        "units": all_units,
        "frontier": [
            {"size_bits": size, "average_bits": size / weights, "objective": _objective(choices, cost)}
            for size, choices in path
        ],
        "seconds": {"measure": 93.2, "solve": 0.12, "verify": 21.7, "total": 115.02},
    }
    own = {"id", "job", "name", "role", "spec", "created_at"}
    return {**document, "plan": plans[0]["id"], **{k: v for k, v in plans[0].items() if k not in own}}


def running(document: Document, done: int) -> Document:
    """The same job while it measures, ``done`` entries finished."""
    own = set(document["plans"][0]) - {"name", "job"}
    kept = {k: v for k, v in document.items() if k not in own and k != "plan"}
    return {
        **kept,
        "state": "running",
        "stage": "measure",
        "plans": [],
        "alternatives": [],
        "baselines": [],
        "frontier": [],
        "sensitivities": document["sensitivities"][:done],
        "seconds": {"measure": 12.0, "solve": None, "verify": None, "total": 12.0},
    }


def renamed(document: Document, old: str, new: str) -> Document:
    """The same document with another name for one unit."""
    changed = copy.deepcopy(document)
    for unit in changed["units"]:
        unit["name"] = new if unit["name"] == old else unit["name"]
    for entry in changed["sensitivities"]:
        entry["unit"] = new if entry["unit"] == old else entry["unit"]
    for plan in (*changed["plans"], *changed["baselines"]):
        plan["choices"] = {new if name == old else name: choice for name, choice in plan["choices"].items()}
    return changed


def _base(unit: dict[str, Any], rng: random.Random) -> float:
    return 10 ** rng.uniform(-3.6, -1.6) * (8 if "_depthwise" in unit["name"] else 1)


def _entry(unit: dict[str, Any], bits: int, base: float, rng: random.Random) -> dict[str, Any]:
    mean = float(f"{base * 4.4 ** (2 - bits) * rng.uniform(0.8, 1.25) * {2: 12, 3: 3}.get(bits, 1):.6g}")
    return {
        "unit": unit["name"],
        "bits": bits,
        "scheme": SCHEME,
        "metric": "kl",
        "size_bits": unit["weights"] * bits,
        "storage_bits": unit["weights"] * bits + unit["shape"][0] * (32 + bits),
        "mean": mean,
        "standard_error": float(f"{mean * rng.uniform(0.05, 0.15):.4g}"),
        "samples": 128,
        "seconds": 0.1,
        "source": "measured",
        "activation_bits": None,
    }


def _objective(choices: dict[str, int], cost: dict[tuple[str, int], float]) -> float:
    return math.fsum(cost[unit, bits] for unit, bits in choices.items())


def _greedy(
    all_units: list[dict[str, Any]], cost: dict[tuple[str, int], float]
) -> list[tuple[int, dict[str, int]]]:
    """Best slope first, from all at 2 bits to all at 8: sizes and choices on the way."""
    steps = []
    for unit in all_units:
        bits = BITS[0]
        while bits < BITS[-1]:
            slope, following = max(
                ((cost[unit["name"], bits] - cost[unit["name"], b]) / (b - bits) / unit["weights"], b)
                for b in BITS
                if b > bits
            )
            steps.append((slope, unit["name"], (following - bits) * unit["weights"], following))
            bits = following
    choices = dict.fromkeys((u["name"] for u in all_units), BITS[0])
    path = [(sum(u["weights"] for u in all_units) * BITS[0], dict(choices))]
    for _, name, more, following in sorted(steps, reverse=True):
        choices[name] = following
        path.append((path[-1][0] + more, dict(choices)))
    return path


def _plan(
    name: str, role: str, choices: dict[str, int], entries: list[dict[str, Any]], weights: int
) -> Document:
    chosen = [e for e in entries if choices.get(e["unit"]) == e["bits"]]
    objective = math.fsum(e["mean"] for e in chosen)
    size = sum(e["size_bits"] for e in chosen)
    calibration, evaluation = 1.3 * objective, 1.45 * objective
    agreement = max(0.001, 1 - math.sqrt(evaluation))
    return {
        "id": f"pln_{content_sha256(name)[:26].replace('i', 'j')}",
        "job": "job_01jd8y0v3k6zq2m4n5p7r8s9ta",
        "name": name,
        "role": role,
        "spec": {"budget": name, "budget_counts": "weights", "pins": {}, "ties": [], "exclude": []},
        "budget": None,
        "budget_bits": None,
        "status": "feasible",
        "objective": objective,
        "lower_bound": None,
        "relative_gap": None,
        "size_bits": size,
        "file_size_bits": sum(e["storage_bits"] for e in chosen) + 42_016 * 32,
        "average_bits": size / weights,
        "origin": "uniform",
        "solver": {"backend": "none"},
        "choices": {unit: {"bits": bits, "scheme": SCHEME} for unit, bits in choices.items()},
        "predicted": {"kl": objective},
        "measured": {
            "kl": {"calibration": calibration, "evaluation": evaluation},
            "top1_agreement": {"calibration": agreement, "evaluation": agreement * 0.98},
        },
        "measured_standard_error": {
            "kl": {"calibration": 0.06 * calibration, "evaluation": 0.09 * evaluation},
            "top1_agreement": {"calibration": 0.02, "evaluation": 0.03},
        },
        "created_at": "2026-01-02T03:04:05+00:00",
    }


def _requested(
    ordinal: int,
    average: int,
    path: list[tuple[int, dict[str, int]]],
    entries: list[dict[str, Any]],
    weights: int,
) -> Document:
    choices = max((point for point in path if point[0] <= average * weights), key=lambda point: point[0])[1]
    plan = _plan(f"{average} bits", "requested", choices, entries, weights)
    return plan | {
        "budget": f"{average} bits",
        "budget_bits": average * weights,
        "status": "optimal",
        "lower_bound": plan["objective"],
        "relative_gap": 0.0,
        "origin": "search",
        "solver": {
            "backend": "exact",
            "version": "1",
            "proof": "search",
            "multiplier": 3.1e-9 * (1 + ordinal),
            "seconds": 0.0041,
        },
    }


def _uniform(
    bits: int, all_units: list[dict[str, Any]], entries: list[dict[str, Any]], weights: int
) -> Document:
    choices = dict.fromkeys((u["name"] for u in all_units), bits)
    return _plan(f"uniform {bits} bits", "uniform", choices, entries, weights)
