"""What people use a model for, as one figure of a plan on the evaluation samples; for all of them more is better."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from app.kit.ids import content_sha256
from app.local import Files
from app.report import quantities
from workers.contracts import Candidate, Metric, Observation, PlanRequest, Scheme
from workers.sensitivity.exact import quantized
from workers.sensitivity.reference import Spread, first_output
from workers.sensitivity.session import (
    load_batches,
    load_float_outputs,
    load_model,
    load_moments,
    selection_of,
)


class Task(Protocol):
    """One figure of a plan."""

    @property
    def title(self) -> str:
        """What it is."""

    def of(self, plan: Mapping[str, Any]) -> float:
        """Of a plan with its ``choices`` and what was ``measured`` of it."""

    def of_float(self, plan: Mapping[str, Any]) -> float:
        """Of the float model; ``plan`` is any measured plan."""

    def text(self, value: float) -> str:
        """For a table."""


def decimal(value: float) -> str:
    """Two digits after the point."""
    return f"{value:.2f}".replace("-", quantities.MINUS)


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share of the samples or tokens that verification counts anyway: agreement or accuracy."""

    title: str
    metric: str
    float_metric: str | None = None

    def of(self, plan: Mapping[str, Any]) -> float:
        """As measured."""
        return float(plan["measured"][self.metric]["evaluation"])

    def of_float(self, plan: Mapping[str, Any]) -> float:
        """As measured, or 1: the float model agrees with itself."""
        return float(plan["measured"][self.float_metric]["evaluation"]) if self.float_metric else 1.0

    def text(self, value: float) -> str:
        """In percent."""
        return quantities.percent(value)


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Mean cosine similarity of embeddings of length 1 to the float model's.

    It follows from the measured mean squared error: ``|a - b|^2 = 2 - 2 cos`` for vectors of length 1.
    """

    files: Files
    title: str = "cosine similarity"

    def of(self, plan: Mapping[str, Any]) -> float:
        """From the error as measured, which is one over the outputs' variance and per element."""
        elements, variance = self._outputs
        return 1 - float(plan["measured"]["mse"]["evaluation"]) * variance * elements / 2

    def of_float(self, plan: Mapping[str, Any]) -> float:  # noqa: ARG002 - the same whatever the plan
        """The float model's embeddings are its own."""
        return 1.0

    def text(self, value: float) -> str:
        """Four digits after the point."""
        return f"{value:.4f}"

    @cached_property
    def _outputs(self) -> tuple[int, float]:
        """Elements of an embedding, and their variance."""
        request = _request(self.files, {})
        floats = load_float_outputs(request, load_model(request.model_path, request.device))
        spread, elements = Spread(), 0
        for batch in range(len(floats.batches)):
            output = floats.of(batch)
            elements = output.shape[-1]
            spread.add(output)
        return elements, spread.variance()


@dataclass(frozen=True, kw_only=True)
class Computed:
    """A figure of the outputs on the evaluation samples.

    Takes a pass for each plan; what was found is kept in a file.

    Args:
        title: What it is.
        files: Model and data.
        figure: Of the outputs, [samples, ...].
        known: JSON: hash of choices and data -> value.
        words: How a value reads.
    """

    title: str
    files: Files
    figure: Callable[[NDArray[Any]], float]
    known: Path
    words: Callable[[float], str] = decimal

    def of(self, plan: Mapping[str, Any]) -> float:
        """Found by applying the plan."""
        return self._of(plan["choices"])

    def of_float(self, plan: Mapping[str, Any]) -> float:  # noqa: ARG002 - the same whatever the plan
        """Of the model without any change."""
        return self._of({})

    def text(self, value: float) -> str:
        """As it reads."""
        return self.words(value)

    def _of(self, choices: Mapping[str, Any]) -> float:
        found: dict[str, float] = json.loads(self.known.read_text()) if self.known.exists() else {}
        key = content_sha256({"choices": dict(choices), "data": str(self.files)})
        if key not in found:
            found[key] = self.figure(outputs(self.files, choices))
            self.known.write_text(json.dumps(found, indent=1) + "\n")
        return found[key]


def outputs(files: Files, choices: Mapping[str, Any]) -> NDArray[np.floating[Any]]:
    """What a model with a plan applied makes of the evaluation samples.

    Args:
        files: Model and data.
        choices: Unit -> what it gets, as result documents show it; units not named stay in float.
    """
    request = _request(files, choices)
    loaded = load_model(request.model_path, request.device)
    batches = load_batches(request.data_path, loaded, selection_of(request))
    wanted = list(request.choices.items())
    assert request.observation is not None
    moments = load_moments(request, loaded, request.observation, wanted)
    override = quantized(loaded.program, loaded.table, wanted, moments=moments)
    found = [
        first_output(loaded.program.run(batches.inputs_of(batch), override), batches, batch)
        for batch in range(len(batches))
    ]
    return torch.cat(found).numpy()


def _request(files: Files, choices: Mapping[str, Any]) -> PlanRequest:
    return PlanRequest(
        model_path=str(files.model),
        data_path=str(files.evaluation),
        choices={
            unit: Candidate(bits=choice["bits"], scheme=Scheme.parse(choice["scheme"]))
            for unit, choice in choices.items()
        },
        metrics=(Metric.MSE,),
        batch_size=None,
        observation=Observation(path=str(files.calibration)),
    )
