"""Spawning agents: the kernel's side of the shim.

    spawner = Spawner(state_dir / "agents", watcher)
    shim = await spawner.start(aid, Spec(argv=..., cwd=..., env=...))
    pid = await shim.ready()            # or OSError: the program could not be executed
    shim.signal(signal.SIGTERM)
    ...                                 # watcher.on_exit(shim, record): store it durably, then
    shim.bye()                          # the shim ends
    spawner.remove(aid)                 # when nobody needs the output any more

After a restart `await spawner.adopt(aid)` finds the shim again, or what it left.

What must hold: for each agent the watcher hears exactly one of on_exit, on_exec_failed and on_lost,
unless the kernel detaches first. Nothing here waits for an agent; what touches the disk is a few
small files. All of it runs on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, cast

import msgspec

from aiosd import shim as shim_program
from aiosd.agentlog import LogRecord, read_log
from aiosd.launch import LIMITS
from aiosd.proctree import Cgroup, kill_session

LINE_MAX = 65536  # bytes of one message from a shim
SUN_PATH_MAX = 107  # bytes that a Unix socket's address holds
CREDENTIAL_MAX = 4096  # bytes: what a pipe takes at once whatever its size
HELLO_TIMEOUT = 5.0  # seconds that a living shim may take to answer


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What to run and under which limits.

    uid and gid go together (None: the kernel's own); groups are the supplementary ones. rlimits
    has nofile, nproc, as, cpu, fsize, core (default 0) in the units of setrlimit; a limit above
    the kernel's own hard limit becomes that. log_limit is bytes for both log files together;
    timeouts are seconds; cgroup is a cgroup v2 directory in which the agent gets one of its own.
    """

    argv: Sequence[str]
    cwd: str
    env: dict[str, str]
    uid: int | None = None
    gid: int | None = None
    groups: Sequence[int] = ()
    rlimits: dict[str, int] = {}
    log_limit: int = 16 << 20
    orphan_timeout: float = 60.0
    kill_timeout: float = 5.0
    credential: bytes = b""
    cgroup: str | None = None

    def __post_init__(self) -> None:
        if not self.argv or not self.argv[0]:
            raise OSError(errno.EINVAL, "argv is empty: name a program")
        if (self.uid is None) != (self.gid is None):
            raise OSError(errno.EINVAL, "uid and gid go together: give both or neither")
        if unknown := self.rlimits.keys() - LIMITS.keys():
            known = ", ".join(sorted(LIMITS))
            raise OSError(
                errno.EINVAL, f"rlimits: no limit named {min(unknown)}; there are {known}"
            )
        if len(self.credential) > CREDENTIAL_MAX:
            raise OSError(errno.EINVAL, f"credential is longer than {CREDENTIAL_MAX} bytes")


class ExitRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How an agent ended; what exit.json holds.

    Exactly one of code, signal and errno is set, errno (with its message) when the program could
    not be executed. reason: exited (by itself or by a signal sent to it), exec_failed, killed (by
    kill_tree), orphaned (no kernel came back), terminated (its shim was told to end), shim_failed.
    started and ended are Unix times in seconds, cpu_s the CPU seconds of the whole tree, max_rss
    the bytes of its largest process, log_size the logical end of its output.
    """

    aid: str
    pid: int
    started: float | None
    code: int | None
    signal: int | None
    errno: int | None
    message: str | None
    reason: str
    ended: float
    cpu_s: float
    max_rss: int
    log_size: int

    @property
    def error(self) -> OSError:
        """The error of an agent that could not be executed, to be raised."""
        return OSError(self.errno or errno.EINVAL, self.message or "the program could not be run")


class Watcher(Protocol):
    """Who hears what becomes of the agents; called on the event loop, and must not block."""

    def on_started(self, shim: Shim, pid: int) -> None:
        """The program runs as this OS process."""

    def on_exec_failed(self, shim: Shim, record: ExitRecord) -> None:
        """The program could not be executed (record.error). Say bye once this is stored."""

    def on_log(self, shim: Shim, size: int) -> None:
        """There is output up to this logical offset; at most 20 times a second."""

    def on_exit(self, shim: Shim, record: ExitRecord) -> None:
        """The agent and its whole tree have ended. Say bye once this is stored."""

    def on_lost(self, shim: Shim) -> None:
        """The shim was killed, and its tree with it: there is no exit status."""


class Shim(asyncio.Protocol):
    """One agent's shim, as the kernel holds it."""

    def __init__(self, aid: int, directory: Path, watcher: Watcher) -> None:
        self.aid = aid
        self.pid: int | None = None  # of the agent, once its program runs
        self.started: float | None = None  # Unix time
        self.start_ticks = 0  # of the agent's process, in clock ticks since boot
        self.shim_pid = 0
        self.log_size = 0
        self.record: ExitRecord | None = None
        self.lost = False
        self._directory = directory
        self._watcher = watcher
        self._transport: asyncio.WriteTransport | None = None
        self._buffer = b""
        self._detached = False
        self._ours = False  # started by this kernel, not adopted
        self._greeted = False
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._ready: asyncio.Future[int] = loop.create_future()
        self._ready.add_done_callback(lambda f: f.cancelled() or f.exception())
        self._hello: asyncio.Future[None] = loop.create_future()
        self._closed: asyncio.Future[None] = loop.create_future()

    async def ready(self) -> int:
        """Wait until the program runs and return its OS pid; OSError when it can't be executed."""
        return await asyncio.shield(self._ready)

    async def closed(self) -> None:
        """Wait until the connection is closed and, where the shim is our child, it is reaped."""
        await asyncio.shield(self._closed)

    def signal(self, sig: int, tree: bool = False) -> None:
        """Signal the agent's process group, or with `tree` every process below its shim.

        As in Unix: a stopped agent hears nothing but KILL and CONT until it is continued.
        Nothing happens when the agent has ended.
        """
        self._send({"op": "signal", "sig": int(sig), "tree": tree})

    def kill_tree(self) -> None:
        """Kill the agent and everything that it started, at once."""
        self._send({"op": "kill_tree"})

    def bye(self) -> None:
        """The end is stored: let the shim go. Only after on_exit or on_exec_failed."""
        if self.record is None:
            raise ValueError(f"agent {self.aid} has not ended: bye would leave it alone")
        self._send({"op": "bye"})

    def detach(self) -> None:
        """Leave the agent running for the next kernel; the watcher hears no more of it."""
        self._detached = True
        if self._transport is not None:
            self._transport.close()
        self._forget_process()

    # the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the connection (called by the event loop)."""
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        """Act on the complete messages (called by the event loop)."""
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._hear(msgspec.json.decode(line))
        if len(self._buffer) > LINE_MAX and self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """See what became of the agent (called by the event loop)."""
        self._transport = None
        known = self._ours or self._greeted
        if not self._hello.done():
            self._hello.set_result(None)
        if known and self.record is None and not self._detached:
            self._look_after_loss()
        self._settle()

    def _send(self, message: dict[str, object]) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(msgspec.json.encode(message) + b"\n")

    def _hear(self, event: dict[str, object]) -> None:
        if self._detached:
            return
        match event:
            case {"ev": "hello", "shim_pid": int(shim_pid), "start_ticks": int(ticks)}:
                self.shim_pid, self.start_ticks = shim_pid, ticks
                self._hold(shim_pid)
                self._greeted = True
                self._hello.set_result(None)
            case {"ev": "started", "pid": int(pid), "started": float(started)}:
                self.pid, self.started = pid, started
                self._ready.set_result(pid)
                self._watcher.on_started(self, pid)
            case {"ev": "log", "size": int(size)}:
                self.log_size = size
                self._watcher.on_log(self, size)
            case {"ev": "exit" | "exec_failed"}:
                self._end(msgspec.convert(event, ExitRecord))

    def _end(self, record: ExitRecord) -> None:
        if self.record is not None:
            return
        self.record = record
        self.log_size = record.log_size
        if record.errno is not None:
            if not self._ready.done():
                self._ready.set_exception(record.error)
            self._watcher.on_exec_failed(self, record)
        else:
            self._watcher.on_exit(self, record)

    def _look_after_loss(self) -> None:
        """The connection broke before an end was reported: find out, and leave no process."""
        if record := read_record(self._directory):
            self._end(record)
            return
        if self._pidfd >= 0:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        sweep(self._directory, self.shim_pid, self.aid, sure=True)
        self.lost = True
        if not self._ready.done():
            why = f"the agent's shim ended: {_last_note(self._directory)}"
            self._ready.set_exception(OSError(errno.ECHILD, why))
        self._watcher.on_lost(self)

    # the process

    def own(self, process: subprocess.Popen[bytes]) -> None:
        """Take over the shim that was just started: it will be reaped when it ends."""
        self._ours = True
        self._process = process
        self.shim_pid = process.pid
        self._hold(process.pid)
        self._loop.add_reader(self._pidfd, self._reap)

    def _hold(self, shim_pid: int) -> None:
        if self._pidfd < 0:
            with contextlib.suppress(OSError):
                self._pidfd = os.pidfd_open(shim_pid)

    def _reap(self) -> None:
        if self._process is not None:
            self._process.wait()
        self._forget_process()
        self._settle()

    def _forget_process(self) -> None:
        if self._process is not None:
            self._loop.remove_reader(self._pidfd)
            if self._process.returncode is None:
                self._process.returncode = 0  # not ours to wait for: no ResourceWarning for it
            self._process = None

    def _settle(self) -> None:
        """Once both connection and process are gone, so are we."""
        if self._transport is None and self._process is None:
            if self._pidfd >= 0:
                os.close(self._pidfd)
                self._pidfd = -1
            if not self._closed.done():
                self._closed.set_result(None)


class Spawner:
    """Starts and finds again the shims of all agents, each in a directory of its own."""

    def __init__(self, agents_dir: Path, watcher: Watcher, python: str = sys.executable) -> None:
        """Keep the agents below `agents_dir`, made 0700 when missing; run shims with `python`."""
        self._dir = agents_dir
        self._watcher = watcher
        self._python = python
        agents_dir.mkdir(mode=0o700, parents=True, exist_ok=True)

    def aids(self) -> list[int]:
        """The agents that have a directory, ascending."""
        return sorted(int(name) for name in os.listdir(self._dir) if name.isdigit())

    async def start(self, aid: int, spec: Spec) -> Shim:
        """Start an agent under a new shim.

        Returns once connected; whether its program could be executed is told by ready() and the
        watcher. OSError when the directory exists or no process can be started.
        """
        directory = self._dir / str(aid)
        directory.mkdir(mode=0o700)
        try:
            process = self._launch(aid, directory, spec)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        shim = Shim(aid, directory, self._watcher)
        shim.own(process)
        with contextlib.suppress(ConnectionError):  # it was killed already: the loss is reported
            await self._connect(shim, directory)
            return shim
        shim.connection_lost(None)
        return shim

    async def adopt(self, aid: int) -> Shim | ExitRecord | None:
        """Find an agent of an earlier kernel.

        Returns its shim when one lives (the watcher hears what happened, an exit included), the
        record of its end when there is one, or None when it was lost; then no process is left.
        """
        directory = self._dir / str(aid)
        shim = Shim(aid, directory, self._watcher)
        with contextlib.suppress(OSError, TimeoutError):
            await self._connect(shim, directory)
            await asyncio.wait_for(shim._hello, HELLO_TIMEOUT)
        if shim._greeted:
            return shim
        shim.detach()
        if record := read_record(directory):
            return record
        sweep(directory, _stored_pid(directory), aid, sure=False)
        return None

    def remove(self, aid: int) -> None:
        """Delete all that is kept of an ended agent; nothing when there is nothing."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._dir / str(aid))

    def read_log(self, aid: int, offset: int, limit: int) -> tuple[int, list[LogRecord]]:
        """Read at most `limit` records of output from a logical offset.

        Returns the offset to go on from, and the records. An offset whose output was rotated
        away goes on at the oldest that is kept. FileNotFoundError when there is no such agent.
        """
        return read_log(self._dir / str(aid), offset, limit)

    async def _connect(self, shim: Shim, directory: Path) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            with _address(directory) as address:
                sock.connect(address)
            await asyncio.get_running_loop().create_unix_connection(lambda: shim, sock=sock)
        except BaseException:
            sock.close()
            raise

    def _launch(self, aid: int, directory: Path, spec: Spec) -> subprocess.Popen[bytes]:
        order = _order(aid, spec)
        public = {**order, "env": sorted(spec.env)}  # values may be secret: they go by memory
        (directory / "spec.json").write_bytes(msgspec.json.encode(public))
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            with _address(directory) as address:
                listener.bind(address)
            listener.listen(8)
            flags = os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_WRONLY
            notes = _closing(stack, os.open(directory / "shim.err", flags, 0o600))
            memory = _closing(stack, os.memfd_create("aios-spec"))
            os.write(memory, msgspec.json.encode(order))
            os.lseek(memory, 0, os.SEEK_SET)
            fds = [listener.fileno(), memory]
            if spec.credential:
                secret, secret_end = (_closing(stack, fd) for fd in os.pipe())
                os.write(secret_end, spec.credential)
                fds.append(secret)
            numbers = [str(fd) for fd in (*fds, -1)[:3]]
            keep = {"LD_LIBRARY_PATH"} & os.environ.keys()  # a Python that needs it to start
            return subprocess.Popen(
                [self._python, "-I", "-S", shim_program.__file__, str(aid), *numbers],
                cwd=directory,
                env={name: os.environ[name] for name in keep} | {"AIOS_AID": str(aid)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=notes,
                pass_fds=fds,
                start_new_session=True,
            )


def _order(aid: int, spec: Spec) -> dict[str, object]:
    """The spec as the shim reads it: without the credential."""
    order = {name: getattr(spec, name) for name in spec.__struct_fields__}
    del order["credential"]
    order["env"] = {**spec.env, "AIOS_AID": str(aid)}
    return order


def _closing(stack: contextlib.ExitStack, fd: int) -> int:
    stack.callback(os.close, fd)
    return fd


@contextlib.contextmanager
def _address(directory: Path) -> Iterator[str]:
    """The address of shim.sock, by way of a descriptor where the path is too long for one."""
    path = str(directory / "shim.sock")
    if len(os.fsencode(path)) <= SUN_PATH_MAX:
        yield path
        return
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}/shim.sock"
    finally:
        os.close(fd)


def read_record(directory: Path) -> ExitRecord | None:
    """The record of an agent's end, None while there is none."""
    try:
        return msgspec.json.decode((directory / "exit.json").read_bytes(), type=ExitRecord)
    except (OSError, msgspec.DecodeError):
        return None


def _stored_pid(directory: Path) -> int:
    try:
        return int((directory / "shim.pid").read_text())
    except (OSError, ValueError):
        return 0


def _last_note(directory: Path) -> str:
    try:
        return (directory / "shim.err").read_text(errors="replace").splitlines()[-1]
    except (OSError, IndexError):
        return "it was killed"


def sweep(directory: Path, shim_pid: int, aid: int, *, sure: bool) -> None:
    """Kill what a killed shim left: the members of its cgroup and of its session.

    Unless it is `sure` that the number is that of the shim, only processes with the agent's
    AIOS_AID in their environment are hit.
    """
    with contextlib.suppress(OSError, msgspec.DecodeError, KeyError):
        spec = msgspec.json.decode((directory / "spec.json").read_bytes(), type=dict[str, object])
        if parent := spec["cgroup"]:
            cgroup = Cgroup(str(parent), str(aid))
            cgroup.kill()
            cgroup.remove()
    kill_session(shim_pid, b"" if sure else f"AIOS_AID={aid}".encode())
