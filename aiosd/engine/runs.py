"""Runs: the record of how a sequence's KV came to be, position by position.

Pure. The kernel keeps one for each context, the worker one for each slot, by the same rule: so a
snapshot that a worker wrote says the same of itself as the kernel's record does.

What must hold: runs cover positions from 0 on without gaps; a prefill goes on only at a multiple of
the grid (its chunks are cut there), any other kind goes on anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from aiosd.engine.protocol import PREFILL, Run


def extend(runs: list[Run], kind: int, start: int, end: int, grid: int) -> None:
    """Add positions start to end; they continue the last run where that means the same."""
    last = runs[-1] if runs else None
    if last and last.kind == kind and (kind != PREFILL or start % grid == 0):
        runs[-1] = Run(kind, last.start, end)
    else:
        runs.append(Run(kind, start, end))


def cut(runs: Sequence[Run], end: int) -> list[Run]:
    """The runs of the first `end` positions."""
    return [Run(r.kind, r.start, min(r.end, end)) for r in runs if r.start < end]


def covers(runs: Sequence[Run], end: int) -> bool:
    """Whether runs lead from 0 to `end` without gaps."""
    at = 0
    for run in runs:
        if run.start != at or run.end <= at:
            return False
        at = run.end
    return at == end
