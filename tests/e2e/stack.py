"""The real service in processes of its own, and what a test needs to hurt it and to see what it did."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import psutil
import torch
from sqlalchemy import func, select
from torch import nn

from app.db import Database
from app.dispatch import run_files
from app.export import export_model, write_dataset
from app.models import Job, JobEntry, JobState, Lease, Measurement, ProbeResult, Task, TaskState
from app.settings import Settings

SERVE = """
from app.dispatch import logs
from app.dispatch.supervisor import serve
from app.settings import Settings
logs.configure()
serve(Settings())
"""


def wait_until(condition, seconds=60.0, pause=0.01):
    """Poll a condition; the time is a bound for what hangs, not a sleep for luck."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(pause)
    return value


def make_files(folder: Path, layers: int = 10, channels: int = 24, samples: int = 96):
    """A CNN whose entries take some tens of milliseconds each, and data for it."""
    torch.manual_seed(0)
    body = [nn.Conv2d(3, channels, 3, padding=1), nn.ReLU()]
    for _ in range(layers - 2):
        body += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]
    net = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)).eval()
    model = export_model(net, torch.randn(2, 3, 24, 24), folder / "net.pt2")
    data = write_dataset(folder / "data.safetensors", {model.input_names[0]: torch.randn(samples, 3, 24, 24)})
    return model.path, Path(data) if isinstance(data, str | os.PathLike) else folder / "data.safetensors"


class Stack:
    """One `serve` with two workers on a data directory."""

    def __init__(self, data_dir: Path, database_url: str | None = None):
        values = {"data_dir": data_dir, "port": 0, "workers": 2}
        if database_url:
            values["database_url"] = database_url
        self.settings = Settings(**values)
        self.database = Database(self.settings.resolved_database_url)
        self.processes: list[subprocess.Popen] = []
        self.kills = 0

    def environment(self):
        return os.environ | {
            "BITWRIGHT_DATA_DIR": str(self.settings.data_dir),
            "BITWRIGHT_DATABASE_URL": self.settings.resolved_database_url,
            "BITWRIGHT_PORT": "0",
            "BITWRIGHT_WORKERS": "2",
            "BITWRIGHT_LEASE_TTL_S": "1",
        }

    def spawn(self, *arguments: str):
        process = subprocess.Popen(
            [sys.executable, *arguments], env=self.environment(), stdout=subprocess.PIPE, text=True
        )
        self.processes.append(process)
        return process

    def start(self):
        """Start the supervisor and wait until it says that the service is ready."""
        self.supervisor = self.spawn("-c", SERVE)
        line = self.supervisor.stdout.readline()
        assert "ready at http://127.0.0.1:" in line, line
        self.url = line.split()[-1]

    def extra_api(self):
        """Another API process, with a dispatcher of its own."""
        process = self.spawn("-m", "app.dispatch.processes", "api", "--name", "api-2")
        wait_until(lambda: run_files.read(self.settings, "api-2"))
        return process

    def children(self):
        """Name -> process of the supervisor's children that live."""
        found = {}
        for child in psutil.Process(self.supervisor.pid).children():
            with contextlib.suppress(psutil.Error):
                words = child.cmdline()
                if child.status() != psutil.STATUS_ZOMBIE and "app.dispatch.processes" in words:
                    found[words[-1]] = child
        return found

    def kill(self, name: str):
        self.kills += 1
        self.children()[name].kill()

    def kill_supervisor(self):
        """All of it goes: the children end by themselves."""
        self.kills += 4
        orphans = list(self.children().values())
        self.supervisor.send_signal(signal.SIGKILL)
        self.supervisor.wait()
        gone, alive = psutil.wait_procs(orphans, timeout=10)
        assert not alive, f"orphans: {alive}"
        assert len(gone) == 4

    def stop(self):
        for process in reversed(self.processes):
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.stdout.close()
        self.database.dispose()

    # What a client does

    def post(self, path, **arguments):
        """Insist, as the client library does: an API that was killed is back in a moment."""

        def answer():
            with contextlib.suppress(httpx.TransportError):
                return httpx.post(f"{self.url}/v1{path}", timeout=120, **arguments)
            return None

        response = wait_until(answer, pause=0.1)
        assert response.is_success, response.text
        return response.json()

    def upload(self, model: Path, data: Path):
        raw = {"Content-Type": "application/octet-stream"}
        found = self.post("/models", content=model.read_bytes(), params={"name": "net"}, headers=raw)
        assert found["state"] == "ready", found
        self.model = found["id"]
        self.dataset = self.post("/datasets", content=data.read_bytes(), params={"name": "d"}, headers=raw)[
            "id"
        ]

    def submit(self, **request):
        body = {
            "model": self.model,
            "dataset": self.dataset,
            "budgets": ["4 bits"],
            "candidates": [2, 3, 4, 6, 8],
            "metric": "kl",
        }
        return self.post("/jobs", json=body | request)["id"]

    # What the rows say

    def rows(self, job_id):
        """How many of a job's entries are measured."""
        with self.database.read() as session:
            return session.scalar(
                select(func.count())
                .select_from(JobEntry)
                .join(Measurement, Measurement.key == JobEntry.key)
                .where(JobEntry.job_id == job_id)
            )

    def probes(self):
        """Key -> time of everything that is estimated."""
        with self.database.read() as session:
            return {row.key: row.created_at for row in session.scalars(select(ProbeResult))}

    def job(self, job_id):
        with self.database.read() as session:
            return session.get_one(Job, job_id)

    def tasks(self, job_id):
        with self.database.read() as session:
            return session.scalars(select(Task).where(Task.job_id == job_id)).all()

    def leader(self):
        """Process id of the dispatcher that holds the lease; 0 while nobody does."""
        with self.database.read() as session:
            holder = session.scalar(select(Lease.holder).where(Lease.until > self.database.now()))
        return int(holder.split(":")[1]) if holder else 0

    def await_rows(self, job_id, number):
        wait_until(lambda: self.rows(job_id) >= number or self.job(job_id).state.final, seconds=120)
        assert self.rows(job_id) < self.total(job_id), "too late to hurt: the job has measured everything"

    def await_done(self, job_id):
        wait_until(lambda: self.job(job_id).state.final, seconds=120)
        job = self.job(job_id)
        assert job.state is JobState.DONE, job.problem
        assert all(task.state is TaskState.DONE for task in self.tasks(job_id))

    def total(self, job_id):
        with self.database.read() as session:
            return session.scalar(select(func.count()).where(JobEntry.job_id == job_id))

    # What the logs say

    def log_lines(self, action):
        """The ``key=value`` pairs of all log lines with an action."""
        for path in (self.settings.data_dir / "logs").glob("*.log*"):
            for text in path.read_text().splitlines():
                if f"action={action} " in text:
                    yield dict(re.findall(r'(\w+)=("[^"]*"|\S+)', text))

    def assert_nothing_was_computed_again(self, job_id):
        """Each entry has its row, and no worker ever finished an entry that was there already."""
        with self.database.read() as session:
            keys = set(session.scalars(select(JobEntry.key).where(JobEntry.job_id == job_id)))
        assert self.rows(job_id) == len(keys)
        assert list(self.log_lines("entry_was_there")) == []
        finished = Counter(line["key"] for line in self.log_lines("entry_measured"))
        assert set(finished.values()) == {1}
        # A line may be lost with the process that was about to write it; the row is not.
        assert len(keys - set(finished)) <= self.kills
        starts = sum(line.get("job_id") == job_id for line in self.log_lines("task_started"))
        assert starts <= len(self.tasks(job_id)) + 2 * self.kills
