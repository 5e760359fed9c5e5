"""The arrows between the parts: which package may import which, checked on the source."""

import ast
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("app", "solver", "workers", "migrations")
TORCH_FREE = {
    "workers.contracts",
    "workers.errors",
    "workers.sampling",
    "workers.sensitivity.gram",
    "workers.menus",
    "workers.mixtures",
    "workers.schemes",
    "workers.sensitivity.operations",
    "workers.sensitivity.sharding",
    "workers.sensitivity.statistics",
    "workers.intake.dataset_header",
    "workers.intake.packing",
}
WEB = {"fastapi", "starlette", "uvicorn"}
DASK = {"dask", "distributed"}
SQL = {"sqlalchemy", "alembic", "psycopg"}


@dataclass(frozen=True)
class Import:
    """One imported module, where, and whether it is imported when its file is."""

    by: str
    line: int
    module: str
    at_module_level: bool

    @property
    def top(self):
        return self.module.partition(".")[0]

    def __str__(self):
        return f"{self.by}:{self.line} imports {self.module}"


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources():
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def is_type_checking(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports_of(path):
    """All imports of a file, but those for type checkers only."""
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = []

    def visit(node, at_module_level):
        if is_type_checking(node):
            return
        if isinstance(node, ast.Import):
            found.extend(Import(name, node.lineno, alias.name, at_module_level) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base]).rstrip(".")
            found.append(Import(name, node.lineno, base, at_module_level))
            found.extend(
                Import(name, node.lineno, f"{base}.{alias.name}", at_module_level)
                for alias in node.names
                if (ROOT / Path(*base.split("."), f"{alias.name}.py")).exists()
                or (ROOT / Path(*base.split("."), alias.name)).is_dir()
            )
        inner = at_module_level and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inner)

    visit(ast.parse(path.read_text(encoding="utf-8")), at_module_level=True)
    return found


ALL = [i for path in sources() for i in imports_of(path)]


def broken(rule):
    return [str(i) for i in ALL if rule(i)]


def test_there_is_something_to_check():
    assert len(ALL) > 300
    assert {i.by.partition(".")[0] for i in ALL} >= {"app", "solver", "workers"}
    assert any(not i.at_module_level for i in ALL)


def test_the_solver_knows_arrays_and_nothing_else():
    allowed = {"numpy", "pulp", "highspy", "numba", "solver"}
    outside = broken(
        lambda i: (
            i.by.split(".")[0] == "solver" and i.top not in allowed and i.top not in sys.stdlib_module_names
        )
    )
    assert outside == []


def test_the_solver_reads_no_environment():
    read = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "solver").rglob("*.py")
        if re.search(r"\bos\.(environ|getenv)\b", path.read_text(encoding="utf-8"))
    ]
    assert read == []


def test_workers_know_neither_the_web_nor_the_database_nor_the_service():
    forbidden = WEB | DASK | SQL | {"app", "pydantic", "migrations"}
    assert broken(lambda i: i.by.split(".")[0] == "workers" and i.top in forbidden) == []


def test_what_the_service_reads_of_the_workers_is_free_of_torch():
    assert broken(lambda i: i.by in TORCH_FREE and i.top == "torch") == []
    assert (
        broken(
            lambda i: (
                i.by in TORCH_FREE
                and i.top == "workers"
                and i.module not in TORCH_FREE
                and imports_torch(i.module)
            )
        )
        == []
    )


def _reaching_torch():
    """Modules of ours that import torch when they are imported: themselves, by what they import, or by their packages."""
    found = {i.by for i in ALL if i.at_module_level and i.top == "torch"}
    while True:
        more = {
            i.by
            for i in ALL
            if i.at_module_level
            and i.by not in found
            and any(m in found for m in (i.module, *parents(i.module)))
        }
        more |= {i.by for i in ALL if i.by not in found and any(p in found for p in parents(i.by))}
        if not more:
            return found
        found |= more


def parents(module):
    return [module.rsplit(".", n)[0] for n in range(1, module.count(".") + 1)]


REACHING_TORCH = _reaching_torch()


def imports_torch(module):
    return any(m in REACHING_TORCH for m in (module, *parents(module)))


def test_the_service_loads_no_torch_with_its_modules():
    """Only what runs on a worker, or on a user's own machine, imports torch: inside the functions that need it."""
    assert broken(lambda i: i.by.split(".")[0] == "app" and i.top == "torch" and i.at_module_level) == []
    reached = broken(
        lambda i: (
            i.by.split(".")[0] == "app"
            and i.at_module_level
            and i.top == "workers"
            and imports_torch(i.module)
        )
    )
    assert reached == []


def test_local_imports_of_torch_stay_where_they_belong():
    users = {i.by for i in ALL if i.by.startswith("app") and (i.top == "torch" or imports_torch(i.module))}
    allowed = ("app.dispatch.", "app.export", "app.cli", "app.local")
    assert [user for user in users if not user.startswith(allowed)] == []


def test_dask_is_known_to_the_dispatch_alone():
    assert broken(lambda i: i.top in DASK and not i.by.startswith("app.dispatch")) == []


def test_the_dispatch_knows_nothing_of_the_web_framework():
    assert broken(lambda i: i.by.startswith("app.dispatch") and i.top in {"fastapi", "starlette"}) == []


def test_errors_become_http_in_one_place():
    """Only `app.problems` has a table of statuses; nobody raises the framework's own errors."""
    raised = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and node.exc is not None:
                name = ast.unparse(node.exc).partition("(")[0]
                if name.rpartition(".")[2] in {"HTTPException", "RequestValidationError"}:
                    raised.append(f"{module_name(path)}:{node.lineno}")
    assert raised == []


def test_services_and_repositories_know_nothing_of_the_web():
    parts = (".service", ".repository", ".rules", ".planner", ".keys", ".entries", ".progress")
    assert broken(lambda i: i.by.startswith("app.") and i.by.endswith(parts) and i.top in WEB) == []


def test_endpoints_build_no_queries():
    assert broken(lambda i: i.by.endswith(".endpoints") and i.top in SQL) == []
    assert broken(lambda i: i.by.endswith(".endpoints") and i.module.endswith(".repository")) == []


def test_small_helpers_know_no_domain():
    domains = {path.parent.name for path in (ROOT / "app").glob("*/service.py")} | {"dashboard", "dispatch"}
    assert len(domains) > 5
    assert (
        broken(
            lambda i: (
                i.by.startswith("app.kit")
                and i.module.startswith("app.")
                and i.module.split(".")[1] in domains
            )
        )
        == []
    )


def test_migrations_use_what_the_models_were_not_what_they_are():
    assert broken(lambda i: i.by.startswith("migrations.versions") and i.top == "app") == []


def test_a_fresh_interpreter_serves_without_torch():
    code = (
        "import sys, app.main, app.cli\n"
        "heavy = {'torch', 'dask', 'distributed', 'safetensors'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_fresh_interpreter_has_the_command_line_without_the_server():
    """The base install has click, httpx and rich, and nothing else."""
    code = (
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {sorted(WEB | DASK | SQL | {'torch', 'pydantic', 'numpy', 'plotly', 'jinja2'})!r}:\n"
        "            raise ModuleNotFoundError(f'{name} is not part of the base install', name=name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "import app.client, app.cli\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", sorted(TORCH_FREE))
def test_the_check_for_torch_finds_it_where_it_is(module):
    assert not imports_torch(module)
    assert imports_torch("workers.quant.affine")
