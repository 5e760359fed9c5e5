"""Keeping processes running: restarts, output, locks, ends. The whole stack is put to the test in `tests/e2e`."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest

from app.dispatch import children, parent, processes, run_files, supervisor
from app.dispatch.children import Backoff, Child, Program, level_of
from app.dispatch.errors import StartRefused
from app.settings import Settings

from .conftest import wait_until


def program(code, **values):
    return Program(name="child", command=[sys.executable, "-c", code], environment=dict(os.environ), **values)


@pytest.fixture
def make_child(tmp_path):
    made = []

    def make(code, **values):
        made.append(Child(program(code, **values), tmp_path))
        return made[-1]

    yield make
    for child in made:
        child.reap(0)


def test_backoff_grows_while_lives_are_short_and_forgets_after_a_long_one():
    backoff = Backoff()
    assert [backoff.after(0.5) for _ in range(7)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0]
    assert backoff.after(children.STABLE_S) == 0.0
    assert backoff.after(0.5) == 0.1


@pytest.mark.parametrize("code", [0, 1, 75])
def test_the_end_of_a_life_is_told_once_whatever_its_code(make_child, code):
    child = make_child(f"raise SystemExit({code})")
    child.start()
    assert wait_until(lambda: seen(child)) == (code,)
    assert child.down
    assert child.ended() is None
    assert child.restart_at > time.monotonic() - 1


def seen(child):
    code = child.ended()
    return None if code is None else (code,)


def test_lines_go_to_the_log_and_bad_ones_to_the_terminal(make_child, tmp_path, capfd):
    child = make_child(
        "print('t d INFO x: fine'); print('t d ERROR x: bad'); print('  detail'); print('t d INFO x: fine again')"
    )
    child.start()
    wait_until(lambda: seen(child))
    child.reap(5)
    assert (tmp_path / "child.log").read_text().splitlines() == [
        "t d INFO x: fine", "t d ERROR x: bad", "  detail", "t d INFO x: fine again",
    ]  # fmt: skip
    assert capfd.readouterr().err.splitlines() == ["child | t d ERROR x: bad", "child |   detail"]


@pytest.mark.parametrize(
    ("text", "before", "expected"),
    [
        ("2026-01-01 00:00:00,000 WARNING app: x", logging.INFO, logging.WARNING),
        ("2026-01-01 00:00:00,000 INFO app: an ERROR in words", logging.ERROR, logging.INFO),
        ("Traceback (most recent call last):", logging.INFO, logging.ERROR),
        ("  File x", logging.ERROR, logging.ERROR),
        ("Fatal Python error: Segmentation fault", logging.INFO, logging.ERROR),
        ("", logging.INFO, logging.INFO),
    ],
)
def test_levels_of_lines(text, before, expected):
    assert level_of(text, before) == expected


def test_who_does_not_end_in_time_is_killed_with_its_group(make_child, tmp_path):
    child = make_child(
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid)); time.sleep(60)"
    )
    child.start()
    grandchild = int(wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()))
    child.terminate()
    child.reap(0.1)
    assert child.down
    wait_until(lambda: not psutil.pid_exists(grandchild) or psutil.Process(grandchild).status() == "zombie")


def test_a_child_ends_when_its_supervisor_is_killed(tmp_path):
    """However the supervisor ends, the pipe closes."""
    code = f"""
import os, subprocess, sys, time
reading, writing = os.pipe()
child = "from app.dispatch.parent import die_with_parent; import time; die_with_parent(); print(1, flush=True); time.sleep(60)"
p = subprocess.Popen([sys.executable, "-c", child], pass_fds=(reading,), env=os.environ | {{"{parent.VARIABLE}": str(reading)}},
                     stdout=subprocess.PIPE, start_new_session=True)
p.stdout.readline()
print(p.pid, flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with process:
        orphan = psutil.Process(int(process.stdout.readline()))
        process.send_signal(signal.SIGKILL)
        process.wait()
    gone, _ = psutil.wait_procs([orphan], timeout=10)
    assert gone


def test_without_a_supervisor_a_process_lives_on_its_own(monkeypatch):
    monkeypatch.delenv(parent.VARIABLE, raising=False)
    before = threading.active_count()
    parent.die_with_parent()
    assert threading.active_count() == before


# The data directory ------------------------------------------------------------------------------------------------


def test_a_data_directory_serves_one_service(settings):
    with (
        supervisor.lock(settings),
        pytest.raises(StartRefused, match=f"in use by another service \\(process {os.getpid()}\\)") as caught,
        supervisor.lock(settings),
    ):
        pass
    assert caught.value.field == "data_dir"
    with supervisor.lock(settings):
        assert (settings.data_dir / "run" / "serve.lock").read_text() == str(os.getpid())


def test_the_processes_of_a_killed_predecessor_are_waited_for(settings):
    """They inherit the lock, and end soon after their supervisor."""
    code = f"""
import sys, time
from app.dispatch import supervisor
from app.settings import Settings
with supervisor.lock(Settings(data_dir={str(settings.data_dir)!r})) as held:
    import os, subprocess
    subprocess.Popen([sys.executable, "-c", "input()"], pass_fds=(held.fileno(),))
    print(1, flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    process.kill()
    process.wait()
    entered = threading.Event()

    def enter():
        with supervisor.lock(settings):
            entered.set()

    thread = threading.Thread(target=enter)
    thread.start()
    assert not entered.wait(0.3), "the predecessor's child still holds the directory"
    process.stdin.close()
    assert entered.wait(5)
    thread.join()
    process.stdout.close()


def test_children_read_the_same_settings_from_their_environment(tmp_path, monkeypatch):
    settings = Settings(
        data_dir=tmp_path, database_url="postgresql+psycopg://u:p@h/d", workers=3, lease_ttl_s=1.5,
        allowed_locations=(tmp_path / "a", tmp_path / "b"),
    )  # fmt: skip
    for name in [n for n in os.environ if n.startswith("BITWRIGHT_")]:
        monkeypatch.delenv(name)
    for name, value in supervisor.environment_of(settings).items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings


def test_run_files_say_where_processes_are(settings):
    assert run_files.read(settings, "scheduler") is None
    assert run_files.scheduler_address(settings) is None
    run_files.write(settings, "scheduler", address="tls://127.0.0.1:1")
    assert run_files.read(settings, "scheduler") == {"pid": os.getpid(), "address": "tls://127.0.0.1:1"}
    assert run_files.scheduler_address(settings) == "tls://127.0.0.1:1"
    configured = settings.model_copy(update={"scheduler_address": "tls://10.0.0.1:8786"})
    assert run_files.scheduler_address(configured) == "tls://10.0.0.1:8786"
    run_files.remove(settings, "scheduler")
    run_files.remove(settings, "scheduler")
    assert run_files.scheduler_address(settings) is None


# What cannot start says why ------------------------------------------------------------------------------------------


def test_a_taken_port_is_refused_before_anything_starts(make_settings):
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartRefused, match=f"127.0.0.1 port {port}: Address already in use") as caught:
            supervisor.serve(make_settings(port=port))
    assert (caught.value.field, caught.value.value) == ("port", port)


REMOTE = [
    lambda settings: processes.run_scheduler(settings, host="10.0.0.1"),
    lambda settings: processes.run_scheduler(settings, host="0.0.0.0"),
    lambda settings: processes.run_api(
        settings.model_copy(update={"scheduler_address": "tls://gpu-box:8786"})
    ),
    lambda settings: processes.require_shared_database(settings, "gpu-box"),
]


@pytest.mark.parametrize("start", REMOTE)
def test_sqlite_is_for_one_machine(settings, start):
    with pytest.raises(StartRefused, match="cannot share the SQLite") as caught:
        start(settings)
    assert "PostgreSQL" in caught.value.allowed


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_is_this_machine(settings, host):
    assert processes.is_loopback(host)
    processes.require_shared_database(settings, host)
    with pytest.raises(StartRefused):
        processes.require_shared_database(settings, "gpu-box")


def test_postgresql_is_for_any_number_of_machines(make_settings):
    with pytest.raises(StartRefused, match="cannot share the SQLite"):
        processes.require_shared_database(make_settings(), "gpu-box")
    processes.require_shared_database(make_settings(database_url="postgresql+psycopg://u@h/d"), "gpu-box")


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("box", "http://box:80"),
    ],
)
def test_url(host, url):
    assert processes.url_of(host, 80) == url
