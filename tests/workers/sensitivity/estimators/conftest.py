import warnings
from dataclasses import dataclass

import pytest
import torch

from workers.contracts import Candidate, Metric, Scheme
from workers.graph.program import Program
from workers.graph.units import find_units
from workers.intake.pt2 import read_model
from workers.sensitivity.batches import Batches, Selection
from workers.sensitivity.exact import Setup
from workers.sensitivity.reference import Reference

CANDIDATES = tuple(Candidate(bits=bits, scheme=Scheme.parse("channel-asymmetric")) for bits in (2, 3, 5))
_EXPORTED = {}


@dataclass(frozen=True)
class Case:
    """A setup with the module it was made from."""

    module: torch.nn.Module
    inputs: tuple[torch.Tensor, ...]
    setup: Setup
    candidates: tuple[Candidate, ...] = CANDIDATES

    @property
    def units(self):
        return self.setup.table.units

    @property
    def wanted(self):
        return [(unit.info.name, candidate) for unit in self.units for candidate in self.candidates]


def export(module, inputs, *, fixed, path, sequences=False):
    key = (id(module), fixed, sequences)
    if key not in _EXPORTED:
        batch = torch.export.Dim("batch", min=1, max=1024)
        axes = {0: batch} | ({1: torch.export.Dim("positions", min=2, max=1024)} if sequences else {})
        shapes = None if fixed else tuple(axes for _ in inputs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(module, inputs, dynamic_shapes=shapes)
            torch.export.save(program, path)
        _EXPORTED[key] = module, path.read_bytes()
    path.write_bytes(_EXPORTED[key][1])
    return read_model(path)


@pytest.fixture
def make_setup(tmp_path):
    """A setup from a module: exported, saved, read back."""
    count = iter(range(100))

    def make(module, inputs, *, metric=Metric.KL, batch_size=3, fixed=None, labels=None, sequences=False):
        example = tuple(tensor[: fixed or 2] for tensor in inputs)
        path = tmp_path / f"{next(count)}.pt2"
        model = export(module.eval(), example, fixed=fixed, path=path, sequences=sequences)
        program = Program(model)
        selection = Selection(samples=None, seed=0, batch_size=batch_size)
        batches = Batches.of(inputs, labels, selection, fixed_batch=model.batch_size)
        reference = Reference.measure(program, batches, metric, memory_bytes=1 << 30)
        setup = Setup(program=program, table=find_units(model), batches=batches, reference=reference)
        return Case(module=module, inputs=inputs, setup=setup)

    return make
