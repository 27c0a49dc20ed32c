"""A tree of processes: what is below a process, signalling and killing all of it.

Used by the shim, which as a subreaper has every process that its agent leaves behind below itself,
and by the kernel for what a killed shim left. Part of the shim: standard library only.
A process is named by pid and start time together, so that a pid given anew is never hit.
"""

from __future__ import annotations

import ctypes
import os
import signal

PR_SET_CHILD_SUBREAPER = 36
SWEEPS = 20  # passes until what got SIGKILL must be gone

_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int) -> None:
    """Set a process attribute; raise OSError where the system refuses."""
    zero = ctypes.c_ulong(0)
    if _libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class Stat:
    """What /proc says of a process: its parent, session, and start in clock ticks since boot."""

    __slots__ = ("parent", "session", "start", "state")

    def __init__(self, pid: int) -> None:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
        self.state = fields[0].decode()
        self.parent = int(fields[1])
        self.session = int(fields[3])
        self.start = int(fields[19])


def processes() -> dict[int, Stat]:
    """Every process that /proc shows now."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                found[int(name)] = Stat(int(name))
            except (OSError, IndexError):
                continue  # gone between the listing and the reading
    return found


def descendants(root: int) -> dict[int, int]:
    """The processes below `root`, by pid, with their start in clock ticks."""
    table = processes()
    children: dict[int, list[int]] = {}
    for pid, stat in table.items():
        children.setdefault(stat.parent, []).append(pid)
    found: dict[int, int] = {}
    waiting = [root]
    while waiting:
        for pid in children.get(waiting.pop(), ()):
            if pid not in found:
                found[pid] = table[pid].start
                waiting.append(pid)
    return found


def send_signal(pid: int, start: int, sig: int) -> None:
    """Signal the process that had this pid and start time; nothing when it is gone."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if Stat(pid).start == start:  # the pid was not given to another meanwhile
            signal.pidfd_send_signal(handle, sig)
    except OSError:
        pass
    finally:
        os.close(handle)


def signal_tree(root: int, *sigs: int) -> None:
    """Send the signals, in order, to every process below `root`."""
    for pid, start in descendants(root).items():
        for sig in sigs:
            send_signal(pid, start, sig)


def kill_tree(root: int) -> None:
    """Kill every process below `root`: stop them all first, so that none can fork away."""
    frozen: dict[int, int] = {}
    while fresh := {p: s for p, s in descendants(root).items() if frozen.get(p) != s}:
        for pid, start in fresh.items():
            send_signal(pid, start, signal.SIGSTOP)
        frozen.update(fresh)
    for pid, start in frozen.items():
        send_signal(pid, start, signal.SIGKILL)


def kill_session(session: int, marker: bytes = b"") -> None:
    """Kill every process of a session; with a marker, only those that have it in their environment.

    For what a killed leader left: while a member lives, its session's number is not given anew.
    """
    if session <= 0:
        return  # the kernel's own threads have session 0
    for _ in range(SWEEPS):
        found = {
            pid: stat.start
            for pid, stat in processes().items()
            if stat.session == session and stat.state not in "ZX" and _has(pid, marker)
        }
        for sig in (signal.SIGSTOP, signal.SIGKILL):
            for pid, start in found.items():
                send_signal(pid, start, sig)
        if not found:
            return


def _has(pid: int, marker: bytes) -> bool:
    if not marker:
        return True
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return marker in file.read().split(b"\0")
    except OSError:
        return False


class Cgroup:
    """The agent's own cgroup v2 directory, where the system lets us have one."""

    def __init__(self, parent: str | None, aid: str) -> None:
        self.path = f"{parent}/agent-{aid}" if parent else ""
        try:
            if self.path:
                os.makedirs(self.path, exist_ok=True)
                os.stat(f"{self.path}/cgroup.procs")
        except OSError:
            self.path = ""

    def enter(self) -> None:
        """Move the calling process in; without the right to do so it stays where it is."""
        self._write("cgroup.procs", b"0")

    def kill(self) -> None:
        """Kill all members at once, where the kernel knows how (Linux 5.14)."""
        self._write("cgroup.kill", b"1")

    def remove(self) -> None:
        """Remove the directory; it stays while it has members."""
        try:
            if self.path:
                os.rmdir(self.path)
        except OSError:
            pass

    def _write(self, name: str, data: bytes) -> None:
        if not self.path:
            return
        try:
            fd = os.open(f"{self.path}/{name}", os.O_WRONLY)
        except OSError:
            return
        try:
            os.write(fd, data)
        except OSError:
            pass  # the walk over /proc does the same work
        finally:
            os.close(fd)
