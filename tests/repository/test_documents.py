"""What the documents say is so: settings, commands, paths, schemes, budgets, links."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from app.cli.main import cli
from app.jobs.rules import DEFAULT_REGRET
from app.jobs.schemas import JobCreate
from app.main import create_app
from app.models.base import Base
from app.sensitivities.correction import PRIOR_ERROR, PRIOR_ERRORS
from app.settings import Settings
from solver import parse_budget
from workers.contracts import Estimator, Metric, Scheme
from workers.quant.storage import SCALE_BITS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def code_blocks(document: str, *languages: str) -> Iterator[str]:
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", document, re.MULTILINE | re.DOTALL):
        if language in languages:
            yield block


def command_lines(document: str) -> Iterator[list[str]]:
    """The `bitwright` calls in shell blocks, comments and what follows a pipe or a condition left out."""
    for block in code_blocks(document, "sh", "console"):
        joined = block.replace("\\\n", " ")
        for line in joined.splitlines():
            words = shlex.split(line, comments=True)
            while words and "=" in words[0]:
                words = words[1:]
            if words and words[0].endswith("bitwright"):
                end = next((i for i, w in enumerate(words) if w in ("|", "||", "&&", "&", ">")), len(words))
                yield words[1:end]


def check_command(words: list[str]) -> None:
    """Parse a command line without running it."""
    command = cli.get_command(click.Context(cli), words[0])
    assert command is not None, words
    with command.make_context(words[0], words[1:], resilient_parsing=False):
        pass


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_each_setting_is_documented_with_its_default(name: str) -> None:
    row = next(
        (
            line
            for line in text("docs/configuration.md").splitlines()
            if f"`BITWRIGHT_{name.upper()}`" in line and line.startswith("|")
        ),
        None,
    )
    assert row is not None, f"docs/configuration.md lacks BITWRIGHT_{name.upper()}"
    field = Settings.model_fields[name]
    default = None if field.default_factory else field.default
    if default is not None:
        shown = "[]" if default == () else f"{default:g}" if isinstance(default, float) else str(default)
        assert f"`{shown}`" in row


def test_no_setting_is_documented_that_does_not_exist() -> None:
    known = {f"BITWRIGHT_{name.upper()}" for name in Settings.model_fields}
    known |= {"BITWRIGHT_SERVER", "BITWRIGHT_DB_PASSWORD"}  # of the command line, of the compose file
    for document in DOCUMENTS:
        assert set(re.findall(r"BITWRIGHT_[A-Z_]+\b", document.read_text())) <= known, document


def test_each_command_is_documented_and_has_examples_that_parse() -> None:
    documented = set(re.findall(r"^\| `([a-z]+)` \|", text("docs/cli.md"), re.MULTILINE))
    assert documented == set(cli.commands)
    examples = [(name, e) for name, c in cli.commands.items() for e in c.examples]  # type: ignore[attr-defined]
    assert {name for name, _ in examples} == set(cli.commands)
    for example in [e for _, e in examples] + list(cli.examples):  # type: ignore[attr-defined]
        words = shlex.split(example)
        while "=" in words[0]:
            words = words[1:]
        assert words[0] == "bitwright"
        check_command(words[1:])


def test_each_command_has_help_and_json() -> None:
    for name, command in cli.commands.items():
        assert command.help, name
        assert "--json" in {option for parameter in command.params for option in parameter.opts}, name


def test_command_lines_in_documents_parse() -> None:
    found = [(d, words) for d in DOCUMENTS for words in command_lines(d.read_text())]
    assert len(found) > 10
    for _, words in found:
        check_command(words)


def test_each_path_is_documented(tmp_path: Path) -> None:
    app = create_app(Settings(data_dir=tmp_path), dispatch=False)
    described = {
        f"{method.upper()} {path}" for path, methods in app.openapi()["paths"].items() for method in methods
    }
    documented = set(re.findall(r"^\| `([A-Z]+ /\S+)` \|", text("docs/http.md"), re.MULTILINE))
    assert documented == described


def test_each_member_of_a_job_is_documented_and_no_other() -> None:
    section = text("docs/http.md").split("## What a job asks for")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)} | {"model", "dataset"}
    assert named == set(JobCreate.model_fields)
    (example,) = code_blocks(section, "json")
    JobCreate.model_validate_json(example)


def test_each_option_of_a_search_is_documented() -> None:
    section = text("docs/cli.md").split("## What `search` and `submit` may be asked")[1].split("\n## ")[0]
    documented = set(re.findall(r"`(--[a-z-]+)", section))
    ours = {"--gate", "--report", "--workers", "--data-dir", "--calibration", "--json", "--help"}
    options = {o for p in cli.commands["search"].params for o in p.opts if o.startswith("--")}
    assert documented <= options
    assert options - documented <= ours


def test_each_way_to_come_by_costs_is_documented() -> None:
    document = text("docs/metrics.md")
    for name in (*Metric, *Estimator):
        assert f"`{name.value}`" in document, name
    defaults = JobCreate.model_fields
    assert f"`--regret` ({DEFAULT_REGRET})" in document
    assert f"random signs ({defaults['probes'].default})" in document
    for bits, error in PRIOR_ERRORS.items():
        assert f"{error * 100:g} % at {bits}" in document
    assert f"{PRIOR_ERROR * 100:g} % above" in document


def test_each_table_of_the_database_is_documented() -> None:
    tables = set(
        re.findall(
            r"`(\w+)`",
            "".join(re.findall(r"^\| (`[^|]+`) \| [^|]*\|$", text("docs/architecture.md"), re.MULTILINE)),
        )
    )
    assert set(Base.metadata.tables) <= tables


def test_each_budget_that_is_shown_is_one() -> None:
    document = text("docs/budgets.md")
    table = document.split("| Text | Means |")[1].split("\n\n")[0]
    budgets = [re.findall(r"`([^`]+)`", line)[0] for line in table.splitlines() if line.startswith("| `")]
    assert len(budgets) == 6
    for budget in budgets:
        assert parse_budget(budget, weights=1_000_000, float_bits=32_000_000).bits > 0


def test_each_scheme_that_is_shown_is_one() -> None:
    document = text("docs/schemes.md")
    schemes = set(re.findall(r"`((?:tensor|channel|group:\d+)-[a-z:.\d-]+)`", document))
    assert len(schemes) >= 3
    for scheme in schemes:
        assert str(Scheme.parse(scheme)) == scheme
    assert f"{SCALE_BITS} bits for each scale" in document
    assert f"at 4 bits symmetric stores {4 + SCALE_BITS / 32:g} bits a weight" in document
    assert f"a scale takes {SCALE_BITS} bits" in text("docs/budgets.md")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (document.parent / path).resolve() if path else document
        assert linked.exists(), f"{document.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in anchors, f"{document.name}: {target}"


def test_each_decision_is_listed_and_has_the_headings() -> None:
    listed = set(re.findall(r"\((\d{4}-[a-z-]+\.md)\)", text("docs/decisions/README.md")))
    decisions = {path.name: path for path in (ROOT / "docs/decisions").glob("[0-9]*.md")}
    assert listed == set(decisions)
    headings = re.findall(r"^## .+$", text("docs/decisions/template.md"), re.MULTILINE)
    for path in decisions.values():
        found = re.findall(r"^## .+$", path.read_text(), re.MULTILINE)
        assert [heading for heading in headings if heading not in found] == [], path


def test_python_in_documents_compiles_and_imports_what_exists() -> None:
    for document in DOCUMENTS:
        for block in code_blocks(document.read_text(), "python"):
            compile(block, str(document), "exec")
            for module, names in re.findall(r"^from (app[\w.]*) import (.+)$", block, re.MULTILINE):
                loaded = __import__(module, fromlist=["_"])
                for name in names.split(","):
                    assert hasattr(loaded, name.strip()), (document, module, name)


def test_the_exit_codes_are_those_of_the_command_line() -> None:
    from app.cli.output import Exit

    documented = [int(c) for c in re.findall(r"^\| (\d+) \|", text("docs/cli.md"), re.MULTILINE)]
    assert documented == [*map(int, Exit), 130]
    listed = ", ".join(
        f"{int(code)} {words}"
        for code, words in zip(
            Exit, ("done", "defect", "wrong usage", "input refused", "infeasible", "gate missed"), strict=True
        )
    )
    assert listed in " ".join((cli.help or "").split())
