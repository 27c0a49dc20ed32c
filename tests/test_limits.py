"""The arithmetic of limits, whatever is reserved, settled and set in whatever order."""

from __future__ import annotations

import errno
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosd.limits import (
    LONGEST,
    MOST,
    NANO,
    RESOURCES,
    Book,
    Exceeded,
    Limit,
    Reservation,
    amount,
    check_period,
    refusal,
    value,
)

SUBJECTS = ("agent:1", "agent:2", "uid:0", "group:g")
FLOWS = tuple(name for name, each in RESOURCES.items() if each.flows)
amounts = st.integers(0, 120)
subjects = st.lists(st.sampled_from(SUBJECTS), min_size=1, unique=True).map(tuple)
limits = st.builds(
    Limit,
    st.sampled_from(SUBJECTS),
    st.sampled_from(("tokens", "requests", "concurrent")),
    st.sampled_from(("root", "uid:7")),
    st.integers(0, 300),
    st.booleans(),
    st.sampled_from((0.0, 10.0, 60.0)),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), st.integers(0, 9), subjects, amounts),
        st.tuples(st.just("settle"), st.integers(0, 9), st.floats(0, 1)),
        st.tuples(st.just("wait"), st.floats(0, 40)),
        st.tuples(st.just("set"), limits),
    ),
    max_size=60,
)


def reserve(book: Book, rid: int, whom: tuple[str, ...], tokens: int, now: float) -> bool:
    """Reserve like a request; say whether that was possible."""
    held = book.open.get(rid) or Reservation(rid, 1, whom)
    before = {limit.name: limit.reserved for limit in book}, dict(held.amounts)
    try:
        book.reserve(held, {"tokens": tokens, "requests": 1, "concurrent": 1}, now)
    except Exceeded as found:
        refused = found
    else:
        return True
    assert refused.limit.hard and refused.wanted > refused.limit.left
    assert ({limit.name: limit.reserved for limit in book}, dict(held.amounts)) == before
    return False


@given(st.lists(limits, max_size=6), steps)
def test_no_interleaving_overspends(first: list[Limit], deeds: list[tuple[object, ...]]) -> None:
    book, now = Book(), 1000.0
    late: set[tuple[str, str, str]] = set()  # set, or changed, with something reserved or used
    for limit in first:
        limit.since = now
        book.put(limit)
    for deed in deeds:
        match deed:
            case ("reserve", int(rid), tuple(whom), int(tokens)):
                reserve(book, rid, whom, tokens, now)
            case ("settle", int(rid), float(share)) if rid in book.open:
                worst = book.open[rid].amounts
                spent = {name: int(share * most) for name, most in worst.items()}
                for limit, charged in book.settle(rid, spent, now):
                    assert charged == spent[limit.resource] and RESOURCES[limit.resource].flows
            case ("wait", float(seconds)):
                now += seconds
            case ("set", Limit() as limit):
                limit.since = now
                book.put(limit)
                late.add(limit.name)
        for limit in book:
            mine = [each for each in book.open.values() if limit.subject in each.subjects]
            assert limit.reserved == sum(each.amounts.get(limit.resource, 0) for each in mine)
            assert (limit.used or 0) >= 0
            if limit.hard and limit.name not in late:
                assert (limit.used or 0) + limit.reserved <= limit.amount
    for rid in list(book.open):
        book.settle(rid, {}, now)
    assert all(limit.reserved == 0 for limit in book)
    assert book.settle(1, {"tokens": 1}, now) == []  # a reservation ends once


@given(st.floats(0, 1e9), st.floats(1, 1e6), st.floats(0, 1e7))
def test_a_period_begins_where_the_last_one_ended(
    since: float, period: float, later: float
) -> None:
    limit = Limit("agent:1", "tokens", "root", 10, period=period, since=since, used=7)
    limit.roll(since + later)
    assert limit.used == (7 if since + later < since + period else 0)
    assert since <= limit.since <= since + later or limit.since == since
    assert limit.resets > since + later or math.isclose(limit.resets, since + later)
    begun = limit.since
    limit.used = 3
    limit.roll(begun - 100)  # the clock went back
    assert (limit.used, limit.since) == (3, begun)


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_a_reservation_grows_and_shrinks_as_one(one: int, other: int) -> None:
    book = Book()
    limit = Limit("agent:1", "tokens", "root", one)
    book.put(limit)
    held = Reservation(1, 1, ("agent:1",))
    book.reserve(held, {"tokens": one}, 0.0)
    if other > one:
        with pytest.raises(Exceeded):
            book.reserve(held, {"tokens": other}, 0.0)
        assert limit.reserved == one
    else:
        book.reserve(held, {"tokens": other}, 0.0)
        assert limit.reserved == other


def test_a_new_limit_counts_what_is_in_flight() -> None:
    book = Book()
    book.reserve(Reservation(1, 1, ("agent:1", "uid:0")), {"tokens": 70}, 0.0)
    book.put(Limit("uid:0", "tokens", "root", 100))
    with pytest.raises(Exceeded):
        book.reserve(Reservation(2, 2, ("agent:2", "uid:0")), {"tokens": 31}, 0.0)
    book.settle(1, {"tokens": 20}, 0.0)
    book.reserve(Reservation(2, 2, ("agent:2", "uid:0")), {"tokens": 80}, 0.0)
    [limit] = book
    assert (limit.used, limit.reserved, limit.left) == (20, 80, 0)
    book.drop(limit.name)
    book.drop(limit.name)
    assert len(book) == 0 and not book.of("uid:0")


def test_a_soft_limit_tells_and_refuses_nothing() -> None:
    book = Book()
    soft = Limit("agent:1", "tokens", "root", 10, hard=False)
    book.put(soft)
    assert book.reserve(Reservation(1, 1, ("agent:1",)), {"tokens": 10}, 0.0) == []
    assert book.reserve(Reservation(2, 1, ("agent:1",)), {"tokens": 1}, 0.0) == [soft]
    assert soft.left == -1


@pytest.mark.parametrize(
    ("resource", "limit", "words"),
    [
        ("token", 1, "did you mean 'tokens'"),
        ("nonsense", 1, "there are tokens, dollars"),
        ("tokens", -1, "give 0 or more"),
        ("dollars", math.nan, "give 0 or more"),
        ("dollars", math.inf, "give 0 or more"),
        ("tokens", 1.5, "a whole number"),
        ("tokens", MOST * 2, "the highest limit is"),
        ("dollars", 2e9, "the highest limit is"),
    ],
)
def test_what_is_no_limit_is_refused(resource: str, limit: float, words: str) -> None:
    with pytest.raises(OSError, match=words) as caught:
        amount(resource, limit)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("resource", "period", "words"),
    [
        ("tokens", LONGEST + 1, "366 days"),
        ("tokens", 0.5, "1 to"),
        ("children", 60, "nothing resets"),
    ],
)
def test_what_is_no_period_is_refused(resource: str, period: float, words: str) -> None:
    with pytest.raises(OSError, match=words) as caught:
        check_period(resource, period)
    assert caught.value.errno == errno.EINVAL
    check_period("tokens", LONGEST)
    check_period("children", 0)


@given(st.floats(0, 1e9))
def test_dollars_are_whole_billionths(dollars: float) -> None:
    assert abs(value("dollars", amount("dollars", dollars)) - dollars) <= max(1e-9, dollars * 1e-15)
    assert amount("dollars", 1) == NANO


def test_a_refusal_says_which_limit_what_is_left_and_when() -> None:
    def sentence(limit: Limit, wanted: int) -> str:
        error = refusal(Exceeded(limit, wanted), "llm_generate", 20.0)
        assert error.errno == errno.EDQUOT
        return str(error.strerror)

    hourly = Limit("agent:5", "tokens", "root", 100, period=60.0, since=0.0, used=70, reserved=10)
    text = sentence(hourly, 30)
    assert "30 more tokens are more than the 20 that the quota of agent:5 leaves" in text
    assert "tokens 100 set by root: 70 used, 10 reserved" in text
    assert "it resets at 1970-01-01T00:01:00Z, in 40.0 s" in text
    assert "more than it ever allows" in sentence(hourly, 101)
    money = Limit("uid:7", "dollars", "uid:7", 2 * NANO, used=NANO // 2)
    assert "0.25 more dollars" in sentence(money, NANO // 4)
    assert "never resets" in sentence(money, NANO // 4)
    assert "let some end" in sentence(Limit("agent:1", "children", "root", 2, used=2), 1)


def test_flows_and_holdings() -> None:
    assert set(FLOWS) == {"tokens", "dollars", "requests", "tool_calls"}
