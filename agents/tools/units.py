"""Units of measurement, with pint."""

from __future__ import annotations

import math
import re
from functools import cache
from typing import Annotated, Any, Final

import msgspec

from aios.tools import BadArguments, Meta, tool

from .bounds import seconds

TIME_S: Final = 5.0

# pint has an evaluator of its own, which knows nothing but arithmetic. A tower of powers would
# still keep it busy: one exponent of two digits at most, and no exponent of an exponent.
_EXPONENT: Final = r"(\*\*|\^)"
_TOO_MUCH: Final = re.compile(rf"{_EXPONENT}[\s(+-]*\d[\d_.]{{2}}|{_EXPONENT}[^*^/]*{_EXPONENT}")

Unit = Annotated[str, Meta(min_length=1, max_length=80, pattern=r"^[\w\s*/^().µ°Ω%+-]+$")]


class Converted(msgspec.Struct):
    """value: the converted number. unit: its unit, spelled out. dimension: such as [length]."""

    value: float
    unit: str
    dimension: str


@tool(limits={"time": 30}, idempotent=True)
def unit_convert(value: float, unit: Unit, to: Unit) -> Converted:
    """Convert a quantity from one unit of measurement to another.

    value: the number
    unit: its unit, such as "mile", "km/h", "degC" or "kg*m/s**2"
    to: the unit that is wanted
    """
    registry = _registry()
    with seconds(TIME_S, "this conversion"):
        source, target = _unit(registry, unit), _unit(registry, to)
        try:
            found = registry.Quantity(value, source).to(target)
        except TypeError as error:  # pint's error about dimensions is one
            raise BadArguments(f"{unit} can't become {to}: {error}") from None
    if not math.isfinite(found.magnitude):
        raise ValueError(f"{value:g} {unit} is no number of {to}")
    return Converted(float(found.magnitude), str(found.units), str(found.dimensionality))


@cache
def _registry() -> Any:
    import pint

    return pint.UnitRegistry()


def _unit(registry: Any, text: str) -> Any:
    if _TOO_MUCH.search(text):
        raise BadArguments(f"the unit {text!r} has too large a power")
    try:
        return registry.parse_units(text)
    except Exception as error:  # noqa: BLE001 (its tokenizer raises errors of many kinds)
        raise BadArguments(f"{text!r} is no unit: {error}") from None
