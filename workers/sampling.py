"""On which samples an entry is measured, and what is kept of its output change besides the cost. Torch-free."""

from dataclasses import dataclass
from enum import StrEnum

from workers.errors import RequestRefused

MIN_SKETCH_COLUMNS = 64


class SketchForm(StrEnum):
    """What a sketch holds of an output change, for metrics of distributions (``kl``, ``loss``)."""

    HELLINGER = "hellinger"
    """Change of the square roots of the probabilities."""
    FISHER = "fisher"
    """Change of the outputs in the Fisher metric of the float model's distribution."""


@dataclass(frozen=True, kw_only=True)
class SketchRequest:
    """That output changes are to be kept, and how much of them (`workers.sensitivity.sketches`).

    Args:
        columns: Numbers kept per entry at most, 64 or more.
        projections: Random-sign sums per position at least, from 1 to 64, where positions have more numbers than 32.
        form: What is kept.
    """

    columns: int = 2048
    projections: int = 1
    form: SketchForm = SketchForm.HELLINGER

    def __post_init__(self) -> None:
        if self.columns < MIN_SKETCH_COLUMNS:
            raise RequestRefused(
                f"sketches of {self.columns} numbers are too short",
                "columns",
                self.columns,
                f"{MIN_SKETCH_COLUMNS} or more",
            )
        if not 1 <= self.projections <= MIN_SKETCH_COLUMNS:
            raise RequestRefused(
                f"{self.projections} projections per position are not offered",
                "projections",
                self.projections,
                f"whole numbers from 1 to {MIN_SKETCH_COLUMNS}",
            )


@dataclass(frozen=True, kw_only=True)
class SampleBlock:
    """Samples ``[start, stop)`` of the chosen ones, in a random order that depends on the seed and their number only.

    So the first samples of the order are a random subset, and blocks that do not overlap are independent.
    """

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise RequestRefused(
                f"a block of samples from {self.start} to {self.stop}",
                "block",
                [self.start, self.stop],
                "0 <= start < stop",
            )
