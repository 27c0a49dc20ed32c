"""Units of measurement."""

import pytest

from agents.tools.units import unit_convert
from aios.tools import BadArguments


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a busy machine take its time."""
    monkeypatch.setattr("agents.tools.units.TIME_S", 600)


@pytest.mark.parametrize(
    ("value", "unit", "to", "result"),
    [
        (26.2, "mile", "km", 42.1648128),
        (100, "degC", "degF", 212),
        (36, "km/h", "m/s", 10),
        (1, "N", "kg*m/s^2", 1),
    ],
)
def test_quantities_are_converted(value: float, unit: str, to: str, result: float) -> None:
    assert unit_convert(value, unit, to).value == pytest.approx(result)


@pytest.mark.parametrize(
    ("unit", "to"),
    [("m", "kg"), ("blub", "m"), ("m**9**9**9", "m"), ("m**999999999", "m"), ("((((", "m"),
     ("(9**99)**99", "m"), ("10*m", "m"), ("m", "__import__"), ("m.x", "m")],
)  # fmt: skip
def test_what_is_no_unit_is_refused(unit: str, to: str) -> None:
    with pytest.raises(BadArguments):
        unit_convert(1, unit, to)


def test_infinity_is_not_given_as_a_number() -> None:
    with pytest.raises(ValueError, match="is no number of"):
        unit_convert(1e308, "Ym", "pm")
