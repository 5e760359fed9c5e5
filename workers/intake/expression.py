"""Symbolic sizes, read with a grammar of our own: never ``eval``, never ``sympify``. Torch-free.

Torch writes a symbolic size as sympy's ``srepr`` text, e.g.
``Add(FloorDiv(Add(Symbol('s0', positive=True, integer=True), Integer(-1)), Integer(2)), Integer(1))``, and reads
it back with ``sympify``, which evaluates it as Python. Here it is tokens and a table of functions.

Grammar::

    term   = NAME | NAME "(" [argument {"," argument}] ")" | NUMBER | TEXT
    argument = term | NAME "=" term
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from workers.intake.limits import Limits
from workers.intake.refusals import refuse

Number = int | float | Fraction | bool
Term = tuple[str, tuple["Term", ...]] | str | int | float

_TOKEN: Final = re.compile(
    r"\s*(?:(?P<name>[A-Za-z_]\w*)|(?P<number>-?\d+(?:\.\d*)?(?:e[+-]?\d+)?)|'(?P<text>[\w.+-]*)'|(?P<mark>[(),=]))",
    re.ASCII,
)
_SYMBOL: Final = re.compile(r"[A-Za-z_]\w{0,63}", re.ASCII)
_LARGEST: Final = 1 << 62
_LARGEST_EXPONENT: Final = 8
_MOST_NUMBER_CHARACTERS: Final = 25
_END: Final = ("end", "")


def _power(base: Number, exponent: Number) -> Number:
    if not isinstance(exponent, int) or abs(exponent) > _LARGEST_EXPONENT:
        raise ArithmeticError(f"exponent {exponent}")
    return Fraction(base) ** exponent if isinstance(base, int | Fraction) else base**exponent


def _exact_quotient(a: Number, b: Number) -> Number:
    return Fraction(a) / Fraction(b)


_FUNCTIONS: Final[dict[str, tuple[int, int | None, Callable[..., Number]]]] = {
    # name: (fewest arguments, most arguments, meaning)
    "Add": (0, None, lambda *v: sum(v)),
    "Mul": (0, None, lambda *v: math.prod(v)),
    "Pow": (2, 2, _power),
    "PowByNatural": (2, 2, _power),
    "FloorDiv": (2, 2, lambda a, b: a // b),
    "CleanDiv": (2, 2, lambda a, b: a // b),
    "CeilDiv": (2, 2, lambda a, b: -(-a // b)),
    "IntTrueDiv": (2, 2, _exact_quotient),
    "FloatTrueDiv": (2, 2, lambda a, b: a / b),
    "Mod": (2, 2, lambda a, b: a % b),
    "PythonMod": (2, 2, lambda a, b: a % b),
    "Max": (1, None, max),
    "Min": (1, None, min),
    "Abs": (1, 1, abs),
    "ToFloat": (1, 1, float),
    "TruncToInt": (1, 1, math.trunc),
    "FloorToInt": (1, 1, math.floor),
    "CeilToInt": (1, 1, math.ceil),
    "RoundToInt": (1, 1, round),
    "floor": (1, 1, math.floor),
    "ceiling": (1, 1, math.ceil),
    "Where": (3, 3, lambda c, a, b: a if c else b),
    "Equality": (2, 2, lambda a, b: a == b),
    "Unequality": (2, 2, lambda a, b: a != b),
    "StrictLessThan": (2, 2, lambda a, b: a < b),
    "LessThan": (2, 2, lambda a, b: a <= b),
    "StrictGreaterThan": (2, 2, lambda a, b: a > b),
    "GreaterThan": (2, 2, lambda a, b: a >= b),
    "And": (0, None, lambda *v: all(v)),
    "Or": (0, None, lambda *v: any(v)),
    "Not": (1, 1, lambda a: not a),
}
_LITERALS: Final = ("Symbol", "Integer", "Rational", "Float")
_NAMES: Final[dict[str, Number]] = {"true": True, "false": False}


@dataclass(frozen=True)
class SizeExpression:
    """An integer expression of symbolic sizes; call it with the symbols' values.

    Args:
        text: As it stood in the file.
        symbols: The names it depends on.
        term: The parsed form.
    """

    text: str
    symbols: frozenset[str]
    term: Term

    def __call__(self, symbols: Mapping[str, int]) -> int:
        """The size for given values of the symbols.

        Raises:
            ArithmeticError: The expression has no integer value below 2^62 there (division by zero, for one).
        """
        value = _evaluate(self.term, symbols)
        if value != int(value):
            raise ArithmeticError(f"{self.text} is not a whole number")
        return int(value)

    @property
    def symbol(self) -> str | None:
        """The symbol's name if the expression is nothing but one symbol."""
        bare = isinstance(self.term, tuple) and self.term[0] == "Symbol"
        return next(iter(self.symbols)) if bare else None


def parse_expression(text: str, where: str, limits: Limits) -> SizeExpression:
    """Read the text of a symbolic expression.

    Args:
        text: ``srepr`` text.
        where: What to name in a refusal.
        limits: Bounds on length and depth.

    Raises:
        ModelRefused: Anything but numbers, symbols and the functions of the table above.
    """
    if len(text) > limits.max_expression_length:
        raise _refused(where, text, f"has {len(text)} characters")
    parser = _Parser(text, where, limits.max_expression_depth)
    term = parser.term(0)
    parser.expect("end", "")
    if not isinstance(term, tuple):
        raise _refused(where, text, "is a bare literal")
    return SizeExpression(text, frozenset(parser.symbols), term)


class _Parser:
    """Recursive descent, as deep as allowed."""

    def __init__(self, text: str, where: str, max_depth: int) -> None:
        self._text = text
        self._where = where
        self._max_depth = max_depth
        self._position = 0
        self.symbols: set[str] = set()
        self._kind, self._token = self._next()

    def _next(self) -> tuple[str, str]:
        match = _TOKEN.match(self._text, self._position)
        if match is None:
            rest = self._text[self._position :].lstrip()
            if not rest:
                return _END
            raise _refused(self._where, self._text, f"has {rest[0]!r} in it")
        self._position = match.end()
        kind = match.lastgroup or ""
        return kind, match[kind]

    def _take(self) -> tuple[str, str]:
        taken = self._kind, self._token
        self._kind, self._token = self._next()
        return taken

    def expect(self, kind: str, token: str) -> None:
        """Step over one token that must be there."""
        if (self._kind, self._token) != (kind, token):
            raise _refused(self._where, self._text, f"has {self._token!r} where {token or kind!r} belongs")
        if kind != "end":
            self._take()

    def term(self, depth: int) -> Term:
        """One term of the grammar."""
        if depth > self._max_depth:
            raise _refused(self._where, self._text, "is nested too deeply")
        kind, token = self._take()
        if kind == "number":
            return self._number(token)
        if kind == "text":
            return token
        if kind != "name":
            raise _refused(self._where, self._text, f"has {token or 'its end'!r} where a term belongs")
        if (self._kind, self._token) != ("mark", "("):
            if token not in _NAMES:
                raise _refused(self._where, self._text, f"names {token!r}")
            return token, ()
        return self._call(token, depth)

    def _number(self, token: str) -> int | float:
        if len(token) > _MOST_NUMBER_CHARACTERS:
            raise _refused(self._where, self._text, "holds a number with too many digits")
        return int(token) if token.lstrip("-").isdecimal() else float(token)

    def _call(self, name: str, depth: int) -> Term:
        if name not in _FUNCTIONS and name not in _LITERALS:
            raise _refused(self._where, self._text, f"calls {name!r}")
        self.expect("mark", "(")
        arguments: list[Term] = []
        while (self._kind, self._token) != ("mark", ")"):
            if arguments:
                self.expect("mark", ",")
            if (self._kind, self._token) == ("mark", ")"):
                break
            argument = self._argument(depth)
            if argument is not None:
                arguments.append(argument)
        self.expect("mark", ")")
        return self._checked(name, tuple(arguments))

    def _argument(self, depth: int) -> Term | None:
        """A positional argument, or ``None`` after an assumption such as ``positive=True``."""
        saved = self._position, self._kind, self._token
        if self._kind == "name":
            self._take()
            if (self._kind, self._token) == ("mark", "="):
                self._take()
                if self._kind not in ("name", "number"):
                    raise _refused(self._where, self._text, "has an assumption that is no plain value")
                self._take()
                return None
            self._position, self._kind, self._token = saved
        return self.term(depth + 1)

    def _checked(self, name: str, arguments: tuple[Term, ...]) -> Term:
        """The call, once its arguments are of the right number and type."""
        if name in _FUNCTIONS:
            fewest, most, _ = _FUNCTIONS[name]
            fits = len(arguments) >= fewest and (most is None or len(arguments) <= most)
            fits = fits and all(isinstance(a, tuple) for a in arguments)
        elif name == "Symbol":
            fits = len(arguments) == 1 and isinstance(arguments[0], str) and _is_symbol(arguments[0])
            self.symbols.update(a for a in arguments if isinstance(a, str))
        elif name == "Float":
            fits = len(arguments) >= 1 and _is_float(arguments[0])
        else:
            wanted = 1 if name == "Integer" else 2
            fits = len(arguments) == wanted and all(type(a) is int for a in arguments)
        if not fits:
            raise _refused(self._where, self._text, f"gives {name} the wrong arguments")
        return name, arguments


def _is_symbol(name: str) -> bool:
    return _SYMBOL.fullmatch(name) is not None


def _is_float(argument: Term) -> bool:
    if not isinstance(argument, str | int | float) or len(str(argument)) > _MOST_NUMBER_CHARACTERS:
        return False
    try:
        return math.isfinite(float(argument))
    except ValueError:
        return False


def _evaluate(term: Term, symbols: Mapping[str, int]) -> Number:
    if not isinstance(term, tuple):
        raise ArithmeticError(f"{term!r} has no value")  # noqa: TRY004 - a value's defect, not a caller's
    name, arguments = term
    if name in _NAMES:
        return _NAMES[name]
    if name in _LITERALS:
        return _literal(name, arguments, symbols)
    try:
        value = _FUNCTIONS[name][2](*(_evaluate(a, symbols) for a in arguments))
    except (TypeError, ValueError) as error:
        raise ArithmeticError(f"{name}: {error}") from None
    if not -_LARGEST <= value <= _LARGEST:
        raise OverflowError(f"{name} exceeds 2^62")
    return value


def _literal(name: str, arguments: tuple[Term, ...], symbols: Mapping[str, int]) -> Number:
    if name == "Symbol":
        return symbols[str(arguments[0])]
    if name == "Float":
        return float(str(arguments[0]))
    if name == "Integer":
        return int(str(arguments[0]))
    return Fraction(int(str(arguments[0])), int(str(arguments[1])))


def _refused(where: str, text: str, why: str) -> Exception:
    return refuse(
        "symbolic-expression",
        f"the symbolic size of {where} {why}",
        field=where,
        value=text,
        allowed="integers, symbols and " + ", ".join(sorted(_FUNCTIONS)),
    )
