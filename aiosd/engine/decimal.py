"""Ranges of integers as grammars: `between(8, 120)` describes "8", "9", "10", ... "120" in GBNF."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

MOST: Final = 10**15 - 1  # what every JSON reader takes as it stands


def between(low: int, high: int) -> str:
    """Return an expression for the integers from low to high, both within -MOST to MOST."""
    parts = []
    if low < 0:
        parts.append(f'"-" ({" | ".join(_naturals(max(1, -high), -low))})')
    if high >= 0:
        parts += _naturals(max(0, low), high)
    return f"({' | '.join(parts)})"


def _naturals(low: int, high: int) -> Iterator[str]:
    """Yield expressions for the numbers from low to high, by length."""
    for length in range(len(str(low)), len(str(high)) + 1):
        first = max(low, 10 ** (length - 1) if length > 1 else 0)
        last = min(high, 10**length - 1)
        yield from _same(str(first), str(last))


def _same(low: str, high: str) -> Iterator[str]:
    """Yield expressions for the numbers from low to high, which have the same length."""
    if low == high:
        yield f'"{low}"'
        return
    head, rest = low[0], len(low) - 1
    if head == high[0]:
        for tail in _same(low[1:], high[1:]):
            yield f'"{head}" {tail}'
        return
    first, last = int(low[0]), int(high[0])
    if rest and set(low[1:]) != {"0"}:
        for tail in _same(low[1:], "9" * rest):
            yield f'"{first}" {tail}'
        first += 1
    upper = []
    if rest and set(high[1:]) != {"9"}:
        upper = [f'"{last}" {tail}' for tail in _same("0" * rest, high[1:])]
        last -= 1
    if first <= last:
        yield f"[{first}-{last}]" + (f" [0-9]{{{rest}}}" if rest else "")
    yield from upper
