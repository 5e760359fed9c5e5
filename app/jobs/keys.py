"""What a measurement depends on, as a key: jobs that ask for the same thing share the answer."""

from dataclasses import dataclass
from hashlib import sha256

from app.jobs.rules import split_sizes
from app.kit.ids import content_sha256
from workers.contracts import Candidate, ComputeDtype, Metric

MEASURE_VERSION = 4
"""Raised whenever the same request would be measured as another number; old measurements are then not used again."""
ESTIMATE_VERSION = 5
"""The same for estimates."""


@dataclass(frozen=True, kw_only=True)
class SampleChoice:
    """Which samples of a dataset are calibrated on.

    Args:
        available: Samples in the dataset.
        samples: How many are used; ``None`` for all that are not held out.
        holdout: Fraction set aside for evaluation.
        seed: Of both choices.
    """

    available: int
    samples: int | None
    holdout: float
    seed: int

    @property
    def used(self) -> int:
        """How many samples are calibrated on."""
        kept, _ = split_sizes(self.available, self.holdout)
        return kept if self.samples is None else min(self.samples, kept)

    def key(self) -> dict[str, object]:
        """What of this a measurement depends on: nothing when all samples are used."""
        used, held_out = split_sizes(self.available, self.holdout)
        chosen = self.samples is not None and self.samples < used
        key: dict[str, object] = {}
        if held_out:
            key["held_out"] = held_out
        if chosen:
            key["samples"] = self.samples
        return key | {"seed": self.seed} if key else {}


@dataclass(frozen=True, kw_only=True)
class Split:
    """Indices of the samples to calibrate on and to evaluate on, ascending; ``None`` for all, and for no evaluation."""

    calibration: tuple[int, ...] | None
    evaluation: tuple[int, ...] | None


def split_samples(available: int, holdout: float, seed: int) -> Split:
    """Set a fraction of the samples aside, the same ones for the same seed on every machine and in every release."""
    _, held_out = split_sizes(available, holdout)
    if not held_out:
        return Split(calibration=None, evaluation=None)
    shuffled = sorted(range(available), key=lambda i: sha256(f"{seed}/{i}".encode()).digest())
    aside = set(shuffled[:held_out])
    return Split(
        calibration=tuple(i for i in range(available) if i not in aside), evaluation=tuple(sorted(aside))
    )


def entry_key(  # noqa: PLR0913 - one keyword for each thing the value depends on
    *,
    model_sha256: str,
    dataset_sha256: str,
    unit: str,
    candidate: Candidate,
    metric: Metric,
    choice: SampleChoice,
    block: tuple[int, int],
    output: str | None = None,
    compute_dtype: ComputeDtype = ComputeDtype.FLOAT32,
) -> str:
    """Hex SHA-256 of everything the value of an entry depends on.

    A block of all samples says nothing of their order; another one depends on the seed that makes it. An ``output`` is part
    of it only where one was named, a ``compute_dtype`` where it is not the default.
    """
    whole = block == (0, choice.used)
    part: dict[str, object] = {} if whole else {"block": list(block), "seed": choice.seed}
    if candidate.activation_bits is not None:
        part["activation_bits"] = candidate.activation_bits
    if output is not None:
        part["output"] = output
    if compute_dtype is not ComputeDtype.FLOAT32:
        part["compute_dtype"] = compute_dtype.value
    return content_sha256(
        {
            "version": MEASURE_VERSION,
            "model": model_sha256,
            "dataset": dataset_sha256,
            "unit": unit,
            "bits": candidate.bits,
            "scheme": str(candidate.scheme),
            "metric": metric.value,
            **choice.key(),
            **part,
        }
    )


def probe_key(  # noqa: PLR0913 - one keyword for each thing the values depend on
    *,
    model_sha256: str,
    dataset_sha256: str,
    offer_sha256: str,
    metric: Metric,
    estimator: str,
    choice: SampleChoice,
    probes: int,
    block: tuple[int, int],
    output: str | None = None,
    compute_dtype: ComputeDtype = ComputeDtype.FLOAT32,
) -> str:
    """Hex SHA-256 of everything that the values of probes on one block of samples depend on.

    ``offer_sha256`` stands for all units and candidates, in order.
    """
    return content_sha256(
        {
            "version": ESTIMATE_VERSION,
            "model": model_sha256,
            "dataset": dataset_sha256,
            "offer": offer_sha256,
            "metric": metric.value,
            "estimator": estimator,
            "probes": probes,
            "block": list(block),
            **choice.key(),
            "seed": choice.seed,
            **({} if output is None else {"output": output}),
            **({} if compute_dtype is ComputeDtype.FLOAT32 else {"compute_dtype": compute_dtype.value}),
        }
    )
