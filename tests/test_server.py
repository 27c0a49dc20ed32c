"""The server's promises: bounded memory and patience, whatever the peer does."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from aiosd import server
from aiosd.abi import LEVEL, wire
from aiosd.abi.process import ListAgents, ResumeAgent
from aiosd.abi.system import Hello, Ping
from aiosd.abi.table import BY_NAME
from aiosd.access import Caller
from tests.daemon import PATIENCE, Client, answer
from tests.door import Door


class Handlers:
    """Answers that are large, and work that takes its time."""

    def __init__(self) -> None:
        self.made = 0

    def sys_list_agents(self, caller: Caller, args: ListAgents) -> Any:
        self.made += 1
        return [b"x" * 1000] * args.limit

    def sys_get_aid(self, caller: Caller, args: Any) -> Any:
        return [caller.uid, caller.gid, caller.pid]


@pytest.fixture
def handlers() -> Handlers:
    return Handlers()


@pytest.fixture
def door(runtime_dir: Path, handlers: Handlers) -> Iterator[Door]:
    with Door(runtime_dir, handlers, max_connections=3, max_frame=1 << 20) as door:
        yield door


def last_words(client: Client) -> tuple[int, str]:
    """Read the refusal, with id 0, and the end of the connection."""
    reply = client.read()
    assert reply.id == 0
    with pytest.raises(OSError, match=" ") as raised:
        answer(reply)
    with pytest.raises((EOFError, ConnectionResetError)):
        client.read()
    assert raised.value.errno is not None
    return raised.value.errno, str(raised.value.strerror)


def test_who_is_there_is_asked_of_the_system(door: Door) -> None:
    client = door.connect()
    client.send_raw(BY_NAME["get_aid"].number, b"\x80")
    assert answer(client.read()) == [os.getuid(), os.getgid(), os.getpid()]


def test_many_requests_in_one_piece_are_answered_in_order(door: Door) -> None:
    client = door.connect()
    frames = [wire.request(n, 1, Ping(str(n).encode())) for n in range(5000)]
    client.sock.sendall(b"".join(frames))
    for n in range(5000):
        reply = client.read()
        assert reply.id == n
        assert answer(reply)["payload"] == str(n).encode()


def test_a_request_byte_by_byte(door: Door) -> None:
    client = door.connect()
    for byte in wire.request(9, 1, Ping(b"slow")):
        client.sock.sendall(bytes([byte]))
    assert answer(client.read())["payload"] == b"slow"


def test_a_frame_up_to_the_limit_passes(door: Door) -> None:
    client = door.connect()
    fitting = wire.frame(b"\xc0" * (1 << 20))
    client.sock.sendall(fitting)
    assert last_words(client)[0] == errno.EPROTO  # of a good size, but no request


@pytest.mark.parametrize("size", [(1 << 20) + 1, 1 << 31, (1 << 32) - 1])
def test_an_oversize_length_is_refused_unread(door: Door, size: int) -> None:
    client = door.connect()
    client.sock.sendall(size.to_bytes(4, "little"))
    number, sentence = last_words(client)
    assert number == errno.EPROTO
    assert sentence.startswith(f"frame of {size} bytes, the limit is {1 << 20}")


def test_a_stranger_gets_little_room(door: Door) -> None:
    client = door.connect(hello=False)
    client.sock.sendall((5000).to_bytes(4, "little"))
    assert "the limit is 4096" in last_words(client)[1]


def test_a_large_request_right_behind_a_hello(door: Door) -> None:
    client = door.connect(hello=False)
    ping = wire.request(1, 1, Ping(b"x" * 60_000))
    client.sock.sendall(wire.request(0, 0, Hello(level=LEVEL)) + ping)
    assert answer(client.read())["level"] == LEVEL
    assert len(answer(client.read())["payload"]) == 60_000


@pytest.mark.parametrize(
    "payload", [b"", b"\xc0", b"\x93", b"\x93\xa1a\x01\x80", b"\x94\x01\x01\x80"]
)
def test_what_is_no_request_ends_the_connection(door: Door, payload: bytes) -> None:
    client = door.connect()
    client.sock.sendall(wire.request(5, 1, Ping(b"before")) + wire.frame(payload))
    assert answer(client.read())["payload"] == b"before"
    number, sentence = last_words(client)
    assert number == errno.EPROTO
    assert sentence.startswith("a request is an array [id, number, body]")


def test_silence_instead_of_hello_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch, runtime_dir: Path
) -> None:
    monkeypatch.setattr(server, "HELLO_S", 0.05)
    monkeypatch.setattr(server, "SWEEP_S", 0.01)
    with Door(runtime_dir) as door:
        number, sentence = last_words(door.connect(hello=False))
    assert (number, sentence) == (
        errno.ETIMEDOUT,
        "no hello within 0.05 s; the connection is closed",
    )


def test_an_unfinished_frame_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch, runtime_dir: Path
) -> None:
    monkeypatch.setattr(server, "FRAME_S", 0.05)
    monkeypatch.setattr(server, "SWEEP_S", 0.01)
    with Door(runtime_dir) as door:
        client = door.connect(hello=False)
        client.sock.sendall(wire.request(0, 0, Hello(level=LEVEL)) + b"\x10\x00\x00\x00\x93")
        client.read()
        number, sentence = last_words(client)
    assert number == errno.ETIMEDOUT
    assert "a frame was not complete" in sentence


def test_strangers_make_room_for_newcomers(door: Door) -> None:
    known = door.connect()
    strangers = [door.connect(hello=False) for _ in range(2)]
    door.until(lambda: door.server.connections == 3)
    newcomer = door.connect()
    assert last_words(strangers[0])[0] == errno.EAGAIN
    newcomer.call(Ping())
    door.connect().call(Ping())
    assert last_words(strangers[1])[0] == errno.EAGAIN
    refused = door.connect(hello=False)
    assert "kernel.max_connections" in last_words(refused)[1]
    known.call(Ping())


def test_who_does_not_read_is_not_read_from(door: Door, handlers: Handlers) -> None:
    """A peer that asks for much and reads nothing costs a bounded buffer, and nobody else."""
    client = door.connect()
    asked = 0
    client.sock.setblocking(False)
    request = b"".join(
        wire.request(n, BY_NAME["list_agents"].number, ListAgents(limit=100)) for n in range(100)
    )
    with suppress(BlockingIOError):
        while True:
            asked += client.sock.send(request)
    frames = asked // (len(request) // 100)
    door.until(lambda: any(not session.port.writable() for session in door.dispatcher.sessions))
    made = handlers.made
    assert made * 100_000 < 4 << 20
    other = door.connect()
    for _ in range(100):
        other.call(Ping())
    assert handlers.made == made
    client.sock.settimeout(PATIENCE)
    for _ in range(frames - 1):
        assert client.read().errno == 0


def test_one_connection_does_not_hold_up_the_others(door: Door) -> None:
    """A heap of requests in one piece is worked off in turns."""
    heap = door.connect()
    other = door.connect()
    heap.sock.sendall(
        b"".join(
            wire.request(n, BY_NAME["resume_agent"].number, ResumeAgent(1)) for n in range(9000)
        )
    )
    other.call(Ping())
    for n in range(9000):
        reply = heap.read()
        assert (reply.id, reply.errno) == (n, errno.ENOSYS)
