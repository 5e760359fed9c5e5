"""What holds the repository together: make targets, constraints, containers, continuous integration."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from app.cli.main import cli
from app.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
CONFIGURATION: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT: dict[str, Any] = CONFIGURATION["project"]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def targets() -> dict[str, str]:
    return dict(re.findall(r"^([a-z-]+):.*?## (.+)$", text("Makefile"), re.MULTILINE))


def make(*arguments: str) -> str:
    return subprocess.run(
        ["make", "--no-print-directory", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def test_files_of_tests_give_the_path_back(tmp_path: Path) -> None:
    """Else processes that later tests start would find what scripts of an earlier one lie beside."""
    (tmp_path / "conftest.py").write_text("from tests.conftest import _path_as_it_was\n")
    (tmp_path / "test_a.py").write_text("import sys\ndef test(): sys.path.insert(0, '/nowhere')\n")
    (tmp_path / "test_b.py").write_text("import sys\ndef test(): assert '/nowhere' not in sys.path\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-c",
        os.devnull,
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_make_alone_lists_every_target() -> None:
    phony = set(re.search(r"^\.PHONY: (.+)$", text("Makefile"), re.MULTILINE)[1].split())  # type: ignore[index]
    assert set(targets()) == phony
    shown = make()
    for target, words in targets().items():
        assert re.search(rf"^  {target}\s+{re.escape(words)}$", shown, re.MULTILINE)


def test_the_readme_names_targets_that_exist() -> None:
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)\b", text("README.md"), re.MULTILINE))
    assert {"demo", "test"} <= named <= set(targets())


def test_what_targets_run_exists() -> None:
    recipes = make(
        "--dry-run",
        "--always-make",
        "demo",
        "serve",
        "test",
        "lint",
        "types",
        "bench",
        "VENV=.venv-of-nobody",
    )
    scripts = set(re.findall(r"\S+/python (\S+\.py)", recipes))
    assert {"examples/demo.py", "benchmarks/plan_quality.py"} <= scripts
    for script in scripts:
        assert (ROOT / script).is_file(), script


def test_constraints_are_exact_sorted_and_complete() -> None:
    lines = [line for line in text("constraints.txt").splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][\w.]*", line) for line in lines)
    assert lines == sorted(lines, key=str.lower)
    assert pins["torch"] == "2.13.0"
    normal = {re.sub(r"[-_.]+", "-", name).lower() for name in pins}
    wanted = [*PROJECT["dependencies"], *(d for e in PROJECT["optional-dependencies"].values() for d in e)]
    names = {re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", d)[0]).lower() for d in wanted}  # type: ignore[index]
    assert names - {"bitwright"} <= normal
    assert set(re.search(r"^MODELS\s+:= (.+)$", text("Makefile"), re.MULTILINE)[1].split()) <= normal  # type: ignore[index]


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text("docker-compose.yml"))
    return found


def test_compose_has_the_parts_and_they_wait_for_each_other() -> None:
    services = compose()["services"]
    assert set(services) == {"postgres", "migrate", "scheduler", "api", "worker"}
    for name, service in services.items():
        for needed, condition in service.get("depends_on", {}).items():
            wanted = condition["condition"]
            if wanted == "service_healthy":
                assert "healthcheck" in services[needed], (name, needed)
            else:
                assert wanted == "service_completed_successfully"
                assert services[needed]["restart"] == "no"
        if name != "migrate":
            assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert "container_name" not in services["worker"], "a name would forbid --scale"
    assert "ports" not in services["worker"]


def test_compose_health_checks_are_python_that_compiles() -> None:
    tests = {
        name: service.get("healthcheck", {}).get("test", [])
        for name, service in compose()["services"].items()
    }
    programs = {name: test[3] for name, test in tests.items() if test[1:3] == ["python", "-c"]}
    assert programs, "none is python: the test tells nothing"
    for name, program in programs.items():
        assert compile(program, name, "exec").co_code


def test_the_workers_health_check_looks_for_a_connection_to_the_schedulers_port() -> None:
    services = compose()["services"]
    port = re.search(r":(\d+)$", services["worker"]["environment"]["BITWRIGHT_SCHEDULER_ADDRESS"])[1]  # type: ignore[index]
    assert f":{int(port):04X}" in services["worker"]["healthcheck"]["test"][3]
    assert services["scheduler"]["command"][-1] == port


def test_compose_is_unprivileged_and_published_on_loopback_only() -> None:
    for name, service in compose()["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        if name != "postgres":
            assert service["read_only"] is True
            assert service["cap_drop"] == ["ALL"]
            assert not service.get("user")


def test_compose_mounts_declared_volumes_where_the_image_expects_them() -> None:
    document = compose()
    environment = dict(re.findall(r"(BITWRIGHT_\w+)=(\S+)", text("Dockerfile")))
    for service in document["services"].values():
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in document["volumes"]
    for name in ("scheduler", "api", "worker"):
        mounted = [volume.split(":")[1] for volume in document["services"][name]["volumes"]]
        assert environment["BITWRIGHT_DATA_DIR"] in mounted
        assert any(environment["BITWRIGHT_TLS_DIR"].startswith(f"{path}/") for path in mounted)


def test_compose_runs_commands_and_settings_that_exist() -> None:
    known = {f"BITWRIGHT_{name.upper()}" for name in Settings.model_fields}
    for name, service in compose()["services"].items():
        if name == "postgres":
            continue
        assert set(service["environment"]) <= known
        words = service.get("command") or _default_command(service["build"]["target"])
        command = cli.get_command(click.Context(cli), words[0])
        assert command is not None
        with command.make_context(words[0], list(words[1:])):
            pass


def _default_command(target: str) -> list[str]:
    stage = text("Dockerfile").split(f" AS {target}\n")[1].split("\nFROM ")[0]
    found: list[str] = yaml.safe_load(re.search(r"^CMD (\[.+\])$", stage, re.MULTILINE)[1])  # type: ignore[index]
    return found


def test_images_are_without_root_and_the_api_without_torch() -> None:
    dockerfile = text("Dockerfile")
    stages = dict(re.findall(r"^FROM (\S+) AS (\S+)$", dockerfile, re.MULTILINE)[i][::-1] for i in range(6))
    assert stages["api"] == stages["worker"] == "runtime"
    runtime = dockerfile.split(" AS runtime\n")[1].split("\nFROM ")[0]
    assert re.search(r"^USER bitwright$", runtime, re.MULTILINE)
    for stage, extra in (("api-build", "server"), ("worker-build", "huggingface,kernel")):
        body = dockerfile.split(f" AS {stage}\n")[1].split("\nFROM ")[0]
        assert f'--constraint constraints.txt ".[{extra}]"' in body
    assert not any("torch" in dependency for dependency in PROJECT["optional-dependencies"]["server"])
    copied = set(re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE))
    allowed = {line[1:] for line in text(".dockerignore").splitlines() if line.startswith("!")}
    assert {name for names in copied for name in names.split()} <= allowed


def test_ci_runs_the_commands_of_the_readme() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    assert "set -euo pipefail" in script.read_text()
    assert re.search(r"^make check$", script.read_text(), re.MULTILINE)
    assert re.search(r"^check: .*\btest\b", text("Makefile"), re.MULTILINE)


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("def test_a(): pass", 0),
        ("import pytest\ndef test_a(): pytest.skip('no')", 1),
        ("import pytest\npytest.importorskip('no_such_module')", 1),
        ("import pytest\n@pytest.mark.xfail(strict=True)\ndef test_a(): assert False", 0),
    ],
)
def test_in_ci_a_skipped_test_is_a_failure(tmp_path: Path, source: str, code: int) -> None:
    (tmp_path / "test_one.py").write_text(source)
    (tmp_path / "test_two.py").write_text("def test_b(): pass")
    ended = pytest_with(tmp_path, "fail_on_skip")
    assert ended.returncode == code, ended.stdout


def pytest_with(folder: Path, *plugins: str) -> subprocess.CompletedProcess[str]:
    """Run a folder's tests with plugins of `.ci`, and none of the environment's, which take seconds to load."""
    environment = os.environ | {
        "PYTEST_ADDOPTS": "",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONUNBUFFERED": "",
    }
    environment["PYTHONPATH"] = str(ROOT / ".ci")
    chosen = [word for plugin in (*plugins, "no:cacheprovider") for word in ("-p", plugin)]
    command = [sys.executable, "-m", "pytest", "-q", *chosen, str(folder)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("body", "code", "told"),
    [
        ("pass", 0, "2 passed"),
        ("assert False", 1, "1 failed, 1 passed"),
        ("pytest.skip('no')", 1, "1 passed, 1 skipped"),
    ],
)
@pytest.mark.parametrize(
    ("where", "lingers"),
    [
        ("nowhere", "lambda: None"),
        ("a thread", "threading.Thread(target=wait).start"),
        ("garbage", "garbage"),
    ],
)
def test_in_ci_a_process_that_does_not_end_is_ended_and_keeps_its_verdict(
    tmp_path: Path, body: str, code: int, told: str, where: str, lingers: str
) -> None:
    (tmp_path / "conftest.py").write_text("import end_in_time\nend_in_time.SECONDS = 1")
    (tmp_path / "test_one.py").write_text(
        "import gc, pytest, threading, time\n"
        "def wait(*_): time.sleep(600)\n"
        "class Cycle: __del__ = wait\n"
        "def garbage(): gc.disable(); cycle = Cycle(); cycle.itself = cycle\n"
        f"def test_a(): ({lingers})()\n"
        f"def test_b(): {body}"
    )
    ended = pytest_with(tmp_path, "fail_on_skip", "end_in_time")
    assert ended.returncode == code, ended.stdout
    assert told in ended.stdout
    stuck = where != "nowhere"
    assert ("not the process, for 1 s" in ended.stderr) == ("in wait" in ended.stderr) == stuck


def test_in_ci_a_process_that_never_comes_back_to_python_is_ended(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("import end_in_time\nend_in_time.SECONDS = 1")
    (tmp_path / "test_one.py").write_text(
        "import atexit, ctypes\n"
        "def lingers(): ctypes.PyDLL(None).sleep(600)  # and keeps all other threads waiting\n"
        "def test_a(): atexit.register(lingers)"
    )
    ended = pytest_with(tmp_path, "end_in_time")
    assert ended.returncode == 1
    assert "1 passed" in ended.stdout
    assert "in lingers" in ended.stderr


def test_a_test_has_its_own_time_before_the_whole_run_is_ended() -> None:
    options = CONFIGURATION["tool"]["pytest"]["ini_options"]
    assert options["faulthandler_exit_on_timeout"]
    marked = re.compile(r"\bmark\.timeout\((\d+)\)")
    own = [
        int(found) for path in (ROOT / "tests").rglob("*.py") for found in marked.findall(path.read_text())
    ]
    assert own
    assert options["faulthandler_timeout"] >= 60 + max(options["timeout"], *own)


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return [ROOT / name for name in listed.split("\0") if name]


def test_no_tracked_file_names_a_registry_or_a_machine() -> None:
    # Written apart, so that this file does not name them.
    patterns = ["--index" + "-url", "--find" + "-links", "/ro" + "ot/", "/home/[a-z]+" + "/"]
    pattern = re.compile("|".join(patterns))
    allowed = {"/home/bitwright/"}
    for path in tracked():
        if path.suffix in {".png", ".woff2", ".pt2", ".safetensors"} or not path.is_file():
            continue
        found = set(pattern.findall(path.read_text(encoding="utf-8", errors="ignore"))) - allowed
        assert not found, (path, found)


def test_the_licence_is_there_and_the_changelog_has_an_unreleased_part() -> None:
    assert "Apache License" in text("LICENSE")
    assert PROJECT["license"] == "Apache-2.0"
    assert re.search(r"^## Unreleased$", text("CHANGELOG.md"), re.MULTILINE)


BENCHMARKS = ["activations", "measure", "plan_quality", "refinement", "solver"]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_starts_and_tells_what_it_does(name: str, tmp_path: Path) -> None:
    """As a script, from another folder: one of them has the name of a package."""
    script = ROOT / "benchmarks" / f"{name}.py"
    done = subprocess.run(
        [sys.executable, str(script), "--help"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


def test_every_benchmark_is_tried() -> None:
    scripts = {p.stem for p in (ROOT / "benchmarks").glob("*.py") if "__main__" in p.read_text()}
    assert scripts == set(BENCHMARKS)
