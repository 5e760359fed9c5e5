"""The base install has click, httpx and rich; the command line must live with that and say what it lacks."""

import json
import subprocess
import sys

import pytest

EXTRAS = [
    "alembic",
    "cryptography",
    "dask",
    "distributed",
    "fastapi",
    "highspy",
    "jinja2",
    "numpy",
    "plotly",
    "prometheus_client",
    "psycopg",
    "pulp",
    "pydantic",
    "pydantic_core",
    "pydantic_settings",
    "safetensors",
    "sqlalchemy",
    "starlette",
    "torch",
    "uvicorn",
]

# Plays an environment without the extras: whatever is asked for of them is not there.
BLOCKED = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {EXTRAS!r}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
sys.meta_path.insert(0, Blocked())
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in {EXTRAS!r} else find(name, package)
from app.cli.main import run
sys.exit(run(sys.argv[1:]))
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCKED, *arguments], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("arguments", [["--help"], ["submit", "--help"], ["version"]])
def test_help_and_version_work(arguments: list[str]) -> None:
    ended = run(*arguments)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout


def test_client_commands_work_up_to_the_missing_server() -> None:
    ended = run("watch", "job_1", "--server", "http://127.0.0.1:9", "--json", "-", "--help")
    assert ended.returncode == 0, ended.stderr
    ended = run("status", "--server", "http://127.0.0.1:9", "--json")
    assert ended.returncode == 1
    assert json.loads(ended.stdout)["type"] == "urn:bitwright:problem:unreachable"


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["search", "m.pt2", "--calibration", "c", "--budget", "4 bits"], "worker"),
        (["inspect", "m.pt2"], "worker"),
        (["export", "m.py:build"], "worker"),
        (["serve"], "worker"),
        (["worker"], "worker"),
        (["api"], "server"),
        (["scheduler"], "server"),
        (["migrate"], "server"),
        (["result", "job_1", "--report", "r.html", "--server", "http://127.0.0.1:9"], None),
    ],
)
def test_other_commands_say_what_to_install(arguments: list[str], extra: str | None) -> None:
    ended = run(*arguments)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    if extra is not None:
        assert f"pip install 'bitwright[{extra}]'" in ended.stderr
