"""One contract, every engine: what the dispatcher may rely on."""

import os
import queue
import signal
import subprocess
import sys
import threading
import uuid

import engine_tasks
import psutil
import pytest

from app.dispatch.engine import Phase, engine_key
from app.dispatch.local_engine import LocalEngine
from app.errors import EngineUnavailable

from .conftest import dask_engine, wait_until


class Bench:
    """An engine with two workers, and a folder through which tasks and tests talk."""

    def __init__(self, engine, folder):
        self.engine = engine
        self.folder = folder
        self.salt = uuid.uuid4().hex  # the engine is shared, and a key is never used twice

    def submit(self, task_id, attempt=0):
        key = engine_key(f"{task_id}-{self.salt}", attempt)
        self.engine.submit(key, task_id=task_id, attempt=attempt, priority=0)
        return key

    def pids(self, task_id, attempt=0):
        file = self.folder / f"{task_id}-{attempt}.started"
        return [int(text) for text in file.read_text().split()] if file.exists() else []

    def running(self, task_id, attempt=0):
        return wait_until(lambda: self.pids(task_id, attempt))[-1]

    def go_on(self, task_id, attempt=0):
        (self.folder / f"{task_id}-{attempt}.go").touch()

    def finished(self, task_id, attempt=0):
        return (self.folder / f"{task_id}-{attempt}.finished").exists()

    def ends_as(self, key):
        def ended():
            report = self.engine.status(key)
            return None if report.phase is Phase.RUNNING else report

        return wait_until(ended)


@pytest.fixture(params=["local", "dask"])
def bench(request, tmp_path):
    folder = tmp_path / "talk"
    folder.mkdir()
    values = {"folder": str(folder)}
    if request.param == "local":
        engine = LocalEngine(engine_tasks.run, values, processes=2)
    else:
        cluster = request.getfixturevalue("cluster")
        cluster.heal(workers=2)
        engine = dask_engine(cluster.settings, engine_tasks.run, values)
    wait_until(lambda: engine.capacity() == 2)
    yield Bench(engine, folder)
    engine.close()


def test_a_task_runs_once_and_is_reported_finished(bench):
    key = bench.submit("wait-1")
    bench.running("wait-1")
    assert bench.engine.status(key).phase is Phase.RUNNING
    bench.go_on("wait-1")
    assert bench.ends_as(key).phase is Phase.FINISHED
    assert len(bench.pids("wait-1")) == 1


@pytest.mark.parametrize("task", ["task-1", "raise-1"])
def test_the_end_of_a_task_is_told_once_it_can_be_seen(bench, task):
    seen, key = queue.Queue(), engine_key(f"{task}-{bench.salt}", 0)
    bench.engine.when_ended(lambda: seen.put(bench.engine.status(key).phase))
    assert bench.submit(task) == key
    expected = Phase.ERROR if task == "raise-1" else Phase.FINISHED
    while seen.get(timeout=30) is not expected:  # a process that has come up is told, too
        pass


def test_an_error_is_reported_with_its_text_and_hits_nobody_else(bench):
    other = bench.submit("wait-1")
    report = bench.ends_as(bench.submit("raise-1"))
    assert report.phase is Phase.ERROR
    assert "ValueError: raise-1-0 went wrong" in report.error
    bench.go_on("wait-1")
    assert bench.ends_as(other).phase is Phase.FINISHED


def test_an_unknown_key_is_told_from_a_running_one(bench):
    assert bench.engine.status("tsk_never/0").phase is Phase.UNKNOWN


def test_idle_workers_are_used(bench):
    for i in range(2):
        bench.submit(f"wait-{i}")
    assert bench.running("wait-0") != bench.running("wait-1")
    for i in range(2):
        bench.go_on(f"wait-{i}")


def test_a_killed_worker_is_noticed_and_replaced_or_survived(bench):
    """Its task is lost, or (Dask) runs again elsewhere; the other worker's task goes on."""
    key, other = bench.submit("wait-1"), bench.submit("wait-2")
    bench.running("wait-2")
    os.kill(bench.running("wait-1"), signal.SIGKILL)
    bench.go_on("wait-2")
    assert bench.ends_as(other).phase is Phase.FINISHED
    bench.go_on("wait-1")
    phase = bench.ends_as(key).phase
    assert phase in (Phase.LOST, Phase.FINISHED)
    assert bench.finished("wait-1") is (phase is Phase.FINISHED)
    assert bench.ends_as(bench.submit("task-3")).phase is Phase.FINISHED


def test_cancel_kills_the_process_of_that_task_alone(bench):
    key, other = bench.submit("wait-1"), bench.submit("wait-2")
    pid = bench.running("wait-1")
    bench.running("wait-2")
    bench.engine.cancel(key)
    wait_until(lambda: not alive(pid))
    bench.engine.cancel("tsk_never/0")
    bench.go_on("wait-2")
    assert bench.ends_as(other).phase is Phase.FINISHED
    bench.go_on("wait-1")


def test_cancel_does_not_hit_what_came_after(bench):
    key = bench.submit("task-1")
    assert bench.ends_as(key).phase is Phase.FINISHED
    others = [bench.submit(f"wait-{i}") for i in range(2)]
    for i in range(2):
        bench.running(f"wait-{i}")
    bench.engine.cancel(key)
    for i in range(2):
        bench.go_on(f"wait-{i}")
    assert [bench.ends_as(k).phase for k in others] == [Phase.FINISHED] * 2
    assert len(bench.pids("wait-0")) == 1


def alive(pid):
    """A zombie is dead."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_local_engine_replaces_what_dies_and_says_so_when_it_cannot(tmp_path):
    engine = LocalEngine(engine_tasks.run, {"folder": str(tmp_path)}, processes=1)
    try:
        for attempt in range(3):
            key = engine_key("die", attempt)
            engine.submit(key, task_id="die", attempt=attempt, priority=0)
            wait_until(lambda key=key: engine.status(key).phase is Phase.LOST)
        engine.submit("ok/0", task_id="ok", attempt=0, priority=0)
        wait_until(lambda: engine.status("ok/0").phase is Phase.FINISHED)
    finally:
        engine.close()
    assert engine.capacity() == 0
    with pytest.raises(EngineUnavailable):
        engine.submit("late/0", task_id="late", attempt=0, priority=0)


def test_a_closed_dask_engine_answers_at_once(settings):
    engine = dask_engine(settings, engine_tasks.run, {})
    engine.close()
    assert engine.capacity() == 0
    assert engine.status("task/0").phase is Phase.RUNNING, "no news"
    engine.cancel("task/0")
    with pytest.raises(EngineUnavailable, match="closed"):
        engine.submit("task/0", task_id="task", attempt=0, priority=0)


def test_a_question_that_a_stopped_loop_would_never_answer_ends(settings, monkeypatch):
    """Asked just as another thread closes the engine."""
    monkeypatch.setattr("app.dispatch.dask_engine.ANSWER_TIMEOUT_S", 0.05)
    engine = dask_engine(settings, engine_tasks.run, {})
    engine._loop.call_soon_threadsafe(engine._loop.stop)
    engine._thread.join()
    assert engine.capacity() == 0
    engine._thread = threading.Thread(target=engine._loop.run_forever)
    engine._thread.start()
    engine.close()


def test_a_local_engine_prepares_each_process_before_its_first_task(tmp_path, monkeypatch):
    monkeypatch.setenv("PREPARED_IN", str(tmp_path))

    def notes():
        return {path.name: path.read_text() for path in tmp_path.glob("prepared-*")}

    engine = LocalEngine(
        engine_tasks.run, {"folder": str(tmp_path)}, processes=2, threads=3, prepare=engine_tasks.prepare
    )
    try:
        engine.submit("ok/0", task_id="ok", attempt=0, priority=0)
        wait_until(lambda: engine.status("ok/0").phase is Phase.FINISHED)
        assert notes(), "whoever ran the task had prepared before"
        expected = {f"prepared-{pid}": "3" for pid in engine.process_ids}
        wait_until(lambda: len(notes()) == 2 and all(notes().values()))
        assert notes() == expected
    finally:
        engine.close()


def test_a_local_engine_whose_processes_never_come_up_fails_its_tasks(tmp_path):
    engine = LocalEngine(engine_tasks.NoSuchThing(), {"folder": str(tmp_path)}, processes=1)
    try:
        engine.submit("a/0", task_id="a", attempt=0, priority=0)
        wait_until(lambda: engine.status("a/0").phase is Phase.ERROR)
        assert "before they are up" in engine.status("a/0").error
        assert engine.capacity() == 1
        engine.submit("b/0", task_id="b", attempt=0, priority=0)
        assert engine.status("b/0").phase is Phase.ERROR
    finally:
        engine.close()


def test_workers_have_compiled_code_before_they_have_a_task():
    code = (
        "import sys; from app.dispatch.shard import preload; preload(1); "
        "print({'workers.quant.kernels.values', 'workers.sensitivity.kernels.changes'} <= set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "True"
