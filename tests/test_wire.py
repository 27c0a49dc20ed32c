"""Frames and msgpack bodies: cutting, nesting, salvage."""

from __future__ import annotations

import time
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosd.abi import wire

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats()
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
)


@pytest.mark.parametrize("long", [wire.LONG, 20, 1])
@given(payloads=st.lists(st.binary(max_size=50)), data=st.data())
def test_frames_do_not_depend_on_how_they_arrive(
    long: int, payloads: list[bytes], data: st.DataObject
) -> None:
    with patch.object(wire, "LONG", long):
        arrive(payloads, data)


def arrive(payloads: list[bytes], data: st.DataObject) -> None:
    """Cut frames from a stream that comes in pieces."""
    stream = b"".join(map(wire.frame, payloads))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    frames = wire.Frames()
    got = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        frames.add(stream[start:end])
        if data.draw(st.booleans()):
            continue  # taken later, with what comes next
        while (payload := frames.take()) is not None:
            got.append(payload)
    got += frames.feed(b"")
    assert got == payloads
    assert frames.pending == 0


def test_the_limit_holds_before_the_bytes_come() -> None:
    frames = wire.Frames(10)
    assert frames.feed(wire.frame(b"x" * 10)) == [b"x" * 10]
    with pytest.raises(wire.FrameError, match="frame of 11 bytes, the limit is 10"):
        frames.feed((11).to_bytes(4, "little"))


def test_a_frame_that_trickles_in_costs_linear_time() -> None:
    """A quadratic cutter takes minutes for this."""
    frames = wire.Frames()
    stream = wire.frame(b"x" * (2 << 20))
    began = time.process_time()
    whole = [frame for i in range(0, len(stream), 16) for frame in frames.feed(stream[i : i + 16])]
    assert [len(frame) for frame in whole] == [2 << 20]
    assert time.process_time() - began < 20


def depth(value: Any) -> int:
    if isinstance(value, list):
        return 1 + max(map(depth, value)) if value else 0
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values())) if value else 0
    return 0


@given(values)
def test_depth_is_the_values_depth(value: Any) -> None:
    assert wire.depth_of(msgspec.msgpack.encode(value)) == depth(value)


@given(values)
def test_what_nests_little_is_allowed(value: Any) -> None:
    assert wire.nesting(msgspec.msgpack.encode(value)) == ""


@given(st.binary(max_size=200))
def test_measuring_survives_anything(data: bytes) -> None:
    wire.depth_of(data)
    wire.nesting(data)


def test_the_limits_of_nesting() -> None:
    assert wire.nesting(b"\x91" * wire.MAX_DEPTH + b"\xc0") == ""
    assert "deeper than 32" in wire.nesting(b"\x91" * (wire.MAX_DEPTH + 1) + b"\xc0")
    assert "deeper than 32" in wire.nesting(b"\x91" * 1_000_000 + b"\xc0")
    wide = b"\xdd" + (1_000_000).to_bytes(4, "big") + b"\x90" * 1_000_000
    began = time.process_time()
    assert "more than 65536 values" in wire.nesting(wide)
    assert time.process_time() - began < 5


@given(st.integers(-(2**63), 2**64 - 1), st.integers(-(2**63), 2**64 - 1), st.binary(max_size=9))
def test_a_header_is_read_past_any_body(id: int, number: int, body: bytes) -> None:
    header = msgspec.msgpack.encode((id, number, None))[:-1]
    assert wire.salvage(header + body) == (id, number)


@given(st.binary(max_size=30))
def test_salvage_refuses_or_returns(payload: bytes) -> None:
    try:
        id, number = wire.salvage(payload)
    except wire.FrameError:
        return
    assert isinstance(id, int)
    assert isinstance(number, int)
