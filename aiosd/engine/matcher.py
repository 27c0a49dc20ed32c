"""What a grammar allows next, byte by byte. Pure; the fake runner keeps to grammars with it.

A matcher holds every way in which the bytes so far can be read: a way is a linked list of places in
rules, the next character to be read on top. `allows` asks about one byte, which may begin or go on
with a character of several bytes; `take` reads it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from aiosd.engine.gbnf import Chars, Rules

Place = tuple[int, int, int, "Place | None"]  # rule, alternative, symbol; where it goes on then

FIRST: Final = {2: 0x80, 3: 0x800, 4: 0x10000}  # the least code point of so many bytes


class Matcher:
    """Where a text stands in a grammar."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._pending = b""
        starts: list[Place | None] = [(0, i, 0, None) for i in range(len(rules[0]))]
        self._ways = self._open(starts)

    @property
    def complete(self) -> bool:
        """Whether the text so far is one that the grammar describes."""
        return None in self._ways and not self._pending

    def allows(self, byte: int) -> bool:
        """Whether the text may go on with this byte."""
        reach = _reach(self._pending + bytes([byte]))
        return reach is not None and any(self._overlaps(way, *reach) for way in self._ways)

    def take(self, byte: int) -> None:
        """Go on with a byte that is allowed; ValueError when it is not."""
        if not self.allows(byte):
            raise ValueError(f"byte {byte:#x} is not allowed here")
        self._pending += bytes([byte])
        low, high = _reach(self._pending) or (0, 1)
        if low != high or len(self._pending) < _width(self._pending[0]):
            return
        self._pending = b""
        after = [self._after(way) for way in self._ways if way and self._overlaps(way, low, low)]
        self._ways = self._open(after)

    def _open(self, places: list[Place | None]) -> set[Place | None]:
        """Follow rules until a character is next, or the end."""
        todo, found, seen = list(places), set[Place | None](), set[Place | None]()
        while todo:
            place = todo.pop()
            if place in seen:
                continue
            seen.add(place)
            if place is None:
                found.add(None)
                continue
            rule, alternative, index, back = place
            sequence = self._rules[rule][alternative]
            if index == len(sequence):
                todo.append(back)
            elif isinstance(symbol := sequence[index], int):
                then = self._after(place)
                todo += [(symbol, i, 0, then) for i in range(len(self._rules[symbol]))]
            else:
                found.add(place)
        return found

    def _after(self, place: Place) -> Place | None:
        """The place behind a symbol; at a sequence's end, the one that it was called from."""
        rule, alternative, index, back = place
        if index + 1 == len(self._rules[rule][alternative]):
            return back
        return rule, alternative, index + 1, back

    def _overlaps(self, way: Place | None, low: int, high: int) -> bool:
        if way is None:
            return False
        symbol = self._rules[way[0]][way[1]][way[2]]
        assert not isinstance(symbol, int)
        return _meets(symbol, low, high)


def _meets(ranges: Chars, low: int, high: int) -> bool:
    return any(a <= high and low <= b for a, b in ranges)


def _width(first: int) -> int:
    return 1 if first < 0x80 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4


@lru_cache(4096)
def _reach(data: bytes) -> tuple[int, int] | None:
    """The code points that bytes can become the beginning of (UTF-8); None when there is none."""
    first, width = data[0], _width(data[0])
    if 0x80 <= first < 0xC2 or first > 0xF4 or len(data) > width:
        return None
    value = first if width == 1 else first & (0x7F >> width)
    for byte in data[1:]:
        if byte & 0xC0 != 0x80:
            return None
        value = value << 6 | byte & 0x3F
    missing = 6 * (width - len(data))
    low, high = value << missing, (value + 1 << missing) - 1
    low, high = max(low, FIRST.get(width, 0)), min(high, 0x10FFFF)
    return (low, high) if low <= high else None
