"""The protocol core, without any I/O."""

from __future__ import annotations

import errno
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import aios
from aios import errors
from aios.session import InFlight, Session
from aiosd.abi import wire
from aiosd.abi.inference import Chunk, LlmGenerate
from aiosd.abi.process import Kill
from aiosd.abi.system import Cancel, Event, Ping, Pong, Watch
from aiosd.abi.table import BY_ARGS


def sent(data: bytes) -> tuple[int, int, Any]:
    """Return what a frame says: its id, its call's number, its arguments."""
    (payload,) = wire.Frames().feed(data)
    request = wire.decode_request(payload)
    return request.id, request.number, msgspec.msgpack.decode(request.body)


def test_requests_have_ids_of_their_own() -> None:
    session = Session()
    frames = [session.request(Ping())[1] for _ in range(100)]
    assert len({sent(frame)[0] for frame in frames}) == 100
    assert {sent(frame)[1] for frame in frames} == {BY_ARGS[Ping].number}


def test_an_id_in_flight_is_passed_over_when_ids_begin_anew() -> None:
    session = Session()
    old, _ = session.request(Watch())
    session._last = 2**31 - 1
    assert session.request(Ping())[0].id == old.id + 1


def test_defaults_stay_off_the_wire() -> None:
    _, data = Session().request(LlmGenerate(prompt="x", stop=[], key="k"))
    assert sent(data)[2] == {"prompt": "x", "key": "k"}


@given(cuts=st.lists(st.integers(0, 400), max_size=12), order=st.permutations([0, 1, 2]))
def test_answers_arrive_however_the_stream_is_cut(cuts: list[int], order: list[int]) -> None:
    session = Session()
    pings = [session.request(Ping(bytes([n])))[0] for n in range(3)]
    watch, _ = session.request(Watch())
    data = b"".join(
        wire.reply(watch.id, 0, True, Event(n, "x" * 20))
        + wire.reply(pings[n].id, 0, False, Pong(bytes([n])))
        for n in order
    ) + wire.reply(watch.id, 0, False, None)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    touched: list[InFlight] = []
    for start, end in pairwise(edges):
        touched += session.feed(data[start:end])
    assert [ping.result().payload for ping in pings] == [b"\0", b"\1", b"\2"]
    assert [event.t for event in watch.chunks] == order
    assert watch.done
    assert set(touched) == {*pings, watch}
    assert session.flight == []


def test_what_is_given_up_is_cancelled_and_its_answer_dropped() -> None:
    session = Session()
    stream, _ = session.request(LlmGenerate(prompt="x", stream=True))
    session.feed(wire.reply(stream.id, 0, True, Chunk("a", [1], 0)))
    wish = sent(session.abandon(stream))
    assert wish[1:] == (BY_ARGS[Cancel].number, {"id": stream.id})
    assert not stream.chunks
    more = wire.reply(stream.id, 0, True, Chunk("b", [2], 1))
    assert session.feed(more + wire.reply(wish[0], errno.ESRCH, False, "it has ended")) == []
    assert session.feed(wire.reply(stream.id, 0, False, None)) == []
    assert session.flight == []
    assert session.abandon(stream) == b""


def test_what_has_ended_needs_no_cancel() -> None:
    session = Session()
    ping, _ = session.request(Ping())
    session.feed(wire.reply(ping.id, 0, False, Pong()))
    assert session.cancel(ping) == b""


@pytest.mark.parametrize(
    "data",
    [
        wire.reply(99, 0, False, None),
        wire.frame(b"\xc1"),
        wire.frame(b"\x93\x01\x02\x03"),
        b"\xff\xff\xff\xff",
    ],
)
def test_a_peer_that_does_not_speak_the_protocol_is_found_out(data: bytes) -> None:
    session = Session()
    session.request(Ping())
    with pytest.raises((wire.FrameError, msgspec.DecodeError)):
        session.feed(data)


def test_a_lost_connection_fails_what_is_in_flight() -> None:
    session = Session()
    unsent, _ = session.request(Ping())
    keyed, _ = session.request(Kill(aid=1, key="k"))
    keyed.sent = True
    assert session.end() == [unsent, keyed]
    with pytest.raises(aios.ConnectionLost, match="was not made") as never:
        unsent.result()
    with pytest.raises(aios.ConnectionLost, match="key='k' gives the first answer") as maybe:
        keyed.result()
    assert (never.value.maybe_done, maybe.value.maybe_done) == (False, True)
    with pytest.raises(aios.ConnectionLost):
        session.request(Ping())


def test_too_much_to_do_says_when_to_come_back() -> None:
    full = errors.answer(errno.EAGAIN, "64 requests are in flight; try again in 2.5 s")
    assert isinstance(full, aios.Busy) and isinstance(full, BlockingIOError)
    assert (full.errno, full.retry_after) == (errno.EAGAIN, 2.5)
    unknown = errors.answer(errno.EAGAIN, "64 requests are in flight; try again later")
    assert isinstance(unknown, aios.Busy) and unknown.retry_after is None
