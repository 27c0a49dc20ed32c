"""How data is shown."""

from __future__ import annotations

import json

import pytest

from aiosd.abi.process import ExitStatus, Usage
from aiosh import tables
from aiosh.tables import Column

COLUMNS = [
    Column[tuple[int, str]]("AID", lambda row: str(row[0]), right=True),
    Column[tuple[int, str]]("COMMAND", lambda row: row[1], least=8, colour=lambda row: "red"),
]


def test_columns_line_up_and_an_empty_cell_is_a_dash() -> None:
    rows = [(1, "math"), (123, "")]
    assert tables.layout(COLUMNS, rows) == ["AID COMMAND", "  1 math", "123 -"]


def test_only_elastic_columns_give_way() -> None:
    lines = tables.layout(COLUMNS, [(1, "narrative" * 10)], 20)
    assert [len(line) for line in lines] == [11, 20]
    assert lines[1].endswith("…")


def test_control_characters_are_shown_not_obeyed() -> None:
    assert tables.clean("a\x1b[31mb\nc é") == "a\\x1b[31mb\\nc é"


def test_colour_is_for_terminals_unless_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    assert tables.paint("x", "red") == "x"
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert tables.paint("x", "red") == "\x1b[31mx\x1b[0m"
    assert "\x1b[31m" in tables.layout(COLUMNS, [(1, "a")])[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert tables.paint("x", "red") == "x"


def test_json_has_every_field_of_a_record(capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_json(ExitStatus(aid=3, code=0, signal=None, reason="", ended=1.5, usage=Usage()))
    record = json.loads(capsys.readouterr().out)
    assert record["code"] == 0
    assert record["usage"]["tokens_in"] == 0


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1000, "1.0k"), (12_340, "12.3k"), (123_456, "123k"), (5e12, "5.0T")],
)
def test_counts(number: float, text: str) -> None:
    assert tables.count(number) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (1023, "1023"), (1024, "1.0K"), (24_747_212, "23.6M")]
)
def test_sizes(number: float, text: str) -> None:
    assert tables.size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0.0s"), (3.21, "3.2s"), (161, "02:41"), (3723, "1:02:03"), (356_400, "4d03h")],
)
def test_spans(seconds: float, text: str) -> None:
    assert tables.span(seconds) == text
