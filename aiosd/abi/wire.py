"""Frames on the socket: a 4-byte little-endian length, then one msgpack value.

Request: `[id, number, body]`; reply: `[id, errno, more, body]`. `more` marks a chunk of a stream;
the last frame of every request has more = False. An error's body is a sentence. The length is
compared with the limit before anything is read for it.
"""

from __future__ import annotations

from typing import Final

import msgspec

MAX_FRAME: Final = 8 << 20
"""Bytes in a frame's msgpack value, unless the kernel's configuration says less."""

MAX_DEPTH: Final = 32
"""Nesting that a body may have; a decoder that meets more refuses it."""

HEADER: Final = 4


class FrameError(ValueError):
    """The peer does not speak this protocol; the connection can't be saved."""


class Request(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """`[id, number, body]`. The id is the client's, unique among its requests in flight."""

    id: int
    number: int
    body: msgspec.Raw = msgspec.Raw(b"\x80")


class Reply(msgspec.Struct, array_like=True, frozen=True):
    """`[id, errno, more, body]`. errno 0 is success."""

    id: int
    errno: int
    more: bool
    body: msgspec.Raw = msgspec.Raw(b"\xc0")


class Frames:
    """Cuts a byte stream into frames; holds at most one incomplete frame.

    `feed` takes what arrived and returns the complete values, in order. Raises FrameError when a
    length exceeds the limit; after that the object is unusable.
    """

    __slots__ = ("_limit", "_rest")

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self._limit = limit
        self._rest = bytearray()

    @property
    def pending(self) -> int:
        """Bytes held of an incomplete frame."""
        return len(self._rest)

    def feed(self, data: bytes) -> list[bytes]:
        """Return the frames that `data` completes (payloads without the length)."""
        if self._rest:
            self._rest += data
            data = bytes(self._rest)
            self._rest.clear()
        frames, start, end = [], 0, len(data)
        while end - start >= HEADER:
            size = int.from_bytes(data[start : start + HEADER], "little")
            if size > self._limit:
                raise FrameError(f"frame of {size} bytes, the limit is {self._limit}")
            stop = start + HEADER + size
            if stop > end:
                break
            frames.append(data[start + HEADER : stop])
            start = stop
        if start < end:
            self._rest += data[start:]
        return frames


def depth_of(data: bytes) -> int:
    """Return the nesting depth of one msgpack value, stopping at MAX_DEPTH + 1.

    A scan without recursion, for bodies whose type admits free nesting.
    """
    depth, i, stack = 0, 0, [1]
    while stack and i < len(data):
        stack[-1] -= 1
        count, i = _children(data, i)
        if count:
            stack.append(count)
            depth = max(depth, len(stack) - 1)
            if depth > MAX_DEPTH:
                break
        while stack and stack[-1] == 0:
            stack.pop()
    return depth


def _children(data: bytes, i: int) -> tuple[int, int]:
    """Return how many values the one at data[i] holds, and where the next begins."""
    byte = data[i]
    if 0x80 <= byte <= 0x8F:
        return 2 * (byte & 0x0F), i + 1
    if 0x90 <= byte <= 0x9F:
        return byte & 0x0F, i + 1
    if byte in _LENGTH:
        width, factor, extra = _LENGTH[byte]
        size = int.from_bytes(data[i + 1 : i + 1 + width], "big")
        if factor:
            return factor * size, i + 1 + width
        return 0, i + 1 + width + size + extra
    if 0xA0 <= byte <= 0xBF:
        return 0, i + 1 + (byte & 0x1F)
    return 0, i + 1 + _FIXED.get(byte, 0)


# Tag byte -> (bytes of length, children per unit of length, extra bytes), from the msgpack spec.
_LENGTH: Final = {
    0xC4: (1, 0, 0), 0xC5: (2, 0, 0), 0xC6: (4, 0, 0), 0xC7: (1, 0, 1), 0xC8: (2, 0, 1),
    0xC9: (4, 0, 1), 0xD9: (1, 0, 0), 0xDA: (2, 0, 0), 0xDB: (4, 0, 0), 0xDC: (2, 1, 0),
    0xDD: (4, 1, 0), 0xDE: (2, 2, 0), 0xDF: (4, 2, 0),
}  # fmt: skip
_FIXED: Final = {
    0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,
    0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17,
}  # fmt: skip


_encode = msgspec.msgpack.Encoder().encode


def frame(payload: bytes) -> bytes:
    """Return the payload with its length before it."""
    return len(payload).to_bytes(HEADER, "little") + payload


def request(id: int, number: int, body: msgspec.Struct | bytes) -> bytes:
    """Return one request frame."""
    return frame(_encode((id, number, msgspec.Raw(body) if isinstance(body, bytes) else body)))


def reply(id: int, errno: int, more: bool, body: object) -> bytes:
    """Return one reply frame."""
    return frame(_encode((id, errno, more, body)))


decode_request = msgspec.msgpack.Decoder(Request).decode
decode_reply = msgspec.msgpack.Decoder(Reply).decode
