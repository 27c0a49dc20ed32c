"""Runs: the record of how a sequence's KV came to be, position by position.

Pure. The kernel keeps one for each context, the worker one for each slot, by the same rule: so a
snapshot that a worker wrote says the same of itself as the kernel's record does.

What must hold: runs cover positions from 0 on without gaps; a prefill goes on only at a multiple of
the grid (its chunks are cut there), a shift never, a decode anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from aiosd.engine.protocol import DECODE, SHIFT, Run, Slide


def extend(
    runs: list[Run], kind: int, start: int, end: int, grid: int, slide: Slide | None = None
) -> None:
    """Add positions start to end; they continue the last run where that means the same.

    slide: what a SHIFT has done.
    """
    last = runs[-1] if runs else None
    if kind == SHIFT:
        assert slide is not None
        runs.append(Run(SHIFT, start, end, slide.keep, slide.gone))
    elif last and last.kind == kind and (kind == DECODE or start % grid == 0):
        runs[-1] = Run(kind, last.start, end)
    else:
        runs.append(Run(kind, start, end))


def cut(runs: Sequence[Run], end: int) -> list[Run]:
    """The runs of the first `end` positions."""
    replace = msgspec.structs.replace
    return [r if r.end <= end else replace(r, end=end) for r in runs if r.start < end]


def after(runs: Sequence[Run], start: int) -> list[Run]:
    """What the runs say of the positions from `start` on."""
    replace = msgspec.structs.replace
    return [r if r.start >= start else replace(r, start=start) for r in runs if r.end > start]


def common(a: Sequence[Run], b: Sequence[Run], grid: int) -> int:
    """How many positions two records have computed in the same way, counted from the first."""
    at = 0
    for one, other in zip(a, b, strict=False):
        if one == other:
            at = one.end
            continue
        end = min(one.end, other.end)
        if msgspec.structs.replace(one, end=end) != msgspec.structs.replace(other, end=end):
            return at
        # Chunks are the same up to the last boundary that both have.
        return end if one.kind == DECODE or end % grid == 0 else max(at, end // grid * grid)
    return at


def covers(runs: Sequence[Run], end: int) -> bool:
    """Whether runs lead from 0 to `end` without gaps."""
    at = 0
    for run in runs:
        if run.start != at or run.end <= at:
            return False
        at = run.end
    return at == end


def gone(runs: Sequence[Run]) -> int:
    """Cells that shifts have freed: the next position lies in this many cells before its number."""
    return sum(run.gone for run in runs)


def plan(kind: int, start: int, end: int, cells: int, slide: Slide | None) -> list[Run]:
    """How positions start to end are to be computed, `cells` being taken before them.

    By this kind of run, and by a shift whenever the window is full.
    """
    if slide is None:
        return [Run(kind, start, end)] if start < end else []
    planned = []
    while start < end:
        if cells >= slide.window:
            planned.append(Run(SHIFT, start, start + 1, slide.keep, slide.gone))
            start, cells = start + 1, cells - slide.gone + 1
        else:
            stop = min(end, start + slide.window - cells)
            planned.append(Run(kind, start, stop))
            start, cells = stop, cells + stop - start
    return planned


def window(tokens: Sequence[int], runs: Sequence[Run]) -> list[int]:
    """The positions of all of these tokens that lie in the window yet, in the order of its cells.

    runs: how they were computed, as far as they were.
    """
    held = list(range(len(tokens)))
    for run in runs:
        if run.kind == SHIFT:
            del held[run.keep : run.keep + run.gone]
    return held
