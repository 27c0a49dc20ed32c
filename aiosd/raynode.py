"""The node's side of a core on Ray: what an actor does beside the engine that it starts.

The bridge (raybridge.py) makes an actor of `Node`. It starts `python -m aiosd.engine`, passes
frames between the engine and the bridge without looking into them, and reads and writes snapshot
files in a directory of its own on this node's tmpfs. Ray is not imported here: the class is plain.

What must hold: the engine ends with this process, its files with the next actor on the node at the
latest; what the engine says is held back, not gathered, when the bridge does not fetch it.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections import deque
from pathlib import Path
from typing import Final, NamedTuple

HELD: Final = 4 << 20
"""Bytes of the engine's that wait for the bridge before the engine is kept waiting."""
READ: Final = 1 << 18
LINES: Final = 64
LINE: Final = 1000
PREFIX: Final = "aios-ray-"
LOCK: Final = "lock"
TMPFS: Final = "/dev/shm"


class About(NamedTuple):
    """What a node says of itself. code: digest of its engine. model: the file found there."""

    host: str
    code: str
    cpus: int
    model: str


class Heard(NamedTuple):
    """What came of the engine since the last time: frames, and lines of its standard error.

    ended: None while it runs, else its exit status, negative for a signal.
    """

    data: bytes
    lines: list[str]
    ended: int | None


class Node:
    """One engine and its files."""

    def __init__(self, place: str = "") -> None:
        """place: below which directory files are kept; the node's tmpfs unless given."""
        self._place = Path(place or (TMPFS if os.path.isdir(TMPFS) else tempfile.gettempdir()))
        self._directory = Path()
        self._lock = -1
        self._sock: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._held: deque[bytes] = deque()
        self._size = 0
        self._lines: deque[str] = deque(maxlen=LINES)
        self._last = b""  # of standard error, without a line's end
        self._status: int | None = None
        self._news = asyncio.Event()
        self._fetched = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, runner: str, model: str, nice: int) -> About | str:
        """Start the engine; returns a sentence where that can't be."""
        try:
            found = _find(runner, model)
            self._make_directory()
            self._start(nice)
        except OSError as error:
            return error.strerror or str(error)
        return About(socket.gethostname(), code(), os.cpu_count() or 1, found)

    async def directory(self) -> str:
        """Where files are kept; they are named without it."""
        return str(self._directory)

    # Frames.

    async def send(self, data: bytes) -> None:
        """Give frames to the engine; returns when they have been taken. One call at a time."""
        if self._sock is not None:
            try:
                await asyncio.get_running_loop().sock_sendall(self._sock, data)
            except OSError:
                self._news.set()  # it has gone: `receive` says so

    async def receive(self, patience: float) -> Heard:
        """Return what the engine has said, after `patience` seconds at the latest."""
        if not self._held and not self._lines and self._status is None:
            self._news.clear()
            try:
                async with asyncio.timeout(patience):
                    await self._news.wait()
            except TimeoutError:
                pass
        data, lines = b"".join(self._held), list(self._lines)
        self._held.clear()
        self._lines.clear()
        self._size = 0
        self._fetched.set()
        return Heard(data, lines, None if data else self._status)

    # Files.

    async def fetch(self, name: str, start: int, end: int) -> bytes:
        """Return bytes of a file. Raises OSError."""
        return await asyncio.to_thread(self._fetch, name, start, end)

    async def store(self, name: str, start: int, data: bytes) -> str:
        """Write bytes into a file, from `start` on; returns why it can't be, "" when it is done."""
        return await asyncio.to_thread(self._store, name, start, data)

    async def remove(self, names: list[str]) -> None:
        """Delete files."""
        for name in names:
            (self._directory / name).unlink(missing_ok=True)

    async def close(self) -> None:
        """End the engine and delete all files."""
        if (process := self._process) is not None and process.stderr is not None:
            process.kill()
            await asyncio.to_thread(process.wait)
            self._hear_no_more()
            process.stderr.close()
        for task in self._tasks:
            task.cancel()
        if self._sock is not None:
            self._sock.close()
        if self._lock >= 0:
            shutil.rmtree(self._directory, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1

    # Inside.

    def _make_directory(self) -> None:
        """Make a directory that is locked while we live, and sweep those of the dead."""
        prefix = f"{PREFIX}{os.getuid()}-"
        for left in self._place.glob(f"{prefix}*"):
            _sweep(left)
        self._directory = Path(tempfile.mkdtemp(prefix=prefix, dir=self._place))
        made = self._directory / f"{LOCK}.new"  # it has its name when it is locked, not before
        self._lock = os.open(made, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        made.rename(self._directory / LOCK)

    def _start(self, nice: int) -> None:
        """Start the engine from the loop's own thread: its death is the engine's."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "aiosd.engine", "--fd", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env={**os.environ, "AIOS_ENGINE_NICE": str(nice)},
            )
        ours.setblocking(False)
        self._sock = ours
        assert self._process.stderr is not None
        os.set_blocking(self._process.stderr.fileno(), False)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._process.stderr, self._complain)
        task = loop.create_task(self._listen(ours, self._process))
        self._tasks.add(task)

    async def _listen(self, sock: socket.socket, process: subprocess.Popen[bytes]) -> None:
        loop = asyncio.get_running_loop()
        while data := await _read(sock):
            self._held.append(data)
            self._size += len(data)
            self._news.set()
            while self._size > HELD:
                self._fetched.clear()
                await self._fetched.wait()
        self._status = await loop.run_in_executor(None, _reap, process)
        self._complain()
        self._news.set()

    def _complain(self) -> None:
        """Read standard error; a line that is too long is cut."""
        assert self._process is not None and self._process.stderr is not None
        try:
            data = os.read(self._process.stderr.fileno(), READ)
        except BlockingIOError:
            return
        if not data:
            self._hear_no_more()
            data = b"\n" if self._last else b""
        *lines, last = (self._last + data).split(b"\n")
        self._last = last[-LINE:]
        self._lines.extend(line[:LINE].decode(errors="replace") for line in lines)
        if lines:
            self._news.set()

    def _hear_no_more(self) -> None:
        if self._process is not None and self._process.stderr is not None:
            asyncio.get_running_loop().remove_reader(self._process.stderr)

    def _fetch(self, name: str, start: int, end: int) -> bytes:
        with open(self._directory / name, "rb") as file:
            return os.pread(file.fileno(), end - start, start)

    def _store(self, name: str, start: int, data: bytes) -> str:
        try:
            write(str(self._directory / name), start, data)
        except OSError as error:
            return error.strerror or str(error)
        return ""


def write(path: str, start: int, data: bytes | memoryview) -> None:
    """Write bytes into a file of 0600, which is made where there is none. Raises OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, start, max(1, len(data)))  # a full tmpfs is an error here, no signal
        view = memoryview(data)
        while view:
            done = os.pwrite(fd, view, start)
            view, start = view[done:], start + done
    finally:
        os.close(fd)


def code() -> str:
    """Digest of the engine's source: bits depend on it, and so do the words on the wire."""
    digest = hashlib.sha256()
    for file in sorted((Path(__file__).parent / "engine").glob("*.py")):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _find(runner: str, model: str) -> str:
    """Return the model's file on this node. Raises OSError that names the node."""
    if runner == "fake":
        return model
    from aiosd.modelfile import find_model

    where = f"on node {socket.gethostname()}"
    try:
        path = find_model(model)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} ({where})") from None
    if not path.is_file() or not os.access(path, os.R_OK):
        raise FileNotFoundError(errno.ENOENT, f"model {model}: no file that can be read {where}")
    return str(path)


async def _read(sock: socket.socket) -> bytes:
    try:
        return await asyncio.get_running_loop().sock_recv(sock, READ)
    except OSError:
        return b""


def _reap(process: subprocess.Popen[bytes]) -> int:
    """Wait for an engine that has closed its socket; one that does not end is ended."""
    try:
        return process.wait(10)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        return process.wait()


def _sweep(left: Path) -> None:
    """Delete the directory of an actor that has ended: nobody holds its lock."""
    try:
        fd = os.open(left / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(left, ignore_errors=True)
    except OSError:
        pass  # it lives
    finally:
        os.close(fd)
