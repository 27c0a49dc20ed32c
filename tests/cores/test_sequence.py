"""The record of how a sequence's KV came to be, and the work that follows from it."""

import pytest

from aiosd.cores.sequence import Sequence
from aiosd.engine.protocol import DECODE, PREFILL, Goal, Run, Sampling

GRID = 64


def sequence(tokens: int, prompt: int | None = None) -> Sequence:
    goal = Goal(tokens if prompt is None else prompt, 10, Sampling(), [])
    return Sequence(cid=1, aid=1, uid=0, nice=0, tokens=list(range(tokens)), goal=goal)


def test_fresh_work_is_one_prefill() -> None:
    assert sequence(100).work(0) == [Run(PREFILL, 0, 100)]


def test_chunks_on_the_grid_are_one_run_on_record() -> None:
    s = sequence(150)
    assert s.record(PREFILL, 0, 64, GRID) and s.record(PREFILL, 64, 128, GRID)
    assert s.record(PREFILL, 128, 150, GRID)
    assert s.history == [Run(PREFILL, 0, 150)] and s.kv == 150


def test_a_continuation_off_the_grid_is_a_run_of_its_own() -> None:
    s = sequence(150)
    s.record(PREFILL, 0, 64, GRID)
    s.record(PREFILL, 64, 100, GRID)
    s.record(PREFILL, 100, 128, GRID)
    assert s.history == [Run(PREFILL, 0, 100), Run(PREFILL, 100, 128)]


def test_what_was_sampled_is_decoded_and_what_is_lost_is_replayed_as_it_was() -> None:
    s = sequence(74, prompt=70)
    s.record(PREFILL, 0, 64, GRID)
    s.record(PREFILL, 64, 70, GRID)
    s.record(DECODE, 70, 71, GRID)
    s.record(DECODE, 71, 73, GRID)
    assert s.work(73) == [Run(DECODE, 73, 74)]
    assert s.work(0) == [Run(PREFILL, 0, 70), Run(DECODE, 70, 73), Run(DECODE, 73, 74)]
    assert s.work(64) == [Run(PREFILL, 64, 70), Run(DECODE, 70, 73), Run(DECODE, 73, 74)]


def test_a_replay_is_not_recorded_again_and_a_gap_is_refused() -> None:
    s = sequence(100)
    s.record(PREFILL, 0, 64, GRID)
    assert not s.record(PREFILL, 0, 64, GRID)
    with pytest.raises(ValueError, match="on record 64"):
        s.record(PREFILL, 80, 100, GRID)


def test_positions_past_the_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="has 70"):
        sequence(70).record(PREFILL, 0, 71, GRID)


def test_what_is_wanted_once_more_is_computed_as_it_was() -> None:
    s = sequence(74, prompt=70)
    s.record(PREFILL, 0, 64, GRID)
    s.record(PREFILL, 64, 70, GRID)
    s.record(DECODE, 70, 73, GRID)
    assert s.reopen(GRID) == 1 and s.kv == 73  # the last token waits for its decode
    s.record(DECODE, 73, 74, GRID)
    assert s.reopen(GRID) == 1 and s.kv == 73
    read = sequence(70)
    read.record(PREFILL, 0, 64, GRID)
    assert read.reopen(GRID) == 0 and read.kv == 64
    read.record(PREFILL, 64, 70, GRID)
    assert read.reopen(GRID) == 0
    assert (read.kv, read.history) == (64, [Run(PREFILL, 0, 64)])
