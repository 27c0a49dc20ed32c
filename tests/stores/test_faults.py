"""Back ends whose servers break off, answer nonsense or hang; and sealed objects there."""

from __future__ import annotations

import asyncio
import errno
import random
import signal
import threading
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import pytest

from aiosd.abi.storage import StoDelete, StoHistory, StoList, StoRead, StoRollback, StoWrite
from aiosd.threads import FAR, Threads
from tests.daemon import PATIENCE, Client, Daemon, answer
from tests.stores.conftest import FAKE
from tests.stores.gate import Gate
from tests.stores.servers import SERVERS, Server
from tests.stores.test_backends import failure
from tests.stores.test_storage import PART, TEXT, blobs, read, send, until

DATA = random.Random(9).randbytes(2 * PART + 77)
MARK = "xylophone"
SECRET = f"The {MARK} stands in the cellar. ".encode()
SOME = 100_000  # bytes, fewer than any chunk of DATA's beginning has
CLOSE = b"Connection: close\r\n\r\n"
NONSENSE = {
    "s3": [
        b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n" + CLOSE,
        b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n" + CLOSE,
        b"HTTP/1.1 206 Partial Content\r\nContent-Length: 900\r\n" + CLOSE + b"too little",
        b"this is no HTTP at all\r\n\r\n",
    ],
    "postgres": [b"E\x00\x00\x00\x01", b"N" * 99, b"\x00" * 99],
}

Open = Callable[..., Daemon]


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server that runs for all tests of this file."""
    with SERVERS[request.param]() as server:
        yield server


@pytest.fixture
def gate(server: Server) -> Iterator[Gate]:
    """A gate before it."""
    with Gate(server.port) as gate:
        yield gate


@pytest.fixture
def launch(
    state_dir: Path, runtime_dir: Path, kv_dir: Path, server: Server, gate: Gate
) -> Iterator[Open]:
    """Give a way to start daemons on one state directory; what is theirs goes through the gate."""
    running: list[Daemon] = []

    def launch(more: str = "") -> Daemon:
        storage = f'[storage]\nbackend = "{server.name}"\n{more}\n{server.config(gate.port)}'
        daemon = Daemon(state_dir, runtime_dir, kv_dir, config=FAKE + storage)
        daemon.environ = dict(server.environ)
        running.append(daemon)
        return daemon.start()

    yield launch
    for daemon in running:
        daemon.__exit__()


def test_what_breaks_off_in_the_middle(launch: Open, server: Server, gate: Gate) -> None:
    before = server.count()
    daemon = launch()
    with daemon.connect() as client:
        client.call(StoWrite("a", b"first"))
        gate.cut_up(SOME, times=1)
        send(client, "a", DATA)  # sent again
        assert gate.broken == 1
        gate.cut_down(SOME, times=1)
        assert read(client, "a") == DATA  # asked again
        assert gate.broken == 2
        gate.cut_down(SOME)
        assert failure(client, StoRead("a")).errno == errno.EIO
        gate.cut_up(SOME)
        client.call(StoWrite("a", DATA[:PART], 0, False, "u"))
        assert failure(client, StoWrite("a", b"end", PART, True, "u")).errno == errno.EIO
        gate.mend()
        assert [row.version for row in client.call(StoHistory("a"))] == [2, 1]
        assert (read(client, "a"), read(client, "a", version=1)) == (DATA, b"first")
        assert not blobs(daemon)
        client.call(StoDelete("a"))
        until(lambda: server.count() == before)


def test_a_server_that_answers_nonsense(launch: Open, server: Server, gate: Gate) -> None:
    daemon = launch()
    with daemon.connect() as client:
        client.call(StoWrite("a", b"first"))
        calls = cycle([StoRead("a"), StoWrite("a", b"second")])
        for nonsense, call in zip(NONSENSE[server.name], calls, strict=False):
            gate.say(nonsense)
            assert failure(client, call).errno == errno.EIO, nonsense
            gate.say(nonsense, times=1)
            assert read(client, "a") == b"first"  # asked again
        gate.mend()
        assert [row.version for row in client.call(StoHistory("a"))] == [1]
        client.call(StoWrite("a", b"second"))
        assert read(client, "a") == b"second"


def test_many_who_wait_for_a_server_hold_up_nobody_else(launch: Open, server: Server) -> None:
    daemon = launch('timeout = "120s"')
    with daemon.connect() as client:
        client.call(StoWrite("a", b"first"))
        server.freeze()
        waiting = [daemon.connect() for _ in range(FAR + 2)]
        try:
            for each in waiting:
                each.send(StoRead("a"))
            client.call(StoWrite("b", DATA[:PART], 0, False, "u"))  # kept here so far
            assert [row.name for row in client.call(StoList())] == ["a"]
        finally:
            server.thaw()
        assert [_answered(each) for each in waiting] == [b"first"] * len(waiting)
        client.call(StoWrite("b", b"end", PART, True, "u"))
        assert read(client, "b") == DATA[:PART] + b"end"
        for each in waiting:
            each.close()


def _answered(client: Client) -> bytes:
    """Return the bytes that were asked for."""
    found = b""
    while (reply := client.read()).more:
        found += answer(reply, bytes)
    assert not reply.errno
    return found


def test_who_gets_no_thread_is_told_in_time() -> None:
    free = threading.Event()

    async def ask() -> None:
        threads = Threads("test")
        busy = [asyncio.ensure_future(threads.far(PATIENCE, free.wait)) for _ in range(FAR)]
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError, match=f"{FAR} requests to the server") as caught:
            await threads.far(0.01, free.wait)
        assert caught.value.errno == errno.ETIMEDOUT
        assert await threads.near(int, "7") == 7
        busy[0].cancel()  # its thread is not free before the deed is done
        await asyncio.gather(busy[0], return_exceptions=True)
        with pytest.raises(TimeoutError):
            await threads.far(0.01, free.wait)
        free.set()
        assert await threads.far(PATIENCE, int, "8") == 8
        await asyncio.gather(*busy[1:])
        await asyncio.to_thread(threads.close)

    asyncio.run(ask())


def test_sealed_objects_are_ciphertext_there(launch: Open, server: Server) -> None:
    before = server.count()
    large = SECRET * (3 * PART // len(SECRET))
    daemon = launch('encrypt = "all"')
    with daemon.connect() as client:
        first = client.call(StoWrite("a", SECRET, content_type=TEXT))
        second = send(client, "a", large)
        assert first.encrypted and second.encrypted
        client.call(StoRollback("a", 1))
        assert server.count() > before and not server.holds(MARK.encode())
    daemon.stop(signal.SIGKILL)
    daemon = launch()  # no longer encrypted from here on
    with daemon.connect() as client:
        assert (read(client, "a"), read(client, "a", version=2)) == (SECRET, large)
        assert not client.call(StoWrite("b", SECRET)).encrypted
        assert server.holds(MARK.encode())
        client.call(StoDelete("b"))
        until(lambda: not server.holds(MARK.encode()))
        server.damage()
        assert failure(client, StoRead("a", version=2)).errno == errno.EUCLEAN
        client.call(StoDelete("a"))
        until(lambda: server.count() == before)
