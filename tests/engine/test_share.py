"""Share: a sequence that goes on from what another one has computed, at the worker's own socket."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from aiosd.engine import protocol as p
from tests.engine.churn import result
from tests.engine.conftest import Start
from tests.engine.kernel import GRID, Sequence, Worker, fake_setup

LENGTH = 150
WHOLE = LENGTH // GRID * GRID


def prompt(salt: int) -> list[int]:
    return [97 + (n * n + salt * n) % 26 for n in range(LENGTH)]


def sequence(cid: int, salt: int = 1) -> Sequence:
    return Sequence(cid, prompt(salt), p.Goal(LENGTH, 20, p.Sampling(), []))


@pytest.fixture
def worker(start: Start) -> Worker:
    return start(fake_setup(eog=0.0, prefill_ms=20))  # slow enough to be interrupted


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "a.kv")


def donated(worker: Worker, path: str) -> Sequence:
    """A sequence that has been computed, and whose KV is in the file at path."""
    donor = sequence(1)
    worker.admit(donor)
    worker.finish(donor)
    worker.evict(1, path)
    return donor


def test_it_goes_on_as_if_it_had_computed_all(worker: Worker, path: str) -> None:
    donor, taker = donated(worker, path), sequence(2)
    worker.admit(taker)
    worker.send(p.Share(2, path, WHOLE))
    taker.runs = [p.Run(p.PREFILL, 0, WHOLE)]  # whatever it had begun before
    worker.finish(taker)
    assert result(taker) == result(donor) and taker.runs == donor.runs
    assert [event.cid for event in worker.events if isinstance(event, p.Restored)] == [2]
    worker.evict(2, path)
    again = sequence(3)
    again.runs = [p.Run(p.PREFILL, 0, WHOLE)]
    worker.admit(again)
    worker.send(p.Share(3, path, WHOLE))
    worker.finish(again)
    assert result(again) == result(donor), "and what it saves says the same of itself"


def test_nothing_happens_to_one_that_is_further_or_gone(worker: Worker, path: str) -> None:
    donor = donated(worker, path)
    taker = sequence(2)
    worker.admit(taker)
    worker.finish(taker)
    worker.send(p.Share(2, path, WHOLE))
    worker.send(p.Share(9, path, WHOLE))
    assert worker.park(2).kv == len(taker.tokens) - 1
    assert result(taker) == result(donor)
    assert not [event for event in worker.events if isinstance(event, p.Restored)]


def test_a_file_that_begins_otherwise_is_refused_and_not_blamed(worker: Worker, path: str) -> None:
    donated(worker, path)
    worker.admit(sequence(2, salt=5))
    worker.send(p.Share(2, path, WHOLE))
    lost = worker.wait(p.Lost)
    assert (lost.cid, lost.errno, lost.path) == (2, errno.ESTALE, "")


def test_a_damaged_file_is_named(worker: Worker, path: str) -> None:
    donated(worker, path)
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    worker.admit(sequence(2))
    worker.send(p.Share(2, path, WHOLE))
    lost = worker.wait(p.Lost)
    assert (lost.cid, lost.errno, lost.path) == (2, errno.EIO, path)


def test_what_was_not_prefilled_on_the_grid_is_refused(worker: Worker, path: str) -> None:
    first = sequence(1)
    short = Sequence(1, prompt(1)[:100], p.Goal(100, 1, p.Sampling(), []))
    worker.admit(short)
    worker.finish(short)
    longer = short.follow(first.tokens[100:], p.Goal(LENGTH + 1, 5, p.Sampling(), []))
    worker.admit(longer, short.kv)
    worker.finish(longer)
    worker.evict(1, path)
    worker.admit(sequence(2))
    worker.send(p.Share(2, path, WHOLE))
    assert worker.wait(p.Lost).errno == errno.ESTALE
