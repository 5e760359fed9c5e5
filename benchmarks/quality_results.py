"""Results of several runs put together: each may take hours, and seldom all are made at once."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from quality_rows import Row


@dataclass(kw_only=True)
class Outcome:
    """What is known of a model's plans."""

    model: str
    title: str
    compare: str
    task_title: str
    samples: int
    evaluation_samples: int
    task_of_float: float = 0.0
    rows: list[Row] = field(default_factory=list)
    uniform: dict[str, list[tuple[float, float, float | None]]] = field(default_factory=dict)
    """Scheme -> average bits, cost and its standard error of each uniform plan."""
    random: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Scheme -> budget -> costs of random plans."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Scheme and metric -> wall-clock seconds until the costs were known; what was known before is not counted."""
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of_json(cls, document: dict[str, Any]) -> Self:
        """As `dataclasses.asdict` gives it."""
        rows = [Row(**row) for row in document["rows"]]
        uniform = {scheme: [tuple(plan) for plan in plans] for scheme, plans in document["uniform"].items()}
        return cls(**document | {"rows": rows, "uniform": uniform})

    def after(self, earlier: Self) -> Self:
        """Both together; what was found now takes the place of what an earlier run found, notes are those of now."""
        new = {(row.scheme, row.plan, row.budget) for row in self.rows}
        kept = [row for row in earlier.rows if (row.scheme, row.plan, row.budget) not in new]
        random = {s: earlier.random.get(s, {}) | self.random.get(s, {}) for s in earlier.random | self.random}
        return replace(
            self,
            task_of_float=self.task_of_float if self.rows else earlier.task_of_float,
            rows=_by_scheme([*kept, *self.rows]),
            uniform=earlier.uniform | self.uniform,
            random=random,
            seconds=earlier.seconds | self.seconds,
        )

    def about_the_same(self, other: Self) -> bool:
        """Whether rows of both may stand in one table."""
        shared = ("model", "compare", "task_title", "samples", "evaluation_samples")
        return all(getattr(self, name) == getattr(other, name) for name in shared)


def _by_scheme(rows: Sequence[Row]) -> list[Row]:
    """Rows of a scheme side by side, schemes in the order in which they come first."""
    schemes = dict.fromkeys(row.scheme for row in rows)
    return [row for scheme in schemes for row in rows if row.scheme == scheme]


def read(path: Path | None) -> list[Outcome]:
    """What earlier runs wrote; nothing where there is no file."""
    if path is None or not path.exists():
        return []
    return [Outcome.of_json(document) for document in json.loads(path.read_text())]


def write(path: Path, outcomes: Iterable[Outcome]) -> None:
    """Write every number."""
    path.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")


def together(new: Sequence[Outcome], earlier: Sequence[Outcome]) -> list[Outcome]:
    """Each model once: what was found now with what was found earlier on the same data; models not run now as they were."""
    by_model = {outcome.model: outcome for outcome in earlier}
    for outcome in new:
        known = by_model.get(outcome.model)
        by_model[outcome.model] = outcome.after(known) if known and outcome.about_the_same(known) else outcome
    return list(by_model.values())
