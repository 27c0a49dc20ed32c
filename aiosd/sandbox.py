"""Boxes: a tool's process without any right that its declaration does not name.

    boxed = start(Box(argv=..., workspace=..., memory=..., ...), fds={3: theirs}, stdout=pipe)
    await boxed.ready()              # OSError: the box could not be built, and nothing has run
    status = await boxed.exited      # 0..255, 128+n when signal n ended it
    boxed.terminate(); boxed.kill_tree()

The layers: namespaces (bubblewrap: the tool sees its workspace at /workspace, the system read-only,
its own processes, no network), then, put on inside by `confine`: a cgroup, limits, Landlock and
seccomp. What each of them stops is in aios-tools(7).

What must hold: a tool runs behind every layer that its box asks for, or not at all (`check` says
why and what to do). A box ends with its kernel, and whole: when `exited` is set no process of it
is left. Everything here runs on the event loop's thread; starting costs the kernel about 2 ms.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import functools
import marshal
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Final

from aiosd import boxgroup, boxview, confine, hosts, landlock, proctree, seccomp
from aiosd.box import ALL, Box, LayerReport
from aiosd.layers import CURES, NAMESPACES, NEEDED, doctor, known
from aiosd.toolproxy import Proxy

__all__ = ["ALL", "Box", "Boxed", "LayerReport", "check", "doctor", "known", "start"]

LOW_FDS: Final = 100
"""Descriptors of the kernel's for `confine` have numbers from here on, those of tools below."""
CHILD: Final = re.compile(rb'\A\{[^}]*"child-pid": (\d+)[^}]*\}\s*')
"""What bubblewrap tells: the first process in the box, as the kernel sees it."""
BUILD_S: Final = 20.0
"""Seconds that a box may take to be built."""
GUARD_S: Final = 2.0
"""Seconds in which a guard ends when its tool has been killed."""
SLACK: Final = 1 << 30
"""Bytes of address space above `memory`, where no cgroup counts what is really used."""
LEAVING_S: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""When to look again whether a cgroup is empty: killed processes take a moment to go."""


def check(box: Box) -> None:
    """Raise OSError when this machine can't enforce what a box asks for, or it asks nonsense.

    ENOTSUP names the layer, the reason and the cure; ENOENT and EACCES a path; EINVAL a field.
    """
    if not box.argv or unknown(box.layers):
        what = unknown(box.layers)
        text = f"layers: there is no {what}" if what else "argv is empty: name a program"
        raise OSError(errno.EINVAL, text)
    if not os.path.isdir(box.workspace):
        raise OSError(errno.ENOENT, f"workspace: {box.workspace} is no directory")
    for host in box.network:
        hosts.parse(host)
    boxview.check(box.read + box.write, box.hidden)
    for report in doctor():
        if report.layer in box.layers and report.layer in NEEDED and not report.available:
            raise OSError(
                errno.ENOTSUP,
                f"this machine can't give the layer {report.layer} ({report.reason});"
                f" {report.cure}, or let an operator declare the tool with less isolation",
            )
    if "cgroup" in box.layers and os.geteuid() == 0 and "pids" not in _controllers():
        raise OSError(
            errno.ENOTSUP,
            "this machine can't limit a tool's processes: the kernel runs as root, whom no limit"
            f" binds, and has no cgroup with pids ({boxgroup.place().why}); {CURES['cgroup']}, or"
            " run it as an ordinary user",
        )


def unknown(layers: frozenset[str]) -> str:
    """Return the names that are no layer, as a text."""
    return ", ".join(sorted(layers - ALL))


def start(
    box: Box,
    *,
    fds: Mapping[int, int] | None = None,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
) -> Boxed:
    """Start a box. From the main thread, on the event loop.

    fds: descriptors of ours that the tool gets, by the number it gets them at (3 to 99). stdin,
    stdout and stderr: descriptors, /dev/null where none is given. The caller keeps its own copies
    and closes them. Raises OSError as `check` does, and where no process can be made.
    """
    check(box)
    if any(not 3 <= number < LOW_FDS for number in fds or ()):
        raise OSError(errno.EINVAL, f"fds: a tool's are numbered 3 to {LOW_FDS - 1}")
    with _Making(box) as making:
        order = making.order({number: making.lend(fd) for number, fd in (fds or {}).items()})
        process = subprocess.Popen(
            making.command(order),
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=subprocess.DEVNULL if stdout is None else stdout,
            stderr=subprocess.DEVNULL if stderr is None else stderr,
            env={},
            cwd="/",
            pass_fds=making.lent,
            start_new_session=True,
        )
        return Boxed(process, making)


class _Making:
    """A box while it is made: its group, its descriptors, its order.

    What the child inherits is closed here at the end; what the kernel goes on with is closed when
    the box could not be started, and else belongs to the Boxed that takes it.
    """

    def __init__(self, box: Box) -> None:
        self.box = box
        self.lent: list[int] = []
        self.group: boxgroup.Group | None = None
        self.control: socket.socket | None = None
        self.report, self._report_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._lifeline_end, self.lifeline = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def __enter__(self) -> _Making:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        for fd in (*self.lent, self._report_end, self._lifeline_end):
            os.close(fd)
        if failed is None:
            return
        os.close(self.report)
        os.close(self.lifeline)
        if self.control is not None:
            self.control.close()
        if self.group is not None:
            self.group.close()
            self.group.remove()

    def lend(self, fd: int) -> int:
        """Give the child a copy of a descriptor, above every number that the tool gets."""
        copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, LOW_FDS)
        self.lent.append(copy)
        return copy

    def order(self, places: dict[int, int]) -> int:
        """Write what `confine` does, for it to read from the descriptor that is returned."""
        box = self.box
        inside = "namespaces" in box.layers
        order = {
            "argv": list(box.argv),
            "module": box.argv[:2] == (sys.executable, "-m") and len(box.argv) > 2,
            "env": environment(box),
            "path": [*boxview.imports(), *box.python],
            "cwd": boxview.WORKSPACE if inside else box.workspace,
            "fds": places,
            "report": self.lend(self._report_end),
            "lifeline": self.lend(self._lifeline_end),
            "control": self._offer_proxy(),
            "cgroups": self._enter_group(),
            "nice": box.nice,
            "leash": not inside,
            "tree": b"" if inside else _code(proctree),
            "limits": _limits(box) if "rlimits" in box.layers else [],
            "landlock": _rules(box) if "landlock" in box.layers else None,
            "seccomp": seccomp.build(bool(box.network)) if "seccomp" in box.layers else b"",
        }
        return self._file("order", _code(confine) + marshal.dumps(order))

    def command(self, order: int) -> list[str]:
        """Return what to execute."""
        flags = ["-I"] if self.box.argv[0] == sys.executable else ["-I", "-S"]
        inner = [sys.executable, *flags, "-c", confine.START, str(order)]
        if "namespaces" not in self.box.layers:
            return inner
        made = {path: self._file("made", data) for path, data in boxview.MADE.items()}
        told = ["--info-fd", str(self.lend(self._report_end))]
        arguments = [*NAMESPACES, *told, *boxview.mounts(self.box, made)]
        return [boxview.bubblewrap(), *arguments, "--", *inner]

    def _file(self, name: str, data: bytes) -> int:
        """Lend a file in memory that holds `data`."""
        with open(os.memfd_create(name), "w+b") as file:
            file.write(data)
            file.seek(0)
            return self.lend(file.fileno())

    def _offer_proxy(self) -> int:
        """Lend the socket over which the box hands out its proxy's port; -1 without a network."""
        if not self.box.network:
            return -1
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            return self.lend(theirs.fileno())

    def _enter_group(self) -> list[int]:
        if "cgroup" not in self.box.layers:
            return []
        limits = boxgroup.Limits(self.box.memory, self.box.processes)
        self.group = boxgroup.create(limits)
        return [self.lend(fd) for fd in self.group.descriptors] if self.group is not None else []


@functools.cache
def _code(module: ModuleType) -> bytes:
    """Return a module of ours, compiled."""
    path = str(module.__file__)
    with open(path, encoding="utf-8") as file:
        return marshal.dumps(compile(file.read(), path, "exec"))


def environment(box: Box) -> dict[str, str]:
    """Return a box's environment: nothing of the kernel's."""
    inside = "namespaces" in box.layers
    home = "/tmp" if inside else box.workspace
    path = [os.path.dirname(sys.executable), "/usr/local/bin", "/usr/bin", "/bin"]
    usual = {"PATH": ":".join(path), "HOME": home, "TMPDIR": home, "LANG": "C.UTF-8"}
    return {**usual, "PYTHONDONTWRITEBYTECODE": "1", **box.env}


def _limits(box: Box) -> list[tuple[int, int, int]]:
    """Return (kind, soft, hard) of each limit per process."""
    counted = "cgroup" in box.layers and "memory" in _controllers()
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: box.file_bytes,
        resource.RLIMIT_NOFILE: max(box.open_files, LOW_FDS),
        resource.RLIMIT_DATA: box.memory * (2 if counted else 1),
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_MEMLOCK: 1 << 16,
    }
    if "namespaces" in box.layers:  # elsewhere it counts every process of the user's
        limits[resource.RLIMIT_NPROC] = box.processes + 2  # bubblewrap has one inside as well
    if not counted:
        limits[resource.RLIMIT_AS] = box.memory + SLACK
    pairs = [(kind, value, value) for kind, value in limits.items()]
    return [*pairs, (resource.RLIMIT_CPU, box.cpu_s, box.cpu_s + 1)]


def _rules(box: Box) -> landlock.Rules:
    return landlock.rules(boxview.readable(box), boxview.writable(box), boxview.DEVICES)


def _controllers() -> frozenset[str]:
    return boxgroup.place().controllers


class Boxed:
    """A running box. exited: its status, once no process of it is left."""

    def __init__(self, process: subprocess.Popen[bytes], making: _Making) -> None:
        self._loop = asyncio.get_running_loop()
        self._process = process
        self._namespaces = "namespaces" in making.box.layers
        self._group = making.group
        self._report, self._lifeline, self._control = making.report, making.lifeline, making.control
        self._proxy: Proxy | None = None
        self.error: OSError | None = None
        self._hosts = making.box.network
        self._heard = b""
        self._init = -1  # a pidfd of the first process of its namespace
        self._doomed = False
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._ready.add_done_callback(lambda future: future.cancelled() or future.exception())
        self.pid = process.pid
        self.pidfd = os.pidfd_open(process.pid)
        self.exited: asyncio.Future[int] = self._loop.create_future()
        self._late = self._loop.call_later(BUILD_S, self._give_up)
        self._loop.add_reader(self._report, self._hear)
        self._loop.add_reader(self.pidfd, self._reap)
        if self._control is not None:
            self._loop.add_reader(self._control, self._connect)

    async def ready(self) -> None:
        """Return when the program runs. Raises OSError when it could not be run so confined."""
        await asyncio.shield(self._ready)

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return not self.exited.done()

    def terminate(self) -> None:
        """Ask every process of the tool to end (SIGTERM); before it runs, end the box."""
        if not self.running:
            return
        self._hear()
        if not self._ready.done() and self._heard != b"+":
            self.kill_tree()
            return
        proctree.signal_tree(self.pid, signal.SIGTERM)

    def kill_tree(self) -> None:
        """Kill every process of the tool, at once."""
        if not self.running:
            return
        self._hear()
        self._doomed = True
        if self._init >= 0:
            # The first process of its namespace: Linux ends the others with it, and bubblewrap,
            # its parent, when all are gone.
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._init, signal.SIGKILL)
        elif not self._ready.done():
            # The box is being built: `confine` sees this and ends it. Killed at once, bubblewrap
            # could leave a child that waits for it for ever.
            self._cut()
            self._loop.call_later(2.0, self._signal, signal.SIGKILL)
        else:
            proctree.kill_tree(self.pid)
            if self._namespaces:
                self._signal(signal.SIGKILL)
            else:  # its guard sees that, ends whoever comes up still, and then itself
                self._loop.call_later(GUARD_S, self._kill_guard)
        if self._group is not None:
            self._group.kill()

    # Inside.

    def _signal(self, number: int) -> None:
        if self.running:  # reaped it may be: then this says so
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)

    def _kill_guard(self) -> None:
        """It has not ended after all: it may have been stopped by its tool."""
        if self.running:
            proctree.kill_tree(self.pid)
            self._signal(signal.SIGKILL)

    def _cut(self) -> None:
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

    def _hear(self) -> None:
        """Take in what bubblewrap and `confine` report, as far as it has come."""
        while self._report >= 0:
            try:
                data = os.read(self._report, 4096)
            except BlockingIOError:
                return
            self._heard += data
            if self._init < 0 and (found := CHILD.search(self._heard)):
                self._heard = self._heard[found.end() :]
                with contextlib.suppress(ProcessLookupError):
                    self._init = os.pidfd_open(int(found[1]))
                if self._doomed:
                    self.kill_tree()
            if not data:
                self._loop.remove_reader(self._report)
                os.close(self._report)
                self._report = -1
                if self._heard == b"+":
                    self._started()
                else:
                    self._settle()

    def _started(self) -> None:
        self._late.cancel()
        self._cut()
        if self._group is not None:
            self._group.close()
        self._ready.set_result(None)
        if self._doomed:
            self.kill_tree()

    def _connect(self) -> None:
        """Receive the listening socket of the box's own network namespace, and serve it."""
        control, self._control = self._control, None
        assert control is not None
        self._loop.remove_reader(control)
        with control:
            _, given, _, _ = socket.recv_fds(control, 16, 1)
        if given:
            self._proxy = Proxy(self._hosts, socket.socket(fileno=given[0]))

    def _give_up(self) -> None:
        """The box was not built in time."""
        self._fail(OSError(errno.ETIMEDOUT, f"the box was not built within {BUILD_S:g} s"))
        self._signal(signal.SIGKILL)

    def _fail(self, error: OSError) -> None:
        self._cut()
        if not self._ready.done():
            self._ready.set_exception(error)

    def _settle(self) -> None:
        """Make the report an error."""
        code, _, text = self._heard.lstrip(b"+").decode(errors="replace").partition(" ")
        if code.isdigit():
            self.error = OSError(int(code), text)
            self._fail(self.error)

    def _reap(self) -> None:
        """Bubblewrap has ended, or without namespaces the program. The rest may still be ending."""
        self._loop.remove_reader(self.pidfd)
        self._status = self._process.wait()
        self._hear()
        self._settle()
        self._fail(
            OSError(errno.EIO, f"the box could not be built (bubblewrap: status {self._status})")
        )
        self._late.cancel()
        if not self._namespaces:
            proctree.kill_session(self.pid)
        if self._init >= 0:
            self._loop.add_reader(self._init, self._clear)
        else:
            self._clear()

    def _clear(self, tries: int = 0) -> None:
        """Its first process has ended, and with it its namespace. See that nobody is left."""
        if self._init >= 0:
            self._loop.remove_reader(self._init)
            os.close(self._init)
            self._init = -1
        if self._group is not None:
            self._group.close()
            self._group.kill()
            if not self._group.remove() and tries < len(LEAVING_S):
                self._loop.call_later(LEAVING_S[tries], self._clear, tries + 1)
                return
        self._end()

    def _end(self) -> None:
        os.close(self.pidfd)
        if self._control is not None:
            self._loop.remove_reader(self._control)
            self._control.close()
        if self._proxy is not None:
            self._proxy.close()
        status = self._status
        self.exited.set_result(status if status >= 0 else 128 - status)
