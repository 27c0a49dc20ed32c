"""Algebra with sympy: evaluate, simplify and solve formulas, in bounded time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec

from aios.tools import BadArguments, Meta, tool

from .bounds import seconds
from .formula import equation, read

TIME_S: Final = 15.0
"""Seconds for one call; the declared limit on time leaves room to load sympy before."""
RESULT: Final = 20_000
"""Characters of a result."""

Result = TypeVar("Result")
Formula = Annotated[str, Meta(min_length=1, max_length=2000)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,31}$")]


class Evaluated(msgspec.Struct):
    """exact: as a formula. number: in decimal digits; "" when names are left in it."""

    exact: str
    number: str


@tool(limits={"time": 40}, idempotent=True)
def math_evaluate(
    expression: Formula,
    values: dict[str, Formula] = {},  # noqa: B006 (each call has its own copy)
    digits: Annotated[int, Meta(ge=1, le=1000)] = 15,
) -> Evaluated:
    """Compute a mathematical expression exactly and in decimal digits.

    expression: such as "sqrt(2)*sin(pi/8) + 3/4"; powers are ** or ^
    values: formulas to put in place of names, such as {"r": "2.5"}
    digits: how many decimal digits the number has
    """

    def compute() -> Evaluated:
        import sympy

        known = {sympy.Symbol(name): read(text) for name, text in values.items()}
        found = read(expression).subs(known, simultaneous=True)
        number = str(sympy.N(found, digits)) if not found.free_symbols else ""
        return Evaluated(str(found), number)

    return _bounded(compute)


@tool(limits={"time": 40}, idempotent=True)
def math_simplify(
    expression: Formula,
    form: Literal["simple", "expanded", "factored", "derivative", "integral"] = "simple",
    by: Name = "x",
) -> str:
    """Bring a mathematical expression into another form.

    expression: such as "sin(x)**2 + cos(x)**2"
    form: what to make of it
    by: the variable of a derivative or an integral
    """

    def compute() -> str:
        import sympy

        found = read(expression)
        ways: dict[str, Callable[[], Any]] = {
            "simple": lambda: sympy.simplify(found),
            "expanded": lambda: sympy.expand(found),
            "factored": lambda: sympy.factor(found),
            "derivative": lambda: sympy.diff(found, sympy.Symbol(by)),
            "integral": lambda: sympy.integrate(found, sympy.Symbol(by)),
        }
        return str(ways[form]())

    return _bounded(compute)


@tool(limits={"time": 40}, idempotent=True)
def math_solve(
    equations: Annotated[list[Formula], Meta(min_length=1, max_length=16)],
    unknowns: Annotated[list[Name], Meta(max_length=16)] = [],  # noqa: B006
) -> list[dict[str, str]]:
    """Solve an equation or a system of equations; gives a list of all solutions by unknown.

    equations: such as ["x + y = 3", "x*y = 2"]; without = an expression that is to be 0
    unknowns: names to solve for; none: all names that occur
    """

    def compute() -> list[dict[str, str]]:
        import sympy

        system = [equation(text) for text in equations]
        free = set[Any]().union(*(each.free_symbols for each in system))
        wanted = [sympy.Symbol(name) for name in unknowns] or sorted(free, key=str)
        if not wanted:
            raise BadArguments(f"{equations[0][:80]!r} has no unknown in it")
        found = sympy.solve(system, wanted, dict=True)
        return [{str(name): str(value) for name, value in each.items()} for each in found]

    return _bounded(compute)


def _bounded(compute: Callable[[], Result]) -> Result:
    """Compute in bounded time and space; sympy's own refusals become sentences."""
    import sympy  # noqa: F401 (loading it is not part of the time)

    with seconds(TIME_S, "this formula"):
        try:
            result = compute()
        except (NotImplementedError, RecursionError, ArithmeticError, OverflowError) as error:
            raise ValueError(f"sympy can't do that: {error}") from None
    if len(str(result)) > RESULT:
        raise ValueError(f"the result has more than {RESULT} characters: ask for less")
    return result
