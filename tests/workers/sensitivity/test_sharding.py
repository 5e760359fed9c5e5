import math
import subprocess
import sys
from dataclasses import replace
from itertools import combinations, pairwise

import pytest

from workers.contracts import Candidate, InputInfo, ModelDescription, Scheme, UnitInfo
from workers.errors import RequestRefused
from workers.sensitivity.sharding import free_positions, in_execution_order, load, plan_shards, work


def description(*macs, reached=None):
    units = tuple(
        UnitInfo(
            name=f"u{i}",
            operator="linear",
            shape=(4, 4),
            weights=16,
            output_channel_axis=0,
            group_axis=1,
            macs=value,
            tied=(f"t{i}",),
            reached_macs=None if reached is None else reached[i],
        )
        for i, value in enumerate(macs)
    )
    return ModelDescription(
        inputs=(),
        batch_size=None,
        outputs=(),
        units=units,
        unsupported=(),
        weights=16 * len(units),
        float_bits=0,
        unit_float_bits=0,
    )


def entries(model, *bits):
    scheme = Scheme.parse("channel-symmetric")
    return [(unit.name, Candidate(bits=b, scheme=scheme)) for unit in model.units for b in bits]


def test_work_is_the_share_of_what_is_run_again():
    model = description(10, 20, 0, 70)
    assert work(model, entries(model, 4)) == pytest.approx([1.02, 0.92, 0.72, 0.72])
    assert work(model, [("t1", entries(model, 4)[0][1])]) == pytest.approx([0.92])


def test_what_a_unit_writes_counts_as_well_as_what_it_computes():
    def convolution(shape, macs, **axes):
        unit = description(macs).units[0]
        weights = math.prod(shape)
        return replace(
            unit, operator="conv2d", shape=shape, weights=weights, **{"output_channel_axis": 0} | axes
        )

    # The same output of 8 channels of 10 numbers: by a depthwise, a whole and a transposed convolution.
    depthwise = convolution((8, 1, 3, 3), 8 * 10 * 9)
    whole = convolution((8, 16, 3, 3), 8 * 10 * 16 * 9)
    transposed = convolution((16, 8, 1, 1), 8 * 10 * 16, output_channel_axis=1)
    per_output = load(whole) - whole.macs
    assert per_output > 0
    for unit in (depthwise, transposed):
        assert load(unit) - unit.macs == pytest.approx(per_output)
    units = tuple(
        replace(unit, name=f"u{i}", tied=()) for i, unit in enumerate((depthwise, whole, transposed))
    )
    model = replace(description(1), units=units)
    total = sum(load(unit) for unit in units)
    expected = [1.02, 1.02 - load(depthwise) / total, 0.02 + load(transposed) / total]
    assert work(model, entries(model, 4)) == pytest.approx(expected)
    assert load(description(0).units[0]) == 0.0


def test_work_is_what_a_unit_reaches():
    """Two branches that meet: the first does not reach the second."""
    model = description(40, 20, 40, reached=(80, 60, 40))
    assert work(model, entries(model, 4)) == pytest.approx([0.82, 0.62, 0.42])
    model = description(50, 50, reached=(50, 50))
    assert [len(shard) for shard in plan_shards(model, entries(model, 2, 3, 4), 2)] == [3, 3]


def test_work_of_a_model_of_lookups_is_spread_evenly():
    model = description(0, 0)
    assert work(model, entries(model, 4)) == pytest.approx([1.02, 0.52])


@pytest.mark.parametrize("shards", [1, 2, 3, 5, 8, 30])
def test_shards_are_contiguous_complete_and_as_even_as_possible(shards):
    model = description(5, 1, 8, 40, 2, 9)
    wanted = entries(model, 2, 4)
    plan = plan_shards(model, wanted[::-1], shards)
    assert len(plan) <= shards
    assert all(plan)
    flat = [entry for shard in plan for entry in shard]
    assert flat == in_execution_order(model, wanted[::-1])
    assert [name for name, _ in flat] == [name for name, _ in wanted]
    largest = max(sum(work(model, shard)) for shard in plan)
    assert largest == pytest.approx(best_split(work(model, flat), min(shards, len(flat))))


def best_split(amounts, shards):
    """The smallest largest part of any contiguous split, by trying all."""
    best = sum(amounts)
    for cuts in combinations(range(1, len(amounts)), shards - 1):
        ends = [0, *cuts, len(amounts)]
        best = min(best, max(sum(amounts[a:b]) for a, b in pairwise(ends)))
    return best


def test_nothing_wanted_is_no_shard():
    assert plan_shards(description(1), [], 4) == []


def test_bad_requests():
    model = description(1)
    with pytest.raises(RequestRefused, match="no unit 'x'"):
        work(model, [("x", entries(model, 4)[0][1])])
    with pytest.raises(RequestRefused, match="no unit 'x'"):
        plan_shards(model, [("x", entries(model, 4)[0][1])], 2)
    with pytest.raises(RequestRefused, match="0 shards"):
        plan_shards(model, entries(model, 4), 0)


def test_planning_does_not_import_torch():
    code = (
        "import sys, workers.sensitivity.sharding, workers.graph, workers.sensitivity, workers.verify; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_positions_are_those_along_open_axes():
    def info(name, *shape):
        return InputInfo(name=name, dtype="int64", shape=shape)

    shapes = {"text": [9, 40], "answer": [9, 7], "image": [9, 3, 8, 6], "labels": [9, 40]}
    assert free_positions([info("text", None, None), info("answer", None, None)], shapes) == 40
    assert free_positions([info("text", None, 40), info("answer", None, None)], shapes) == 7
    assert free_positions([info("image", None, 3, None, None)], shapes) == 48
    assert free_positions([info("image", None, 3, 8, 6)], shapes) == 1
    assert free_positions([], shapes) == 1
