"""Symbolic sizes: our grammar against sympy itself, which wrote the text."""

import contextlib
import math
import pickle

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._sympy.functions import (
    CeilToInt,
    FloorDiv,
    IntTrueDiv,
    Max,
    Min,
    Mod,
    PythonMod,
    ToFloat,
    TruncToInt,
)

from workers.errors import ModelRefused
from workers.intake.expression import parse_expression
from workers.intake.limits import Limits

S0, S1 = sympy.symbols("s0 s1", positive=True, integer=True)

EXPRESSIONS = st.recursive(
    st.one_of(st.sampled_from([S0, S1]), st.integers(-40, 40).map(sympy.Integer)),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda t: t[0] + t[1]),
        st.tuples(inner, inner).map(lambda t: t[0] * t[1]),
        st.tuples(inner, inner).map(lambda t: Max(*t)),
        st.tuples(inner, inner).map(lambda t: Min(*t)),
        st.tuples(inner, st.integers(1, 9)).map(lambda t: FloorDiv(t[0], sympy.Integer(t[1]))),
        st.tuples(inner, st.integers(1, 9)).map(lambda t: PythonMod(t[0], sympy.Integer(t[1]))),
        st.tuples(inner, st.integers(0, 3)).map(lambda t: t[0] ** t[1]),
    ),
    max_leaves=8,
)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(EXPRESSIONS, st.integers(1, 50), st.integers(1, 50))
def test_values_equal_those_of_sympy(expression, s0, s1):
    text = sympy.srepr(expression)
    expected = expression.subs({S0: s0, S1: s1})
    ours = parse_expression(text, "x", Limits(max_expression_length=10_000, max_expression_depth=64))
    assert ours.symbols == {str(symbol) for symbol in expression.free_symbols}
    assert ours({"s0": s0, "s1": s1}) == int(expected)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        (TruncToInt(sympy.Float(2.5) * ToFloat(S0)), 17),
        (CeilToInt(IntTrueDiv(S0, sympy.Integer(2))), 4),
        (sympy.Rational(1, 7) * S0, 1),
        (Mod(S0, sympy.Integer(4)), 3),
        (sympy.Pow(S0, 2) - 1, 48),
    ],
)
def test_functions_of_torch(expression, value):
    assert parse_expression(sympy.srepr(expression), "x", Limits())({"s0": 7}) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Where(LessThan(Symbol('s0'), Integer(7)), Integer(3), Integer(4))", 3),
        ("CeilDiv(Symbol('s0'), Integer(4))", 2),
        ("Max(Integer(1), Integer(2), Symbol('s0'))", 7),
        ("Add()", 0),
        ("Integer(-3)", -3),
        (" Add( Symbol ( 's0' , integer=True ) , Integer(1) , ) ", 8),
        ("floor(Float('7.9', precision=53))", 7),
        ("Where(And(true, Not(false)), Integer(1), Integer(2))", 1),
    ],
)
def test_texts(text, value):
    assert parse_expression(text, "x", Limits())({"s0": 7}) == value


@pytest.mark.parametrize(
    "text",
    [
        "Mul(Integer(4611686018427387904), Integer(2))",
        "Add(Integer(-9223372036854775808), Integer(-1))",
        "Pow(Integer(10), Integer(9))",
        "Pow(Integer(0), Integer(-1))",
        "Pow(Float('1e300', precision=53), Integer(8))",
        "FloorDiv(Integer(1), Integer(0))",
        "Mod(Integer(1), Integer(0))",
        "Rational(1, 2)",
        "Rational(1, 0)",
        "Mul(Float('1e200', precision=53), Float('1e200', precision=53))",
        "TruncToInt(Mul(Float('1e18', precision=53), Float('1e18', precision=53)))",
    ],
)
def test_values_that_are_no_sizes(text):
    """Within the grammar, but without a whole value below 2^62: an arithmetic error, which the dry run reports."""
    expression = parse_expression(text, "x", Limits())
    with pytest.raises(ArithmeticError):
        expression({})


def test_a_bare_symbol():
    assert parse_expression("Symbol('s0')", "x", Limits()).symbol == "s0"
    assert parse_expression("Add(Symbol('s0'), Integer(0))", "x", Limits()).symbol is None
    with pytest.raises(KeyError):
        parse_expression("Symbol('s0')", "x", Limits())({})


def test_survives_a_process_border():
    expression = parse_expression(sympy.srepr(FloorDiv(S0 + 3, sympy.Integer(2))), "x", Limits())
    assert pickle.loads(pickle.dumps(expression))({"s0": 8}) == math.floor(11 / 2)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.text(alphabet="AddMulIntegerSymbol()'s0,=1 -._[]*:\\\"\n", max_size=60))
def test_any_text_is_refused_or_has_a_meaning(text):
    with contextlib.suppress(ModelRefused):
        assert parse_expression(text, "x", Limits()).term
