"""Formulas as text, turned into sympy's expressions without evaluating them as Python.

sympy's own parser ends in `eval`, which does whatever a text says. Here Python's grammar only takes
the text apart; numbers, names, arithmetic and the functions listed below are put together again by
hand, and everything else is refused with a sentence. What would blow up while it is built (a tower
of powers, the factorial of a large number) is refused as well.
"""

from __future__ import annotations

import ast
import difflib
from decimal import Decimal
from typing import Any, Final

from aios.tools import BadArguments

LENGTH: Final = 2000
NODES: Final = 1000
MAGNITUDE: Final = 1000
"""Exponent of ten that a number may be written with."""
POWER: Final = 10_000
"""Number that an exponent may be."""
BITS: Final = 1 << 16
"""Bits that a power of numbers may have."""
LARGEST: Final = 2000
"""What the functions of GROWING may be asked for."""
GROWING: Final = {"factorial", "binomial", "gamma"}

CONSTANTS: Final = {"pi": "pi", "E": "E", "I": "I", "oo": "oo", "inf": "oo"}
FUNCTIONS: Final = {
    "sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "atan2", "sinh", "cosh",
    "tanh", "asinh", "acosh", "atanh", "exp", "log", "ln", "sqrt", "cbrt", "Abs", "sign", "floor",
    "ceiling", "re", "im", "arg", "conjugate", "factorial", "binomial", "gamma", "erf", "Min",
    "Max", "gcd", "lcm", "Mod",
}  # fmt: skip
"""Names of sympy's; SAME are other names for some."""
SAME: Final = {"abs": "Abs", "ceil": "ceiling", "min": "Min", "max": "Max"}


def read(text: str) -> Any:
    """Return a formula as an expression of sympy. Raises BadArguments, which says what it is."""
    return _Reader(text).expression()


def equation(text: str) -> Any:
    """Return `left = right` (or `==`), or a formula that is to be 0, as what is to be 0."""
    left, equals, right = text.replace("==", "=").partition("=")
    if "=" in right:
        raise BadArguments(f"{text[:80]!r} has more than one =")
    return read(left) - read(right) if equals else read(text)


class _Reader:
    """One text, and the tree that Python's grammar makes of it."""

    def __init__(self, text: str) -> None:
        if len(text) > LENGTH:
            raise BadArguments(f"a formula has {len(text)} characters, the limit is {LENGTH}")
        self._text = text.strip().replace("^", "**")
        try:
            self._tree = ast.parse(self._text, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise self._wrong("is no formula: write 2*x for 2x, x**2 or x^2 for a square") from None
        if sum(1 for _ in ast.walk(self._tree)) > NODES:
            raise self._wrong("has too many parts")

    def expression(self) -> Any:
        """Build the expression."""
        try:
            return self._build(self._tree)
        except BadArguments:
            raise
        except (RecursionError, ArithmeticError, TypeError, ValueError) as error:
            raise self._wrong(f"can't be computed: {error}") from None

    def _wrong(self, sentence: str) -> BadArguments:
        return BadArguments(f"{self._text[:80]!r} {sentence}")

    def _build(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=value) if type(value) in (int, float):
                return self._number(node)
            case ast.Name(id=name):
                return self._name(name)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self._build(operand)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self._build(operand)
            case ast.BinOp(left=left, op=op, right=right):
                return self._combine(op, self._build(left), self._build(right))
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
                return self._call(name, [self._build(each) for each in arguments])
        raise self._wrong(f"holds {type(node).__name__}, which no formula has")

    def _number(self, node: ast.expr) -> Any:
        """Return a number exactly as it is written: 0.1 is a tenth."""
        import sympy

        written = Decimal(ast.get_source_segment(self._text, node) or "")
        if abs(written.adjusted()) > MAGNITUDE:
            raise self._wrong(f"holds a number beyond 10**{MAGNITUDE}")
        return sympy.Rational(str(written))

    def _name(self, name: str) -> Any:
        import sympy

        if name in CONSTANTS:
            return getattr(sympy, CONSTANTS[name])
        if name in FUNCTIONS or name in SAME:
            raise self._wrong(f"has the function {name} without arguments")
        return sympy.Symbol(name)

    def _combine(self, op: ast.operator, left: Any, right: Any) -> Any:
        match op:
            case ast.Add():
                return left + right
            case ast.Sub():
                return left - right
            case ast.Mult():
                return left * right
            case ast.Div() if right.is_zero:
                raise self._wrong("divides by zero")
            case ast.Div():
                return left / right
            case ast.Mod():
                return left % right
            case ast.Pow():
                return self._power(left, right)
        raise self._wrong(f"holds {type(op).__name__}, which no formula has")

    def _power(self, base: Any, exponent: Any) -> Any:
        if exponent.is_Rational:
            size = int(abs(exponent)) + 1
            digits = max(abs(base.p), base.q).bit_length() if base.is_Rational else 1
            if size > POWER or size * digits > BITS:
                raise self._wrong("holds a power that is too large")
        return base**exponent

    def _call(self, name: str, arguments: list[Any]) -> Any:
        import sympy

        name = SAME.get(name, name)
        if name not in FUNCTIONS:
            near = difflib.get_close_matches(name, FUNCTIONS, 1)
            raise self._wrong(f"has no known function {name}" + "".join(f": {n}?" for n in near))
        if name in GROWING and any(a.is_number and not abs(a) <= LARGEST for a in arguments):
            raise self._wrong(f"has {name} of a number beyond {LARGEST}")
        return getattr(sympy, name)(*arguments)
