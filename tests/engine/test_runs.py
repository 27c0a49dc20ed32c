"""The record of how KV came to be: one rule for the kernel and the worker."""

from __future__ import annotations

from aiosd.engine import runs
from aiosd.engine.protocol import DECODE, PREFILL, Run

RECORD = [Run(PREFILL, 0, 100), Run(DECODE, 100, 110), Run(PREFILL, 110, 130)]


def test_a_prefill_goes_on_at_the_grid_alone() -> None:
    made: list[Run] = []
    for kind, start, end in ((PREFILL, 0, 64), (PREFILL, 64, 100), (DECODE, 100, 110)):
        runs.extend(made, kind, start, end, 64)
    runs.extend(made, DECODE, 110, 111, 64)
    runs.extend(made, PREFILL, 111, 128, 64)
    assert made == [Run(PREFILL, 0, 100), Run(DECODE, 100, 111), Run(PREFILL, 111, 128)]
    runs.extend(made, PREFILL, 128, 150, 64)
    runs.extend(made, PREFILL, 150, 160, 64)
    assert made[-2:] == [Run(PREFILL, 111, 150), Run(PREFILL, 150, 160)]


def test_a_record_that_is_cut_and_computed_again_is_the_same() -> None:
    for end in (0, 64, 100, 105, 110, 128, 130):
        again = runs.cut(RECORD, end)
        assert runs.covers(again, end)
        for run in RECORD:
            for start in range(max(run.start, end), run.end):
                step = run.kind == DECODE
                if step or start in (run.start, end) or start % 64 == 0:
                    stop = start + 1 if step else min(run.end, (start // 64 + 1) * 64)
                    runs.extend(again, run.kind, start, stop, 64)
        assert again == RECORD


def test_gaps_are_seen() -> None:
    assert runs.covers(RECORD, 130) and runs.covers([], 0)
    assert not runs.covers(RECORD, 129)
    assert not runs.covers(RECORD[1:], 130)
    assert not runs.covers([RECORD[0], RECORD[2]], 130)
