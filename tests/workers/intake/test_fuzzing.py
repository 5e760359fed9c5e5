"""Mutated files: each is refused in order or is a model that fits; never another exception, a hang, or much memory."""

import json
import resource
import time

import pytest

from tests.workers.intake import fuzzing
from workers.errors import ModelRefused
from workers.intake.limits import Limits
from workers.intake.pt2 import read_model
from workers.intake.shape_check import check_shapes

MUTATIONS = 250
MOST_SECONDS = 10.0
MOST_KIB = 256 << 10


def attempt(path):
    """A model or its refusal."""
    try:
        return read_model(path)
    except ModelRefused as refusal:
        return refusal


def outcome(path):
    """The rule by which a file is refused, or ``"read"``."""
    result = attempt(path)
    if isinstance(result, ModelRefused):
        json.dumps(
            [result.message, result.field, result.value, result.allowed, result.extra], allow_nan=False
        )
        assert result.field
        assert len(result.message) < 2000
        return result.extra["rule"]
    check_shapes(result, dict.fromkeys(result.symbols, 2), Limits())
    return "read"


@pytest.mark.parametrize("name", ["conv_file", "transformer_file"])
def test_mutations(request, tmp_path, name):
    source = request.getfixturevalue(name)
    read_model(source)  # loads what torch loads on first use
    content, path = source.read_bytes(), tmp_path / "mutated.pt2"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = set()
    for seed in range(MUTATIONS):
        kind, mutated = fuzzing.mutate(content, seed)
        path.write_bytes(mutated)
        started = time.process_time()
        outcomes.add(outcome(path))
        assert time.process_time() - started < MOST_SECONDS, (kind, seed)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_KIB
    # The mutations reach every layer of the reader, and some are harmless.
    assert outcomes > {
        "read",
        "truncated",
        "checksum",
        "json-type",
        "json-key",
        "shape-mismatch",
        "invalid-arguments",
    }


def test_mutations_are_reproducible(conv_file):
    content = conv_file.read_bytes()
    assert [fuzzing.mutate(content, seed) for seed in range(20)] == [
        fuzzing.mutate(content, seed) for seed in range(20)
    ]
