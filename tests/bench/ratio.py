"""A ratio: what a benchmark gives back, and how ratios are taken, judged and shown.

This machine is never quiet, so no figure counts by itself: both sides of a ratio are measured in
turns within one run, each round gives one ratio, and the median of the rounds is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table


class Ratio(msgspec.Struct, kw_only=True):
    """One claim and what was measured of it.

    what: the two sides, as "ours / theirs". limit: what the median of `rounds` may be at most, or
    must be at least (at_most False); None when it only informs. figures: medians of the two sides
    and whatever else explains the ratio, with the unit in the name.
    """

    bench: str
    what: str
    rounds: list[float]
    limit: float | None = None
    at_most: bool = True
    figures: dict[str, float] = {}

    @property
    def value(self) -> float:
        """The median of the rounds."""
        return median(self.rounds)

    @property
    def held(self) -> bool:
        """Whether the limit was kept."""
        if self.limit is None:
            return True
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def built(self) -> dict[str, Any]:
        """Return all of it as plain values, for JSON."""
        known: dict[str, Any] = msgspec.to_builtins(self)
        return known | {
            "median": self.value,
            "min": min(self.rounds),
            "max": max(self.rounds),
            "held": self.held,
        }


def interleave(rounds: int, *sides: Callable[[], float]) -> list[list[float]]:
    """Measure every side once a round, in turns whose order alternates; one list per side."""
    taken: list[list[float]] = [[] for _ in sides]
    numbered = list(enumerate(sides))
    for turn in range(rounds):
        for number, side in numbered if turn % 2 == 0 else reversed(numbered):
            taken[number].append(side())
    return taken


def divide(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return the ratio of each round."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def show(ratios: Sequence[Ratio], console: Console) -> None:
    """Print the table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("bench", "ratio"):
        table.add_column(name, overflow="fold")
    for name in ("median", "min", "max", "limit"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("figures", overflow="fold")
    for ratio in ratios:
        table.add_row(*_cells(ratio))
    console.print(table)


def _cells(ratio: Ratio) -> list[str]:
    limit, verdict = "", ""
    if ratio.limit is not None:
        limit = f"{'≤' if ratio.at_most else '≥'} {ratio.limit:.4g}"
        verdict = "[green]ok[/]" if ratio.held else "[red]MISSED[/]"
    spread = [f"{x:.3g}" for x in (ratio.value, min(ratio.rounds), max(ratio.rounds))]
    figures = ", ".join(f"{name} {value:.4g}" for name, value in ratio.figures.items())
    return [ratio.bench, ratio.what, *spread, limit, verdict, figures]
