"""How data is shown: plain columns for people and awk, JSON for programs, colour where wanted.

    show(COLUMNS, rows, json)

Columns are separated by spaces, an empty cell is "-", and nothing is cut unless a terminal is too
narrow: then the columns marked as elastic give way, the last one first. What must hold: text that
came from an agent never reaches a terminal with its control characters in a table.
"""

from __future__ import annotations

import json as jsonlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import msgspec

T = TypeVar("T")

COLOURS: Final = {
    "bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34",
    "magenta": "35", "cyan": "36",
}  # fmt: skip


@dataclass(frozen=True)
class Column(Generic[T]):
    """One column: its head, what it shows of a row, and how it behaves when room is short.

    least: characters that an elastic column keeps (0: it is never cut). colour: names a colour
    for a row's cell, or "".
    """

    head: str
    cell: Callable[[T], str]
    right: bool = False
    least: int = 0
    colour: Callable[[T], str] | None = None


def coloured() -> bool:
    """Whether to colour what goes to stdout: NO_COLOR, then FORCE_COLOR, then a terminal."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def paint(text: str, colour: str) -> str:
    """Return the text in a colour, where colour is wanted."""
    if not colour or not coloured():
        return text
    return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m"


def show(
    columns: Sequence[Column[T]], rows: Sequence[T], json: bool, *, wide: bool = False
) -> None:
    """Print rows as a table, or as one JSON array of whole records.

    wide: don't cut columns on a narrow terminal.
    """
    if json:
        print_json(list(rows))
        return
    width = 0 if wide or not sys.stdout.isatty() else terminal_width()
    for line in layout(columns, rows, width):
        print(line)


def layout(
    columns: Sequence[Column[T]], rows: Sequence[T], width: int = 0, *, colour: bool = True
) -> list[str]:
    """Return the lines of a table, its head first; width 0 cuts nothing."""
    cells = [[clean(column.cell(row)) or "-" for column in columns] for row in rows]
    widths = [
        max([len(column.head), *(len(line[i]) for line in cells)])
        for i, column in enumerate(columns)
    ]
    if width:
        _squeeze(columns, widths, width)
    head = _line(columns, [column.head for column in columns], widths, None)
    lines = [_line(columns, *each) for each in _each(cells, rows, widths, colour)]
    return [paint(head, "bold") if colour else head, *lines]


def _each(
    cells: list[list[str]], rows: Sequence[T], widths: list[int], colour: bool
) -> Iterator[tuple[list[str], list[int], T | None]]:
    for line, row in zip(cells, rows, strict=True):
        yield line, widths, row if colour else None


def _squeeze(columns: Sequence[Column[T]], widths: list[int], width: int) -> None:
    over = sum(widths) + len(widths) - 1 - width
    for i in reversed(range(len(columns))):
        if over <= 0:
            return
        if columns[i].least:
            cut = min(over, max(0, widths[i] - columns[i].least))
            widths[i] -= cut
            over -= cut


def _line(columns: Sequence[Column[T]], cells: list[str], widths: list[int], row: T | None) -> str:
    parts = []
    for column, cell, width in zip(columns, cells, widths, strict=True):
        text = cell if len(cell) <= width else cell[: width - 1] + "…"
        padded = text.rjust(width) if column.right else text.ljust(width)
        if row is not None and column.colour is not None:
            padded = paint(padded, column.colour(row))
        parts.append(padded)
    return " ".join(parts).rstrip()


def terminal_width() -> int:
    """Return the columns of the terminal that stdout is, by COLUMNS or as it says itself."""
    if os.environ.get("COLUMNS", "").isdecimal():
        return int(os.environ["COLUMNS"])
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def clean(text: str) -> str:
    """Return the text on one line, with control characters shown rather than obeyed."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def plain(value: Any) -> Any:
    """Return records as dicts with every field, defaults too, for JSON."""
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value


def print_json(value: Any) -> None:
    """Print a value as one indented JSON document."""
    print(jsonlib.dumps(plain(value), indent=2, ensure_ascii=False))


def print_json_line(value: Any) -> None:
    """Print a value as JSON on one line and flush: for streams."""
    print(jsonlib.dumps(plain(value), ensure_ascii=False), flush=True)


def facts(pairs: Iterable[tuple[str, str]]) -> None:
    """Print name and value pairs, one a line."""
    pairs = list(pairs)
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        print(f"{paint(name.ljust(width), 'bold')}  {clean(value)}")


def count(number: float) -> str:
    """Return a number of things in at most five characters: 999, 1.2k, 34k, 5.6M."""
    return _scaled(number, 1000, ("", "k", "M", "G", "T"))


def size(number: float) -> str:
    """Return a number of bytes in at most five characters: 0, 512, 23.6M (binary units)."""
    return _scaled(number, 1024, ("", "K", "M", "G", "T", "P"))


def _scaled(number: float, step: int, units: Sequence[str]) -> str:
    for unit in units:
        if number < step or unit == units[-1]:
            break
        number /= step
    if not unit:
        return str(int(number))
    return f"{number:.1f}{unit}" if number < 99.95 else f"{number:.0f}{unit}"


def span(seconds: float) -> str:
    """Return a duration: 3.2s, 02:41, 1:02:03, 4d03h."""
    if seconds < 60:
        return f"{max(0.0, seconds):.1f}s"
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if not hours:
        return f"{minute:02d}:{second:02d}"
    days, hour = divmod(hours, 24)
    return f"{days}d{hour:02d}h" if days else f"{hours}:{minute:02d}:{second:02d}"


def clock(t: float) -> str:
    """Return a moment as local time, with the date when it is not today."""
    moment = time.localtime(t)
    form = "%H:%M:%S" if moment[:3] == time.localtime()[:3] else "%Y-%m-%dT%H:%M:%S"
    return time.strftime(form, moment) + f".{int(t % 1 * 1000):03d}"
