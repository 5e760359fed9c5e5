"""What is special about an engine on other machines: it goes away, comes back, and must not talk to strangers."""

import asyncio

import engine_tasks
import psutil
import pytest
from distributed import Client
from distributed.comm import connect

from app.dispatch import run_files, tls
from app.dispatch.engine import Phase, engine_key
from app.errors import EngineUnavailable

from .conftest import dask_engine, wait_until


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "talk"
    folder.mkdir()
    return folder


@pytest.fixture
def engine(settings, folder):
    engine = dask_engine(settings, engine_tasks.run, {"folder": str(folder)})
    yield engine
    engine.close()


def test_the_scheduler_may_come_later_and_go_and_come_again(settings, folder, engine, programs):
    assert engine.capacity() == 0
    assert engine.status("tsk_1/0").phase is Phase.RUNNING, "no news is no reason to start it again"
    with pytest.raises(EngineUnavailable, match="not connected"):
        engine.submit("tsk_1/0", task_id="tsk_1", attempt=0, priority=0)
    engine.cancel("tsk_1/0")

    scheduler = programs.scheduler()
    worker = programs.worker()
    wait_until(lambda: engine.capacity() == 1)
    assert engine.status("tsk_1/0").phase is Phase.UNKNOWN
    key = engine_key("wait-1", 0)
    engine.submit(key, task_id="wait-1", attempt=0, priority=0)
    wait_until((folder / "wait-1-0.started").exists)

    scheduler.kill()
    assert worker.wait(timeout=10) == 75, "a worker without scheduler ends, to be started again"
    wait_until(lambda: engine.capacity() == 0)
    assert engine.status(key).phase is Phase.RUNNING

    programs.scheduler()
    programs.worker()
    wait_until(lambda: engine.capacity() == 1)
    assert engine.status(key).phase is Phase.UNKNOWN, "a new scheduler knows nothing of it"
    engine.submit("tsk_2/0", task_id="tsk_2", attempt=0, priority=0)
    wait_until((folder / "tsk_2-0.finished").exists)


def test_tasks_outlive_the_process_that_submitted_them(settings, folder, engine, programs):
    programs.scheduler()
    programs.worker()
    first = dask_engine(settings, engine_tasks.run, {"folder": str(folder)})
    wait_until(lambda: first.capacity() == 1)
    for name in ("wait-1", "wait-2"):
        first.submit(engine_key(name, 0), task_id=name, attempt=0, priority=0)
    wait_until((folder / "wait-1-0.started").exists)
    first.close()

    wait_until(lambda: engine.capacity() == 1)
    assert [engine.status(f"wait-{i}/0").phase for i in (1, 2)] == [Phase.RUNNING] * 2
    for name in ("wait-1", "wait-2"):
        (folder / f"{name}-0.go").touch()
        wait_until(lambda name=name: engine.status(f"{name}/0").phase is Phase.UNKNOWN)
        assert (folder / f"{name}-0.finished").exists()
    assert len((folder / "wait-1-0.started").read_text().split()) == 1, "it ran once"


def test_strangers_are_refused(settings, programs, tmp_path):
    programs.scheduler()
    address = run_files.scheduler_address(settings)
    assert address.startswith("tls://127.0.0.1:")
    foreign = tls.security(tls.ensure_tls(tmp_path / "foreign"))

    async def try_to_connect():
        with pytest.raises(OSError, match=r"(?i)certificate|ssl|tls|handshake|closed"):
            await Client(address, security=foreign, asynchronous=True, timeout=2, set_as_default=False)
        with pytest.raises(OSError, match=r"(?i)timed out|closed|handshake"):
            await connect(address.replace("tls://", "tcp://"), timeout=2)

    asyncio.run(try_to_connect())


def test_each_process_listens_on_one_loopback_port(settings, programs, engine):
    """Dask's defaults would open dashboards and HTTP endpoints, some on all addresses."""
    processes = [programs.scheduler(), programs.worker()]
    wait_until(lambda: engine.capacity() == 1)
    for process in processes:
        sockets = psutil.Process(process.pid).net_connections("inet")
        assert [s.laddr.ip for s in sockets if s.status == psutil.CONN_LISTEN] == ["127.0.0.1"]


def test_settings_are_not_printed_where_tasks_fail(settings, folder, programs, capfd):
    """Dask logs the arguments of a task that raises."""
    values = {"folder": str(folder), "database_url": "postgresql://user:opensesame@host/db"}
    engine = dask_engine(settings, engine_tasks.run, values)
    programs.scheduler()
    programs.worker()
    wait_until(lambda: engine.capacity() == 1)
    engine.submit("raise-1/0", task_id="raise-1", attempt=0, priority=0)
    wait_until(lambda: engine.status("raise-1/0").phase is Phase.ERROR)
    engine.close()
    programs.stop()
    output = "".join(capfd.readouterr())
    assert "ValueError" in output
    assert "opensesame" not in output
