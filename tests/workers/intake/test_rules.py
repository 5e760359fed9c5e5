"""The reader as a whole: every rule has a test, every operator of the list exists and changes nothing."""

import ast
import re
from pathlib import Path

import pytest
import torch

import workers.intake
from workers.intake import costs
from workers.intake.operators import EVALUATION, IN_PLACE, TARGETS, schema_of, why_refused

SOURCES = Path(workers.intake.__file__).parent
MODULES = {
    "pickle",
    "sympy",
    "importlib",
    "marshal",
    "runpy",
    "code",
    "torch.export",
    "torch.jit",
    "torch.hub",
}
CALLS = {"eval", "exec", "compile", "__import__", "load", "loads", "system", "Popen", "run", "import_module"}
ALLOWED = {
    "json.loads",
    "re.compile",
    "_DryRun(model, symbols, limits).run",
    "_Functionalizer(graph, frozenset(stored)).run",
}


def test_every_rule_has_a_test():
    source = "".join(path.read_text() for path in sorted(SOURCES.glob("*.py")))
    rules = set(re.findall(r'refuse\(\s*f?"([a-z0-9-]+)"', source))
    rules |= set(re.findall(r'_RULE: Final = "([a-z-]+)"', source)) | set(
        re.findall(r'return "([a-z-]+)", ', source)
    )
    tests = "".join(path.read_text() for path in sorted(Path(__file__).parent.glob("test_*.py")))
    assert len(rules) > 70
    assert not {rule for rule in rules if f'"{rule}"' not in tests}


def test_no_source_calls_what_runs_code():
    for path in SOURCES.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            )
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if "importlib.metadata" in names:
                continue  # which versions are installed: reads, and runs nothing
            assert not MODULES & {name.partition(".")[0] for name in names} | MODULES & set(names), path.name
            if isinstance(node, ast.Call):
                assert (
                    ast.unparse(node.func).rpartition(".")[2] not in CALLS
                    or ast.unparse(node.func) in ALLOWED
                )


def test_operators_of_the_list_only_compute():
    for name, target in TARGETS.items():
        if not isinstance(target, torch._ops.OpOverload):
            assert name.startswith(("_operator.", "torch.sym_", "math."))
            continue
        written = [a.name for a in schema_of(target).arguments if a.alias_info and a.alias_info.is_write]
        assert bool(written) == (target in IN_PLACE), name
        assert "file" not in name


def test_in_place_operators_have_their_functional_twin():
    assert len(IN_PLACE) > 100
    for in_place, twin in IN_PLACE.items():
        assert str(in_place).partition(".")[2].partition(".")[0].removesuffix("_") in str(twin)
        assert not schema_of(twin).is_mutable


def test_training_arguments_are_arguments():
    assert {"batch_norm", "dropout", "dropout_", "lstm"} <= {str(op).split(".")[1] for op in EVALUATION}
    for target, (name, _) in EVALUATION.items():
        assert name in [argument.name for argument in schema_of(target).arguments]


def test_reasons_for_operators_of_the_list_are_not_needed():
    assert why_refused("torch.ops.aten.relu.default") == (
        "unknown-operator",
        "it is not on the list of operators of inference graphs",
    )


def empty(*shape):
    return torch.empty(shape, device="meta")


EINSUMS = [
    # equation, shapes, path, elements of the largest intermediate value
    ("ij,jk->ik", [(100, 3), (3, 200)], None, 20_000),
    ("ai,bi,ci->i", [(1000, 4)] * 3, None, 4),
    ("ai,bi,ab->i", [(1000, 4), (2000, 4), (1000, 2000)], None, 8_000_000),
    ("ai,bi,ab->i", [(1000, 4), (2000, 4), (1000, 2000)], [0, 2, 0, 1], 8000),
    ("...ij,...jk->...ik", [(7, 5, 100, 3), (7, 5, 3, 200)], None, 700_000),
    ("ij,kj", [(100, 3), (200, 3)], None, 20_000),
    ("ii->i", [(100, 100)], None, 0),
    ("a,b,c,d->abcd", [(100,)] * 4, None, 10**8),
]


@pytest.mark.parametrize(("equation", "shapes", "path", "elements"), EINSUMS)
def test_intermediate_values_of_einsum(equation, shapes, path, elements):
    given = {"equation": equation, "tensors": [empty(*shape) for shape in shapes], "path": path}
    assert costs.temporary_bytes("einsum", given) == 4 * elements


@pytest.mark.parametrize(
    ("equation", "shapes", "path"),
    [
        ("ij", [(2,)], None),
        ("ij,jk", [(2, 2)], None),
        ("...", [()], None),
        ("a,b", [(2,), (2,)], [0, 9]),
        ("", [], None),
    ],
)
def test_broken_equations_have_no_cost(equation, shapes, path):
    """They are refused by the operator itself."""
    given = {"equation": equation, "tensors": [empty(*shape) for shape in shapes], "path": path}
    assert costs.temporary_bytes("einsum", given) == 0


def test_copies_and_scores():
    assert costs.temporary_bytes("matmul", {"self": empty(50, 1, 8), "other": empty(8, 9)}) == 4 * 50 * 8 * 9
    assert costs.temporary_bytes("linear", {"input": empty(6, 8), "weight": empty(9, 8)}) == 4 * 72
    attention = {"query": empty(2, 3, 70, 8), "key": empty(2, 3, 90, 8)}
    assert costs.temporary_bytes("scaled_dot_product_attention", attention) == 4 * 2 * 3 * 70 * 90
    assert costs.temporary_bytes("relu", {"self": empty(1000)}) == 0
