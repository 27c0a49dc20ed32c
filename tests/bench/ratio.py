"""A ratio: what a benchmark gives back, and how ratios are taken, judged and shown.

No machine is quiet for long, so no figure counts by itself: both sides of a ratio are measured in
turns within one run, each round gives one ratio, and the median of the rounds is judged (the worst,
where a claim is about each single time).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from tests.bench.quiet import Rounds


class Ratio(msgspec.Struct, kw_only=True):
    """One claim and what was measured of it.

    what: the two sides, as "ours / theirs". limit: what the median of `rounds` may be at most, or
    must be at least (at_most False); None when it only informs. worst: the worst round is judged,
    where the claim is about each single time. noise: see quiet.Rounds. figures: medians of the two
    sides and whatever else explains the ratio, with the unit in the name.
    """

    bench: str
    what: str
    rounds: list[float]
    limit: float | None = None
    at_most: bool = True
    worst: bool = False
    noise: float = 0.0
    figures: dict[str, float] = {}

    @property
    def value(self) -> float:
        """What is judged: the median of the rounds, or the worst."""
        if self.worst:
            return max(self.rounds) if self.at_most else min(self.rounds)
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
            "median": median(self.rounds),
            "min": min(self.rounds),
            "max": max(self.rounds),
            "held": self.held,
        }


def interleave(rounds: int, *sides: Callable[[], float]) -> tuple[list[list[float]], float]:
    """Measure every side twice a round, in turns: forwards, then backwards.

    So neither a machine that gets faster or slower meanwhile nor a place in the order favours one.
    Returns one list per side, with the mean of each round's two, and the rounds' noise (quiet.py).
    """
    taken = Rounds[list[float]](rounds)
    for _ in taken:
        first = [side() for side in sides]
        second = [side() for side in reversed(sides)]
        pairs = zip(first, reversed(second), strict=True)
        taken.add([(one + other) / 2 for one, other in pairs])
    kept = taken.quietest()
    return [[values[number] for values in kept] for number in range(len(sides))], taken.noise


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
    table.add_column("noise", justify="right", no_wrap=True)
    table.add_column("figures", overflow="fold")
    for ratio in ratios:
        table.add_row(*_cells(ratio))
    console.print(table)


def _cells(ratio: Ratio) -> list[str]:
    limit, verdict = "", ""
    if ratio.limit is not None:
        sign = "≤" if ratio.at_most else "≥"
        limit = f"{'each ' if ratio.worst else ''}{sign} {ratio.limit:.4g}"
        verdict = "[green]ok[/]" if ratio.held else "[red]MISSED[/]"
    rounds = ratio.rounds
    spread = [f"{x:.3g}" for x in (median(rounds), min(rounds), max(rounds))]
    figures = ", ".join(f"{name} {value:.4g}" for name, value in ratio.figures.items())
    noise = f"{ratio.noise:.0f} %"
    return [ratio.bench, ratio.what, *spread, limit, verdict, noise, figures]
