"""Kept answers: how long, how many, whose."""

from __future__ import annotations

import pytest

from aiosd.keys import KEEP_S, MAX_BUSY, STALE, Keys

PERSON = (False, 0)
AGENT = (True, 7)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def answer(keys: Keys, key: str, owner: tuple[bool, int] = PERSON, size: int = 1) -> None:
    keys.keep(keys.take(owner, "kill", key, b"body"), b"x" * size)


def test_an_answer_is_kept_for_its_time() -> None:
    clock = Clock()
    keys = Keys(clock)
    answer(keys, "a")
    clock.now = KEEP_S - 1
    assert keys.take(PERSON, "kill", "a", b"body").answer == b"x"
    clock.now = KEEP_S + 1
    assert keys.take(PERSON, "kill", "a", b"body").answer is None


def test_a_key_belongs_to_one_owner_and_call() -> None:
    keys = Keys()
    answer(keys, "a")
    assert keys.take(AGENT, "kill", "a", b"body").answer is None
    assert keys.take(PERSON, "spawn", "a", b"body").answer is None
    with pytest.raises(OSError, match="other arguments"):
        keys.take(PERSON, "kill", "a", b"another body")


def test_number_and_bytes_are_bounded() -> None:
    keys = Keys(max_answers=3, max_bytes=10)
    for key in "abcd":
        answer(keys, key)
    assert len(keys) == 3
    answer(keys, "big", size=9)
    assert len(keys) == 2
    answer(keys, "too big", size=11)
    assert len(keys) == 0


def test_requests_in_flight_are_bounded_per_owner() -> None:
    keys = Keys()
    held = [keys.take(AGENT, "wait", str(n), b"") for n in range(MAX_BUSY)]
    with pytest.raises(BlockingIOError, match="let some end first"):
        keys.take(AGENT, "wait", "more", b"")
    assert keys.take(AGENT, "wait", "0", b"") is held[0]
    keys.take(PERSON, "wait", "a", b"")
    keys.drop(held[0])
    keys.keep(held[1], b"")
    for key in ("more", "still more"):
        keys.take(AGENT, "wait", key, b"")


def test_an_owner_can_be_forgotten() -> None:
    keys = Keys()
    answer(keys, "a", AGENT)
    answer(keys, "a", PERSON)
    keys.forget(AGENT)
    assert len(keys) == 1


def test_answers_on_disk_are_deleted_when_some_are_forgotten() -> None:
    clock = Clock()
    keys, deleted = Keys(clock), list[object]()
    keys.discard = deleted.extend
    for number in range(STALE):
        kept = keys.take(AGENT, "kill", str(number), b"body")
        row = kept.row(b"x")
        keys.keep(kept, row.answer)
        assert (row.owner, row.call, row.key) == (AGENT, "kill", str(number))
    clock.now = KEEP_S + 1
    assert not deleted
    keys.take(AGENT, "kill", "0", b"body")
    assert deleted == [(AGENT, "kill", str(number)) for number in range(STALE)]


def test_an_answer_of_an_earlier_kernel_is_given_again_for_the_rest_of_its_time() -> None:
    clock = Clock()
    row = Keys().take(AGENT, "kill", "k", b"body").row(b"x")
    keys = Keys(clock)
    keys.restore(row)
    assert keys.take(AGENT, "kill", "k", b"body").answer == b"x"
    with pytest.raises(OSError, match="other arguments"):
        keys.take(AGENT, "kill", "k", b"another")
    clock.now = KEEP_S + 1
    assert keys.take(AGENT, "kill", "k", b"body").answer is None
