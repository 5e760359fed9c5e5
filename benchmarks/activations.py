"""What quantized activations cost on EfficientNet-Lite0, and which way of choosing their range is best.

Writes two tables: the inputs of all units at one bit-width with float weights, for each way of choosing the range; and pairs
of weight and activation bits everywhere, next to their bit operations. Ranges are observed on calibration photos, costs
measured on others (KL to float, nats)::

    python benchmarks/activations.py FOLDER --samples 32
"""

import argparse
import sys
import time
from pathlib import Path

import torch

from workers.contracts import Candidate, Observation, PlanRequest, Scheme
from workers.graph.describe import describe
from workers.sensitivity.activations import ActivationRanges, observe
from workers.sensitivity.batches import Batches, Selection
from workers.sensitivity.metrics import kl
from workers.sensitivity.operations import plan_bit_operations
from workers.sensitivity.session import LoadedModel, load_batches, load_model
from workers.verify.plan import measure_plan

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from efficientnet_lite0 import Assets, build

RANGES = ("minmax", "percentile:0.01", "percentile:0.1", "percentile:1", "kl", "mse")
WIDTHS = (8, 6, 4, 3)
PAIRS = ((8, None), (8, 8), (8, 6), (8, 4), (6, 8), (6, 6), (4, 8), (4, 4))
BATCH = 16


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the model and the photos are, or are to be written")
    parser.add_argument(
        "--samples", type=int, default=32, help="photos to observe, and as many to measure on"
    )
    parser.add_argument("--scheme", default="channel-asymmetric", help="of the weights")
    options = parser.parse_args()
    assets = build(options.folder)
    loaded = load_model(str(assets.model), "cpu")
    compare_ranges(assets, loaded, options.samples)
    compare_pairs(assets, loaded, options.samples, options.scheme)


def compare_ranges(assets: Assets, loaded: LoadedModel, samples: int) -> None:
    """Float weights, all units' inputs at one width."""
    selection = Selection(samples=samples, seed=0, batch_size=BATCH)
    evaluation = load_batches(str(assets.evaluation), loaded, selection)
    started = time.process_time()
    reference = outputs(loaded, evaluation)
    float_seconds = time.process_time() - started
    started = time.process_time()
    ranges = observe(loaded.program, loaded.table, load_batches(str(assets.calibration), loaded, selection))
    passes = (time.process_time() - started) / float_seconds
    print(f"observed {len(ranges.tensors)} tensors at the cost of {passes:.1f} float passes")
    print("| range | " + " | ".join(f"{bits} bits" for bits in WIDTHS) + " |")
    print("|---" * (len(WIDTHS) + 1) + "|")
    for method in RANGES:
        scheme = Scheme.parse(f"tensor-asymmetric-{method}")
        costs = [
            float(kl(reference, outputs(loaded, evaluation, ranges, bits, scheme)).mean()) for bits in WIDTHS
        ]
        print(f"| {method} | " + " | ".join(f"{cost:.4f}" for cost in costs) + " |", flush=True)


def outputs(
    loaded: LoadedModel,
    batches: Batches,
    ranges: ActivationRanges | None = None,
    bits: int = 8,
    scheme: Scheme | None = None,
) -> torch.Tensor:
    """First outputs for all batches, with all units' inputs quantized if ranges are given."""
    operands: dict[int, dict[torch.fx.Node, object]] = {}
    if ranges is not None and scheme is not None:
        for unit in loaded.table.units:
            for use in unit.uses:
                operands[use.step] = {node: ranges.quantizer(node.name, bits, scheme) for node in use.inputs}
    override = loaded.program.override({}, operands)
    return torch.cat(
        [loaded.program.run(batches.inputs_of(batch), override)[0] for batch in range(len(batches))]
    )


def compare_pairs(assets: Assets, loaded: LoadedModel, samples: int, scheme: str) -> None:
    """The same pair everywhere."""
    description = describe(loaded.model)
    print("| weights | activations | KL | ± | agreement | bit operations |")
    print("|---" * 6 + "|")
    for bits, activation_bits in PAIRS:
        candidate = Candidate(bits=bits, scheme=Scheme.parse(scheme), activation_bits=activation_bits)
        choices = {unit.info.name: candidate for unit in loaded.table.units}
        measured = measure_plan(
            PlanRequest(
                model_path=str(assets.model),
                data_path=str(assets.evaluation),
                choices=choices,
                samples=samples,
                batch_size=BATCH,
                observation=Observation(path=str(assets.calibration), samples=samples),
            )
        )
        cost, agreement = measured["kl"], measured["top1_agreement"].mean
        operations = plan_bit_operations(description, choices) / 1e9
        print(
            f"| {bits} | {activation_bits or 'float'} | {cost.mean:.4f} | {cost.standard_error:.4f} "
            f"| {agreement:.2f} | {operations:.1f} G |",
            flush=True,
        )


if __name__ == "__main__":
    main()
