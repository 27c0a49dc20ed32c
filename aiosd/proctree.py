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
    """What /proc says of a process: parent, group, session, state, start in ticks since boot."""

    __slots__ = ("group", "parent", "session", "start", "state")

    def __init__(self, pid: int) -> None:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
        self.state = fields[0].decode()
        self.parent = int(fields[1])
        self.group = int(fields[2])
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


def descendants(root: int) -> dict[int, Stat]:
    """The processes below `root`, by pid."""
    table = processes()
    children: dict[int, list[int]] = {}
    for pid, stat in table.items():
        children.setdefault(stat.parent, []).append(pid)
    found: dict[int, Stat] = {}
    waiting = [root]
    while waiting:
        for pid in children.get(waiting.pop(), ()):
            if pid not in found:
                found[pid] = table[pid]
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
    for pid, stat in descendants(root).items():
        for sig in sigs:
            send_signal(pid, stat.start, sig)


def kill_tree(root: int) -> None:
    """Kill every process below `root`, which leads a session of its own.

    Whole groups first: that is atomic, so not even a process that forks and ends faster than we
    can look gets away. Then what is left, stopped before it is killed so that it cannot fork.
    """
    frozen: dict[int, int] = {}
    while True:
        fresh = {p: s for p, s in descendants(root).items() if frozen.get(p) != s.start}
        if not fresh:
            break
        for group in {stat.group for stat in fresh.values()}:
            kill_group(group)
        for pid, stat in fresh.items():
            send_signal(pid, stat.start, signal.SIGSTOP)
            frozen[pid] = stat.start
    for pid, start in frozen.items():
        send_signal(pid, start, signal.SIGKILL)


def kill_group(group: int) -> None:
    """Kill all members of a process group, if there are any; never our own group."""
    try:
        if group not in (0, os.getpgrp()):
            os.killpg(group, signal.SIGKILL)
    except OSError:
        pass


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
