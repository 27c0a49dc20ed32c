"""Frames on the socket: a 4-byte little-endian length, then one msgpack value.

Request: `[id, number, body]`; reply: `[id, errno, more, body]`. `more` marks a chunk of a stream;
the last frame of every request has more = False. An error's body is a sentence. The length is
compared with the limit before anything is read for it.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

MAX_FRAME: Final = 8 << 20
"""Bytes in a frame's msgpack value, unless the kernel's configuration says less."""

MAX_DEPTH: Final = 32
"""Nesting that a body may have; a decoder that meets more refuses it."""

MAX_VALUES: Final = 65_536
"""Values that a freely nesting body may hold: walking it must not hold up the kernel."""

LONG: Final = 1 << 18
"""Bytes from which a body is walked without counting first, and a frame has its own buffer."""

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
    """Cuts a byte stream into frames; copies each byte a fixed number of times at most.

    `add` what arrived, then `take` complete values in order until None; `feed` does both. Raises
    FrameError when a length exceeds `limit`; after that the object is unusable. `limit` may be
    changed between two takes. A large frame is gathered in a buffer of its own, which grows with
    what has come and is what `take` gives: fresh copies cost more in page faults than in copying.
    """

    __slots__ = ("_at", "_data", "_large", "_need", "_rest", "_size", "limit")

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self.limit = limit
        self._data = b""  # what `take` cuts from, from `_at` on
        self._at = 0
        self._rest = bytearray()  # an incomplete frame, waiting to be `_need` bytes long
        self._need = 0
        self._large: bytearray | None = None  # a large frame's value, as far as it has come
        self._size = 0  # bytes that it will have

    @property
    def pending(self) -> int:
        """Bytes held and not yet taken."""
        return len(self._large or b"") + len(self._rest) + len(self._data) - self._at

    def add(self, data: bytes) -> None:
        """Append what arrived."""
        if self._large is not None and len(self._large) < self._size:
            more = self._size - len(self._large)
            self._large += memoryview(data)[:more]
            data = data[more:]
        if self._rest:
            self._rest += data
            if len(self._rest) < self._need:
                return
            data = bytes(self._rest)
            self._rest = bytearray()
        elif self._at < len(self._data):
            data = self._data[self._at :] + data
        self._data = data
        self._at = 0

    def take(self) -> bytes | bytearray | None:
        """Return the next complete frame's value, without the length; None when there is none."""
        if self._large is not None:
            return self._take_large()
        data, at = self._data, self._at
        start = at + HEADER
        if start <= len(data):
            size: int = _unpack_size(data, at)[0]
            if size > self.limit:
                raise FrameError(f"frame of {size} bytes, the limit is {self.limit}")
            stop = start + size
            if stop <= len(data):
                self._at = stop
                return data[start:stop]
            if size >= LONG:
                self._large, self._size = bytearray(data[start:]), size
                self._data, self._at = b"", 0
                return None
            self._need = HEADER + size
        else:
            self._need = HEADER
        if at < len(data):
            self._rest += data[at:]
            self._data = b""
            self._at = 0
        return None

    def _take_large(self) -> bytearray | None:
        if self._large is None or len(self._large) < self._size:
            return None
        whole, self._large = self._large, None
        return whole

    def feed(self, data: bytes) -> list[bytes | bytearray]:
        """Return the frames that `data` completes (values without the length)."""
        self.add(data)
        frames: list[bytes | bytearray] = []
        while (payload := self.take()) is not None:
            frames.append(payload)
        return frames


def nesting(body: bytes | memoryview) -> str:
    """Return what is wrong with how a body nests, as words for a sentence; "" when nothing is.

    For bodies whose type admits free nesting. Counting the bytes that could open a container is
    quick and almost always settles it; only then is the body walked, and never past MAX_VALUES.
    A long body is walked at once: what is long in it is mostly one value, passed in one step.
    """
    if len(body) <= MAX_DEPTH:  # each level takes a byte
        return ""
    if len(body) < LONG:
        body = bytes(body)
        if len(body) - len(body.translate(None, _OPENERS)) <= MAX_DEPTH:
            return ""
    if (depth := depth_of(body)) > MAX_DEPTH:
        return f"nests deeper than {MAX_DEPTH}"
    return "" if depth >= 0 else f"holds more than {MAX_VALUES} values"


def depth_of(data: bytes | memoryview) -> int:
    """Return the nesting depth of one msgpack value, stopping at MAX_DEPTH + 1.

    A scan without recursion. Returns -1 when it meets more than MAX_VALUES values before that.
    """
    depth, i, stack, seen = 0, 0, [1], 0
    while stack and i < len(data):
        seen += 1
        if seen > MAX_VALUES:
            return -1
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


def _children(data: bytes | memoryview, i: int) -> tuple[int, int]:
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
_OPENERS: Final = bytes([*range(0x80, 0xA0), *range(0xDC, 0xE0)])  # tags of arrays and maps
_unpack_size = struct.Struct("<I").unpack_from

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.decode


def salvage(payload: bytes | bytearray) -> tuple[int, int]:
    """Return id and number of a request whose body is damaged, so that it can be answered.

    Raises FrameError when the header is damaged as well.
    """
    try:
        if payload[0] not in (0x92, 0x93):
            raise FrameError("a request is an array [id, number, body]")
        middle = 2 + _FIXED.get(payload[1], 0)
        end = middle + 1 + _FIXED.get(payload[middle], 0)
        return _decode(payload[1:middle], type=int), _decode(payload[middle:end], type=int)
    except (IndexError, msgspec.MsgspecError) as error:
        raise FrameError(f"a request is an array [id, number, body]: {error}") from None


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
