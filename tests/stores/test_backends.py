"""Storage over each back end: the same promises, and what becomes of them when a server fails."""

from __future__ import annotations

import errno
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aiosd.abi.storage import StoDelete, StoHistory, StoList, StoRead, StoRollback, StoWrite
from aiosd.abi.system import Ping
from aiosd.killpoint import POINTS
from tests.daemon import PATIENCE, ROOT, Client, Daemon
from tests.stores.conftest import FAKE
from tests.stores.servers import SERVERS, Server
from tests.stores.test_storage import PART, blobs, read, send, until

Open = Callable[..., Daemon]
DATA = random.Random(7).randbytes(2 * PART + 77)
KILLED = [point for point in POINTS if point.startswith("storage.")]


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server that runs for all tests of this file."""
    with SERVERS[request.param]() as server:
        yield server


@pytest.fixture
def launch(state_dir: Path, runtime_dir: Path, kv_dir: Path, server: Server) -> Iterator[Open]:
    """Give a way to start daemons on one state directory and the server."""
    running: list[Daemon] = []

    def launch(more: str = "", backend: str = server.name, **environ: str) -> Daemon:
        storage = f'[storage]\nbackend = "{backend}"\n{more}\n{server.config()}'
        daemon = Daemon(state_dir, runtime_dir, kv_dir, config=f"{FAKE}{storage}")
        daemon.environ = server.environ | environ
        running.append(daemon)
        return daemon.start()

    yield launch
    for daemon in running:
        daemon.__exit__()


def own(server: Server, before: int) -> int:
    """Return how many chunks came since."""
    return server.count() - before


def test_the_promises_of_storage_hold(launch: Open, server: Server) -> None:
    before = server.count()
    daemon = launch()
    with daemon.connect() as client:
        first = client.call(StoWrite("a", b"one"))
        client.call(StoWrite("empty", b""))
        send(client, "a", DATA)
        assert (read(client, "a"), read(client, "a", version=1)) == (DATA, b"one")
        assert read(client, "empty") == b""
        for offset, size in ((0, 1), (PART - 1, 2), (2 * PART, 77), (len(DATA) - 5, 0)):
            wanted = DATA[offset : offset + size] if size else DATA[offset:]
            assert read(client, "a", offset=offset, size=size) == wanted
        assert client.call(StoRollback("a", 1)).digest == first.digest
        assert [v.version for v in client.call(StoHistory("a"))] == [3, 2, 1]
        assert not blobs(daemon)  # all of it is there, and nothing here
        assert own(server, before)
    daemon.stop(signal.SIGKILL)
    daemon = launch()
    with daemon.connect() as client:
        assert read(client, "a", version=2) == DATA
        assert [o.name for o in client.call(StoList())] == ["a", "empty"]
        client.call(StoDelete("a"))
        client.call(StoDelete("empty"))
        until(lambda: own(server, before) == 0)


def test_a_large_object_passes_through_a_kernel_that_stays_small(
    launch: Open, server: Server
) -> None:
    daemon = launch()
    part = random.Random(8).randbytes(PART)
    with daemon.connect() as client:
        send(client, "warm", part * 9)
        assert read(client, "warm") == part * 9
        before = daemon.resident()
        for n in range(64):
            client.call(StoWrite("large", part, n * PART, n == 63, "u"))
        client.send(StoRead("large"))
        count = 0
        while (reply := client.read()).more:
            count += len(reply.body)
        assert not reply.errno and count >= 64 * PART
        assert daemon.resident() - before < 48 << 20


@pytest.mark.parametrize("point", KILLED)
def test_killed_at_a_write_point(
    launch: Open, server: Server, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    before = server.count()
    daemon = launch()
    with daemon.connect() as client:
        client.call(StoWrite("gone", b"soon deleted"))
        client.call(StoWrite("kept", b"first"))
    daemon.stop()
    mark = daemon.state_dir / "died"
    daemon = launch(AIOS_KILL_AT=f"{point}:1:{mark}")
    told = set()
    with daemon.connect() as client:
        try:
            client.call(StoDelete("gone"))
            told.add("delete")
            until(lambda: own(server, before) == 1 or daemon.process.poll() is not None)
            send(client, "kept", DATA)
            told.add("write")
        except (EOFError, OSError):
            pass
    assert daemon.process.wait(20) == -signal.SIGKILL and mark.exists()
    daemon = launch()
    with daemon.connect() as client:
        names = [o.name for o in client.call(StoList())]
        assert names == ["kept"] or (names == ["gone", "kept"] and "delete" not in told)
        found = client.call(StoHistory("kept"))
        assert len(found) == 2 or "write" not in told
        assert read(client, "kept", version=1) == b"first"
        for version in found[:-1]:
            assert read(client, "kept", version=version.version) == DATA
        for name in names:
            client.call(StoDelete(name))
        until(lambda: own(server, before) == 0)


def test_wrong_bytes_never_reach_a_reader(launch: Open, server: Server) -> None:
    daemon = launch()
    with daemon.connect() as client:
        send(client, "a", DATA)
        server.damage()
        assert failure(client, StoRead("a")).errno == errno.EUCLEAN
        send(client, "a", DATA)  # written again, it is whole again, in every version
        assert read(client, "a", version=1) == DATA


def test_a_server_that_hangs_holds_up_nobody_else(launch: Open, server: Server) -> None:
    daemon = launch()
    with daemon.connect() as client:
        client.call(StoWrite("a", b"first"))
    daemon.stop()
    daemon = launch('timeout = "500ms"')
    server.freeze()
    try:
        with daemon.connect() as client, daemon.connect() as other:
            client.send(StoRead("a"))
            assert other.call(Ping(b"still here")).payload == b"still here"
            reply = client.read()
            assert reply.errno == errno.ETIMEDOUT and b"timeout" in bytes(reply.body)
            assert failure(client, StoWrite("a", b"second")).errno == errno.ETIMEDOUT
    finally:
        server.thaw()
    daemon.stop()
    daemon = launch()
    with daemon.connect() as client:
        assert [v.version for v in client.call(StoHistory("a"))] == [1]
        client.call(StoWrite("a", b"third"))
        assert (read(client, "a"), read(client, "a", version=1)) == (b"third", b"first")


def test_a_server_that_dies_is_told_and_found_again(launch: Open, server: Server) -> None:
    daemon = launch('timeout = "20s"')
    with daemon.connect() as client:
        send(client, "a", DATA)
        client.call(StoWrite("b", DATA[:PART], 0, False, "u"))
        server.kill()
        try:
            assert failure(client, StoRead("a")).errno == errno.EIO
            assert failure(client, StoWrite("b", b"end", PART, True, "u")).errno == errno.EIO
            assert [o.name for o in client.call(StoList())] == ["a"]
            daemon.stop()
            daemon = launch()  # a kernel starts without its server, too
            with daemon.connect() as again:
                assert failure(again, StoRead("a")).errno == errno.EIO
        finally:
            server.start()
    with daemon.connect() as client:
        assert read(client, "a") == DATA
        client.call(StoWrite("b", b"whole"))
        assert read(client, "b") == b"whole"


def test_what_is_elsewhere_stays_readable(launch: Open, server: Server) -> None:
    daemon = launch()
    with daemon.connect() as client:
        client.call(StoWrite("a", b"far"))
    daemon.stop()
    daemon = launch(backend="directory")
    with daemon.connect() as client:
        assert read(client, "a") == b"far"
        client.call(StoWrite("b", b"near"))
    daemon.stop()
    daemon = launch()
    with daemon.connect() as client:
        assert (read(client, "a"), read(client, "b")) == (b"far", b"near")


def test_no_secret_is_told(launch: Open, server: Server) -> None:
    (variable, good) = next(iter(server.environ.items()))
    wrong = "some-id another-secret" if server.name == "s3" else "another-secret"
    daemon = launch("", server.name, **{variable: wrong, "RUST_LOG": "trace"})
    with daemon.connect() as client:
        client.send(StoWrite("a", b"x"))
        reply = client.read()
        assert server.name == "s3" or reply.errno == errno.EACCES  # this S3 server checks none
        assert b"secret" not in bytes(reply.body)
    daemon.stop()
    log = daemon.log.read_text()
    assert "another-secret" not in log and good not in log


@pytest.mark.parametrize(
    ("backend", "library", "wanted"),
    [
        ("s3", "obstore", "pip install 'aios[s3]'"),
        ("postgres", "asyncpg", "pip install 'aios[postgres]'"),
        ("s3", "", "storage.s3.bucket"),
        ("postgres", "", "storage.postgres.url"),
        ("floppy", "", "there are directory, s3, postgres"),
    ],
)
def test_what_is_missing_is_said_at_the_start(
    state_dir: Path, runtime_dir: Path, kv_dir: Path, backend: str, library: str, wanted: str
) -> None:
    hide = state_dir / "hide"
    hide.mkdir()
    if library:
        absent = f"raise ModuleNotFoundError('none', name={library!r})"
        (hide / f"{library}.py").write_text(absent)
    config = f'{FAKE}[storage]\nbackend = "{backend}"\n'
    daemon = Daemon(state_dir, runtime_dir, kv_dir, config=config)
    daemon.environ = {"PYTHONPATH": f"{hide}:{ROOT}"}
    daemon.launch()
    try:
        assert daemon.process.wait(PATIENCE) == 1
        assert wanted in daemon.log.read_text()
    finally:
        daemon.__exit__()


def failure(client: Client, call: Any) -> OSError:
    """Return the error of a call that must fail."""
    client.send(call)
    while (reply := client.read()).more:
        pass
    assert reply.errno
    return OSError(reply.errno, bytes(reply.body).decode(errors="replace"))
