"""The shim: the small supervisor under which one spawned agent runs.

It is the parent and subreaper of the agent's process tree, and the keeper of its output and exit
status while no kernel lives. aiosd starts it, detached, in the agent's own directory, as

    python -I -S shim.py AID LISTENER SPEC CREDENTIAL

where the last three are inherited descriptors: the listening socket `shim.sock`, a file with the
JSON of what to run (environment included, so that it never lies on disk), and the pipe that holds
the agent's credential (-1: none). The shim never reads the credential; the agent finds it at
descriptor 3 and the number in AIOS_CREDENTIAL_FD.

Files in the directory: `log` and `log.1` (output, one JSON object a line, each file headed by the
logical offset at which it starts), `shim.pid`, `exit.json` (durable before the exit is reported).

Over the socket, one JSON object a line, one kernel at a time; a newer connection replaces an older.
  kernel > shim   signal {sig, tree}, kill_tree, ping, bye (only after the end was reported)
  shim > kernel   hello, then what holds already: started, and exit or exec_failed; log, pong

What must hold: no process of the tree outlives the agent's main process by more than the kill
timeout, nor the last kernel by more than the orphan timeout plus the kill timeout; when the shim
is killed, the agent is. The agent never waits for a kernel. One thread, one poll loop; it wakes
only for descriptors, signals and deadlines. Imports are few because every agent pays for them.

The shim leads a session and the agent a process group inside it. So the session belongs to this
agent alone, yet its group is not orphaned in the sense of POSIX (the shim is a parent outside the
group and in the same session), and SIGTSTP stops it as under a shell.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable

if __name__ == "__main__":  # isolated: our own package is found, the standard library goes first
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from aiosd.launch import Order, launch
from aiosd.output import NEVER, Log, Stream, encode, note
from aiosd.proctree import (
    PR_SET_CHILD_SUBREAPER,
    Cgroup,
    Stat,
    kill_group,
    kill_tree,
    prctl,
    signal_tree,
)
from aiosd.shimlink import Link, may_connect

READ = 65536  # bytes of output taken at once
TELL_EVERY = 0.05  # seconds between two log events
RETRY_KILL = 0.5  # seconds until a tree that still lives is killed again


class Shim:
    """The loop. One agent: starting > running > ending (tree told to end) > ended (recorded)."""

    def __init__(self, aid: str, listener: socket.socket, order: Order) -> None:
        self.aid = aid
        self.order = order
        self.listener = listener
        self.log = Log(order.log_limit)
        self.silent_size = self.log.size
        self.cgroup = Cgroup(order.cgroup, aid)
        if order.cgroup and not self.cgroup.path:
            note(f"no cgroup below {order.cgroup}: the tree is found through /proc")
        self.link: Link | None = None
        self.streams: dict[int, Stream] = {}
        self.pid = 0
        self.start_ticks = 0
        self.status_fd = -1
        self.forked = 0.0
        self.started = 0.0  # the same, once the program was executed
        self.failure: tuple[int, str] | None = None  # of exec: errno, message
        self.wait_status: int | None = None  # of the main process, once reaped
        self.ended = 0.0
        self.cpu_s = 0.0
        self.max_rss = 0  # KiB
        self.reason = ""  # why the end was ordered from outside
        self.terminate = False
        self.killing = False
        self.record: dict[str, object] | None = None
        self.final = False  # leave once the end is recorded, without a kernel's bye
        self.leave = False
        self.kill_at = NEVER
        self.orphan_at = time.monotonic() + self.order.orphan_timeout
        self.tell_at = NEVER
        self.told_at = 0.0
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[int], object]] = {}

    def start(self, credential: int) -> None:
        """Fork the agent and watch everything that can happen."""
        wake, wake_end = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(wake_end, False)
        signal.set_wakeup_fd(wake_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(sig, self._told_to_end)
        self._watch(wake, lambda _: self._signalled(wake))
        self._watch(self.listener.fileno(), lambda _: self._accept())
        self.forked = time.time()
        try:
            self.pid, out, err, self.status_fd = launch(self.order, self.cgroup, credential)
        except OSError as error:
            self.failure = (error.errno or 0, f"cannot start a process: {error.strerror}")
            self.ended = self.forked
            self._conclude()
            return
        self.start_ticks = Stat(self.pid).start
        for name, fd in (("out", out), ("err", err)):
            os.set_blocking(fd, False)
            self.streams[fd] = Stream(name)
            self._watch(fd, lambda _, fd=fd: self._copy(fd))  # type: ignore[misc]
        self._watch(self.status_fd, lambda _: self._executed())

    def run(self) -> None:
        """Serve until the end has been taken note of, or no kernel comes for it."""
        while not self.leave:
            now = time.monotonic()
            deadline = min(
                self.kill_at,
                self.orphan_at,
                self.tell_at,
                *(stream.flush_at for stream in self.streams.values()),
            )
            timeout = None if deadline == NEVER else max(0, math.ceil((deadline - now) * 1000))
            for fd, events in self._poll.poll(timeout):
                if handler := self._handlers.get(fd):
                    handler(events)
            self._meet_deadlines(time.monotonic())

    def abandon(self) -> None:
        """After an error of our own: leave no process and no doubt about the end."""
        self.cgroup.kill()
        while not self._reap_all():
            kill_tree(os.getpid())
            time.sleep(0.01)
        self.reason = self.reason or "shim_failed"
        if self.record is None:
            self._conclude()

    def _watch(self, fd: int, handler: Callable[[int], object]) -> None:
        self._handlers[fd] = handler
        self._poll.register(fd, select.POLLIN)

    def _unwatch(self, fd: int) -> None:
        del self._handlers[fd]
        self._poll.unregister(fd)

    def _meet_deadlines(self, now: float) -> None:
        for stream in self.streams.values():
            if stream.flush_at <= now:
                self._log(stream, stream.flush())
        if self.tell_at <= now:
            self.tell_at, self.told_at = NEVER, now
            self._send({"ev": "log", "size": self.log.size})
        if self.orphan_at <= now:
            self.orphan_at = NEVER
            self._order_end("orphaned")
        if self.kill_at <= now:
            self._kill()

    # the agent's life

    def _executed(self) -> None:
        """The child reported: the program runs, or could not be executed."""
        report = os.read(self.status_fd, 4096)
        self._unwatch(self.status_fd)
        os.close(self.status_fd)
        self.status_fd = -1
        if report:
            code, _, message = report.decode(errors="replace").partition(" ")
            self.failure = (int(code), message)
        else:
            self.started = self.forked
            self._send({"ev": "started", "pid": self.pid, "started": self.started})

    def _told_to_end(self, *_: object) -> None:
        """Signal handler: the loop wakes through the descriptor and does the work."""
        self.terminate = True

    def _signalled(self, wake: int) -> None:
        """A signal came: collect the dead, and conclude when none lives any more."""
        with contextlib.suppress(BlockingIOError):
            os.read(wake, 4096)
        if self.terminate:
            self._order_end("terminated")
        before = self.wait_status
        if self._reap_all():
            if self.record is None:
                self._conclude()
        elif self.killing:
            self._kill()  # what the dead left behind has become our child
        elif before is None and self.wait_status is not None and self.kill_at == NEVER:
            self._end_tree()

    def _reap_all(self) -> bool:
        """Collect the dead; True when no child of any kind is left."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            self.cpu_s += usage.ru_utime + usage.ru_stime
            self.max_rss = max(self.max_rss, usage.ru_maxrss)
            if pid == self.pid and self.wait_status is None:
                self.ended = time.time()
                self.wait_status = status
                if self.status_fd >= 0:
                    self._executed()

    def _order_end(self, reason: str) -> None:
        """End the tree for a reason from outside; or leave at once when it has ended already."""
        if self.record is not None:
            self.leave = True
            return
        self.final = True
        if self.kill_at == NEVER:  # otherwise it is ending already
            self.reason = reason
            self._end_tree()

    def _end_tree(self) -> None:
        """Ask the whole tree to end. What is stopped has to wake to hear it."""
        self.kill_at = time.monotonic() + self.order.kill_timeout
        signal_tree(os.getpid(), signal.SIGTERM, signal.SIGCONT)

    def _kill(self) -> None:
        self.killing = True
        self.kill_at = time.monotonic() + RETRY_KILL
        self.cgroup.kill()
        # The group's number stays ours while it has members; without any, it could be the pid of
        # another process by now.
        if self.wait_status is None or not os.path.exists(f"/proc/{self.pid}"):
            kill_group(self.pid)
        kill_tree(os.getpid())

    def _conclude(self) -> None:
        """No process is left: take the last output, record the end durably, report it."""
        self.kill_at = NEVER
        for fd in list(self.streams):
            while fd in self.streams and self._copy(fd):
                pass
        for stream in self.streams.values():  # an end of the pipe lives outside the tree
            self._log(stream, stream.feed(b"", 0.0))
        self.cgroup.remove()
        self.record = self._end_record()
        try:
            write_durably("exit.json", encode(self.record).encode())
        except OSError as error:
            note(f"exit.json not written: {error}")
        self._send_end()
        self.leave = self.final

    def _end_record(self) -> dict[str, object]:
        status = 0 if self.wait_status is None else self.wait_status
        signalled = os.WIFSIGNALED(status)
        failed = self.failure is not None
        code, message = self.failure or (None, None)
        return {
            "aid": self.aid,
            "pid": self.pid,
            "started": self.started or None,
            "code": None if signalled or failed else os.WEXITSTATUS(status),
            "signal": os.WTERMSIG(status) if signalled else None,
            "errno": code,
            "message": message,
            "reason": "exec_failed" if failed else self.reason or "exited",
            "ended": self.ended,
            "cpu_s": round(self.cpu_s, 6),
            "max_rss": self.max_rss * 1024,
            "log_size": self.log.size,
        }

    # its output

    def _copy(self, fd: int) -> bool:
        """Move output from a pipe into the log; True when there may be more."""
        stream = self.streams[fd]
        try:
            data = os.read(fd, READ)
        except BlockingIOError:
            return False
        self._log(stream, stream.feed(data, time.monotonic()))
        if not data:
            self._unwatch(fd)
            os.close(fd)
            del self.streams[fd]
        return bool(data)

    def _log(self, stream: Stream, pieces: list[str]) -> None:
        if pieces:
            self.log.append(stream.name, pieces)
            if self.tell_at == NEVER and self.link:
                self.tell_at = self.told_at + TELL_EVERY

    # the kernel

    def _accept(self) -> None:
        try:
            sock = self.listener.accept()[0]
        except OSError:
            return
        if not may_connect(sock):
            sock.close()
            return
        self._disconnect()
        self.link = Link(sock)
        if not self.leave:
            self.orphan_at = NEVER
        self._watch(sock.fileno(), self._serve)
        self._send(
            {
                "ev": "hello",
                "shim_pid": os.getpid(),
                "pid": self.pid,
                "start_ticks": self.start_ticks,
                "size": self.log.size,
            }
        )
        if self.started:
            self._send({"ev": "started", "pid": self.pid, "started": self.started})
        if self.log.size > self.silent_size:
            self.tell_at = 0.0  # there may never be more: tell at once
        if self.record is not None:
            self._send_end()

    def _disconnect(self) -> None:
        if self.link is not None:
            self._unwatch(self.link.sock.fileno())
            self.link.sock.close()
            self.link = None
            self.tell_at = NEVER
            self.orphan_at = time.monotonic() + self.order.orphan_timeout

    def _serve(self, events: int) -> None:
        """The connection is ready: read what came, send what waits."""
        try:
            if self.link and events & ~select.POLLOUT:
                for message in self.link.receive():
                    self._obey(message)
            if self.link:
                self.link.flush()
                self._adjust()
        except ConnectionError as error:
            note(f"connection closed: {error}")
            self._disconnect()

    def _send(self, event: dict[str, object]) -> None:
        if self.link is not None:
            try:
                self.link.send(event)
                self._adjust()
            except OSError:
                self._disconnect()

    def _send_end(self) -> None:
        assert self.record is not None
        kind = "exec_failed" if self.record["errno"] is not None else "exit"
        self._send({"ev": kind, **self.record})

    def _adjust(self) -> None:
        """Wait for room in the socket only while something waits to be sent."""
        if self.link is not None:
            wanted = select.POLLIN | (select.POLLOUT if self.link.sending else 0)
            self._poll.modify(self.link.sock.fileno(), wanted)

    def _obey(self, message: dict[str, object]) -> None:
        match message:
            case {"op": "ping"}:
                self._send({"ev": "pong"})
            case {"op": "signal", "sig": int(sig), "tree": bool(tree)} if 0 < sig <= 64:
                self._signal(sig, tree)
            case {"op": "kill_tree"}:
                if self.record is None:
                    self.reason = self.reason or "killed"
                    self._kill()
            case {"op": "bye"} if self.record is not None:
                self.leave = True
            case _:
                raise ConnectionAbortedError(f"not an operation: {encode(message)[:200]}")

    def _signal(self, sig: int, tree: bool) -> None:
        """Signal the agent's group, or the tree; also once only descendants are left of it."""
        if self.record is not None:
            return
        if tree or self.wait_status is not None:
            signal_tree(os.getpid(), sig)
            return
        try:
            os.killpg(self.pid, sig)
        except OSError as error:
            note(f"signal {sig} not sent: {error}")


def write_durably(name: str, data: bytes) -> None:
    """Replace a file in the working directory so that it survives a crash whole or not at all."""
    fd = os.open(f"{name}.tmp", os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(f"{name}.tmp", name)
    directory = os.open(".", os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def main() -> int:
    """Run one agent to its end; the exit status says only whether the shim itself worked."""
    aid = sys.argv[1]
    listener = socket.socket(fileno=int(sys.argv[2]))
    credential = int(sys.argv[4])
    for fd in (listener.fileno(), credential):
        if fd >= 0:
            os.set_inheritable(fd, False)
    listener.setblocking(False)
    with open(int(sys.argv[3]), "rb") as file:
        order = Order(**json.load(file))
    if os.getsid(0) != os.getpid():
        os.setsid()
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    with open("shim.pid", "w") as pid_file:
        pid_file.write(f"{os.getpid()}\n")
    shim = Shim(aid, listener, order)
    try:
        shim.start(credential)
        shim.run()
    except BaseException:
        shim.abandon()
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
