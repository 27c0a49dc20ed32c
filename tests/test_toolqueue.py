"""The queue and the worth of models, without a clock or a process."""

from __future__ import annotations

from aiosd.toolcosts import Cost
from aiosd.toolqueue import Entry, Queue


def entry(subject: str, nice: int = 0, concurrent: int = 0) -> Entry:
    return Entry(subject, lambda: nice, concurrent)


def queue(*entries: Entry) -> Queue[Entry]:
    made: Queue[Entry] = Queue()
    for each in entries:
        made.add(each)
    return made


def test_the_most_urgent_come_first_and_equals_as_they_came() -> None:
    low, one, two, high = entry("a", 5), entry("b"), entry("c"), entry("d", -5)
    waiting = queue(low, one, two, high)
    assert waiting.nice() == -5
    assert waiting.take(3) == [high, one, two]
    assert waiting.take(3) == [low]
    assert waiting.take(3) == [] and waiting.nice() == 0


def test_a_nice_that_changes_counts_at_once() -> None:
    now = {"nice": 10}
    late, other = Entry("a", lambda: now["nice"]), entry("b")
    waiting = queue(late, other)
    now["nice"] = -1
    assert waiting.take(1) == [late]


def test_one_caller_fills_no_batch_beyond_its_limit() -> None:
    first, second, third = (entry("a", concurrent=2) for _ in range(3))
    other = entry("b", concurrent=2)
    waiting = queue(first, second, third, other)
    assert waiting.take(4) == [first, second, other]
    assert waiting.take(4) == [third]


def test_one_that_is_to_be_alone_is() -> None:
    first, second, third = entry("a"), entry("b"), entry("c")
    waiting = queue(first, second, third)
    assert waiting.take(3) == [first, second, third]
    second.alone = True
    for each in (first, second, third):
        waiting.add(each)  # again: each keeps its place
    assert [waiting.take(3) for _ in range(3)] == [[first], [second], [third]]


def test_one_that_waits_no_more_is_in_no_batch() -> None:
    gone, stays = entry("a"), entry("b")
    waiting = queue(gone, stays)
    waiting.drop(gone)
    waiting.drop(gone)
    assert (len(waiting), waiting.take(2)) == (1, [stays])


def cost(size: int, ready: float, first: float, later: float) -> Cost:
    made = Cost()
    made.called(100.0)
    made.loaded(ready)
    made.computed(first, size)
    made.computed(later, size)
    return made


def test_what_its_first_batch_took_longer_is_part_of_its_load() -> None:
    made = cost(1 << 20, 0.5, 2.0, 0.25)
    assert (made.load, made.batch) == (2.25, 0.25)
    made.computed(0.25, 0)
    assert (made.load, made.size) == (2.25, 1 << 20)


def test_what_loads_slowly_and_is_small_stays_longer() -> None:
    typical = cost(256 << 20, 1.0, 0.0, 0.0)
    assert not typical.stale(100 + 59, 60)
    assert typical.stale(100 + 61, 60)
    assert not cost(64 << 20, 1.0, 0.0, 0.0).stale(100 + 200, 60)
    assert cost(1 << 30, 1.0, 0.0, 0.0).stale(100 + 20, 60)
    assert not cost(256 << 20, 4.0, 0.0, 0.0).stale(100 + 200, 60)


def test_the_least_worth_goes_first() -> None:
    quick = cost(64 << 20, 0.2, 0.0, 0.0).holding("quick", 110, 1.0)
    slow = cost(64 << 20, 5.0, 0.0, 0.0).holding("slow", 110, 1.0)
    assert quick.worth < slow.worth
    assert cost(64 << 20, 0.2, 0.0, 0.0).holding("urgent", 110, 4.0).worth > quick.worth
