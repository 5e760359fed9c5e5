"""Habits that hold for every file."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = sorted(
    p for package in ("app", "solver", "workers", "migrations") for p in (ROOT / package).rglob("*.py")
)
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MARKERS = re.compile(r"\b(TODO|FIXME|XXX|HACK|NotImplementedError)\b")
GLOBAL_CLOCK = re.compile(r"""(?:setattr|patch)\(\s*(?:["'][\w.]*\btime\.\w+["']|(?:\w+\.)*time,\s*["'])""")
MAX_FILE, MAX_FUNCTION = 400, 50
"""Forty lines is the aim for a function; this is the wall."""
COMPILED = ROOT / "solver" / "kernels"
"""Compiled loops: a call would be one more function to compile, and what it shares with its caller to pass."""


def name(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", CODE, ids=name)
def test_nothing_is_left_to_do(path):
    found = [
        f"line {number}: {line.strip()}"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if MARKERS.search(line)
    ]
    assert found == []


@pytest.mark.parametrize("path", CODE, ids=name)
def test_files_and_functions_stay_small(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE
    long = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                body = node.body[1:]
            else:
                body = node.body
            length = node.end_lineno - body[0].lineno + 1 if body else 0
            if length > MAX_FUNCTION and COMPILED not in path.parents:
                long.append(f"{node.name}: {length} lines")
    assert long == []


@pytest.mark.parametrize("path", TESTS, ids=name)
def test_no_test_turns_the_clock_of_the_process(path):
    """Event loops of other threads live by it: one that looks at a wrong time sleeps for hours."""
    assert GLOBAL_CLOCK.findall(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", CODE, ids=name)
def test_no_function_is_a_stub(path):
    """A body that does nothing is an abstract or protocol method, or says why in its docstring."""
    stubs = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef) and any("Protocol" in ast.unparse(b) for b in node.bases):
            node.body.clear()
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        decorators = {ast.unparse(d) for d in node.decorator_list}
        if "overload" in decorators or any("abstractmethod" in d for d in decorators):
            continue
        body = [s for s in node.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
        if (not body or all(isinstance(s, ast.Pass) for s in body)) and not ast.get_docstring(node):
            stubs.append(node.name)
    assert stubs == []


def test_only_the_licence_of_the_place_is_told():
    """Nothing of the machine or the tools it was written with is in what is kept."""
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    ).stdout.split("\0")
    words = re.compile("/" + r"work/(main|shared)|/tmp/" + "brief")
    texts = {".py", ".md", ".toml", ".yml", ".html", ".js", ".css", ".txt", ""}
    files = [ROOT / name for name in tracked if name]
    told = [
        name(path)
        for path in files
        if path.suffix in texts and path.is_file() and words.search(path.read_text("utf-8", "ignore"))
    ]
    assert told == []
