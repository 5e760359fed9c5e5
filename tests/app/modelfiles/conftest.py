"""A real, small model file, and a worker of our own that inspects what is uploaded."""

import threading
import time
import warnings

import pytest
from sqlalchemy import select

from app.dispatch.shard import run_task
from app.models import Task, TaskKind, TaskState


def export(module, *inputs):
    import io

    import torch

    buffer = io.BytesIO()
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, not ours
        program = torch.export.export(module.eval(), inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))
        torch.export.save(program, buffer)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def model_file():
    """A convolution and a head, with any batch."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)
            self.head = nn.Linear(4 * 36, 10)
            self.scale = torch.tensor([2.0])

        def forward(self, image):
            return self.head(torch.relu(self.conv(image)).flatten(1)) * self.scale

    torch.set_num_threads(1)
    torch.manual_seed(0)
    return export(Net(), torch.randn(2, 1, 8, 8))


@pytest.fixture(scope="session")
def flat_file():
    """A model without anything to quantize."""
    import torch
    from torch import nn

    class Flat(nn.Module):
        def forward(self, image):
            return image.flatten(1)

    return export(Flat(), torch.randn(2, 1, 8, 8))


@pytest.fixture(scope="session")
def nan_file():
    """A model one of whose weights is no number."""
    import torch

    module = torch.nn.Linear(8, 4)
    with torch.no_grad():
        module.weight[1, 2] = float("nan")
    return export(module, torch.randn(2, 8))


class Inspector:
    """Does the waiting INSPECT tasks, as the dispatcher and a worker would."""

    def __init__(self, settings, database):
        self._settings, self._database = settings, database
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        while not self._stop.is_set():
            inspect(self._settings, self._database)
            time.sleep(0.005)

    def stop(self):
        self._stop.set()
        self._thread.join()


def inspect(settings, database):
    """Do all waiting inspections; how many there were."""
    query = select(Task.id).where(Task.kind == TaskKind.INSPECT, Task.state == TaskState.PENDING)
    with database.read() as session:
        waiting = session.scalars(query).all()
    for task_id in waiting:
        with database.write() as session:
            session.get_one(Task, task_id).state = TaskState.RUNNING
        run_task(settings.model_dump(mode="json"), task_id, 0)
    return len(waiting)


@pytest.fixture
def inspect_now(settings, database):
    return lambda: inspect(settings, database)


@pytest.fixture
def patient(settings, database, _served):
    """A client of an API that waits for inspections, with somebody who does them."""
    patient = settings.model_copy(update={"inspect_wait_s": 20.0})
    inspector = Inspector(patient, database)
    yield _served(patient)
    inspector.stop()
