"""Hostile clients against the real daemon: it stays up, stays small, and others notice nothing."""

from __future__ import annotations

import random
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from aiosd.abi import LEVEL, wire
from aiosd.abi.system import Hello, Ping
from aiosd.abi.table import TABLE
from tests.daemon import PATIENCE, Daemon

FRAMES = 100_000
WARM_UP = 20_000
BATCH = 20
HALF_OPEN = 1_000
GROWTH = 5 << 20  # bytes

HELLO = wire.request(0, 0, Hello(level=LEVEL))
END_ID = 1 << 40  # no bad frame's
END = wire.request(END_ID, 1, Ping())
# What ends the daemon or starts programs is another test's concern: here they get bad arguments.
HARMFUL = {"spawn", "fork", "add_core"}
encode = msgspec.msgpack.encode


@pytest.fixture
def daemon(state_dir: Path, runtime_dir: Path, kv_dir: Path) -> Iterator[Daemon]:
    with Daemon(state_dir, runtime_dir, kv_dir) as daemon:
        yield daemon


class Frames:
    """Makes bad frames, by a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._within = [self.good, self.random_body, self.mutated, self.truncated, self.deep]
        self._last = [self.noise, self.framed_noise, self.broken_header, self.oversized]

    def batch(self) -> bytes:
        """Return frames that the daemon answers, unless one is bad enough to hang up."""
        return b"".join(self._random.choice(self._within)() for _ in range(BATCH - 1))

    def last(self) -> bytes:
        """Return something that makes the daemon hang up, or wait for more."""
        return self._random.choice(self._last)()

    def noise(self) -> bytes:
        return self._random.randbytes(self._random.randrange(1, 40))

    def framed_noise(self) -> bytes:
        return wire.frame(self.noise())

    def value(self, depth: int = 0) -> object:
        pick = self._random.randrange(8 if depth < 3 else 6)
        if pick == 6:
            return [self.value(depth + 1) for _ in range(self._random.randrange(4))]
        if pick == 7:
            return {str(i): self.value(depth + 1) for i in range(self._random.randrange(4))}
        return (None, True, self._random.getrandbits(63), 1.5, "word", b"bytes")[pick]

    def good(self) -> bytes:
        """A well-formed request with arguments of the right names."""
        call = self._random.choice(list(TABLE.values()))
        names = [name for name in call.args.__struct_fields__ if self._random.random() < 0.7]
        if call.name in HARMFUL:
            names.append("none such")
        body = {name: self.value() for name in names}
        return wire.request(self._random.getrandbits(16), call.number, encode(body))

    def random_body(self) -> bytes:
        number = self._random.choice(list(TABLE))
        return wire.frame(encode((self._random.getrandbits(20), number, self.value())))

    def mutated(self) -> bytes:
        """A request with a few wrong bytes behind its header."""
        return self._spoil(9)

    def truncated(self) -> bytes:
        """A request whose body stops early."""
        payload = self.good()[4:]
        return wire.frame(payload[: self._random.randrange(3, len(payload))])

    def broken_header(self) -> bytes:
        """A request with a few wrong bytes anywhere."""
        return self._spoil(4)

    def _spoil(self, start: int) -> bytes:
        frame = bytearray(self.good())
        for _ in range(self._random.randrange(1, 4)):
            frame[self._random.randrange(min(start, len(frame) - 1), len(frame))] = (
                self._random.randrange(256)
            )
        return bytes(frame)

    def oversized(self) -> bytes:
        return self._random.randrange(wire.MAX_FRAME + 1, 1 << 32).to_bytes(4, "little")

    def deep(self) -> bytes:
        opener = self._random.choice((b"\x91", b"\x81\xa1a"))
        nested = opener * self._random.randrange(30, 3000) + b"\xc0"
        return wire.frame(b"\x93\x01" + bytes([self._random.choice((1, 41, 70))]) + nested)


def attack(daemon: Daemon, seed: int, count: int) -> int:
    """Send `count` bad frames, each batch on a connection of its own; return how many replies."""
    frames = Frames(seed)
    replies = 0
    for _ in range(count // BATCH):
        with socket.socket(socket.AF_UNIX) as sock, suppress(ConnectionError):
            sock.settimeout(PATIENCE)
            sock.connect(daemon.socket)
            sock.sendall(HELLO + frames.batch() + END)
            replies += read_to_end(sock)
            sock.sendall(frames.last())
    return replies


def read_to_end(sock: socket.socket) -> int:
    """Read until the ping behind the batch is answered or the daemon hangs up; count replies."""
    frames = wire.Frames()
    count = 0
    while piece := sock.recv(1 << 16):
        for payload in frames.feed(piece):
            count += 1
            if wire.decode_reply(payload).id == END_ID:
                return count
    return count


class Bystander:
    """A good client that pings all the time and checks every answer."""

    def __init__(self, daemon: Daemon) -> None:
        self.pings = 0
        self.wrong: list[BaseException] = []
        self._daemon = daemon
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._live)

    def _live(self) -> None:
        try:
            with self._daemon.connect() as client:
                while not self._end.is_set():
                    payload = str(self.pings).encode()
                    assert client.call(Ping(payload)).payload == payload
                    self.pings += 1
                    self._end.wait(0.0005)  # leave the processor to the attack
        except BaseException as error:  # noqa: BLE001 - raised again in the test's thread
            self.wrong.append(error)

    def __enter__(self) -> Bystander:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        for error in self.wrong:
            raise error


def half_open(path: str) -> list[socket.socket]:
    """Open connections that say nothing, half a hello, or half a frame."""
    beginnings = (b"", HELLO[:3], HELLO[:-1], HELLO + b"\x00\x10\x00\x00half")
    opened = []
    for number in range(HALF_OPEN):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        sock.sendall(beginnings[number % len(beginnings)])
        opened.append(sock)
    return opened


def test_hostile_clients_change_nothing_for_the_others(daemon: Daemon) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, HALF_OPEN + 500)), hard))
    try:
        attack(daemon, 1, WARM_UP)
        for sock in half_open(daemon.socket):
            sock.close()
        warm = daemon.resident()
        with Bystander(daemon) as bystander:
            replies = attack(daemon, 2, FRAMES // 2)
            opened = half_open(daemon.socket)
            try:
                replies += attack(daemon, 3, FRAMES // 2)
            finally:
                for sock in opened:
                    sock.close()
        assert replies > FRAMES // 2  # most got as far as the dispatcher
        assert bystander.pings > 200
        assert daemon.resident() - warm < GROWTH
        assert daemon.process.poll() is None
        assert "Traceback" not in daemon.log.read_text()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
