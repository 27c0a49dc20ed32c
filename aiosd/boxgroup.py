"""Control groups of boxes: memory, processes and CPU time of a whole tree, where they can be had.

    group = create(Limits(memory=..., processes=...))     # None: this machine gives us none
    group.descriptors        # of each cgroup.procs: a process that writes "0" there is inside
    group.remove()           # once its members have ended

Version 2 where the kernel's own group was delegated to it, else the hierarchies of version 1
beside the kernel's own groups. A group's name carries the pid of its kernel, so that the next one
can clear away what a killed one left.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import signal
from typing import Final

import msgspec

ROOT: Final = "/sys/fs/cgroup"
PREFIX: Final = "aios-box-"
WANTED: Final = ("memory", "pids", "cpu")
SHARE: Final = 512
"""CPU shares of a box (version 1; the usual is 1024): tools come after the kernel and its cores."""
WEIGHT: Final = 50
"""The same in version 2 (the usual is 100)."""

SWEEPS: Final = 20
"""Looks at the members of a group that is killed one by one."""
SUBGROUP: Final = "kernel"
"""The group below the delegated one in which our units put the kernel (DelegateSubgroup)."""

_numbers = itertools.count(1)


class Limits(msgspec.Struct, frozen=True):
    """What all processes of a box together may have: bytes of memory, processes and threads."""

    memory: int
    processes: int


class Place(msgspec.Struct, frozen=True):
    """Where groups can be made. Each parent directory with the controllers that count there."""

    parents: tuple[tuple[str, tuple[str, ...]], ...]
    version: int
    why: str = ""

    @property
    def controllers(self) -> frozenset[str]:
        """What can be limited."""
        return frozenset(name for _, names in self.parents for name in names)


class Group:
    """The groups of one box, one per hierarchy."""

    def __init__(self, directories: list[str]) -> None:
        self._directories = directories
        self.descriptors = [
            os.open(f"{path}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC) for path in directories
        ]

    def close(self) -> None:
        """Close the descriptors: the members are in."""
        for fd in self.descriptors:
            os.close(fd)
        self.descriptors = []

    def kill(self) -> None:
        """Kill all members: at once where Linux knows how, else until none is left to be seen."""
        for path in self._directories[:1]:
            try:
                _write(f"{path}/cgroup.kill", "1")
            except OSError:  # version 1, or a Linux before 5.14
                for _ in range(SWEEPS):
                    if not _kill_members(path):
                        return

    def remove(self) -> bool:
        """Remove it; false while members are still ending."""
        left = []
        for path in self._directories:
            try:
                os.rmdir(path)
            except FileNotFoundError:
                pass
            except OSError:
                left.append(path)
        self._directories = left
        return not left


def create(limits: Limits) -> Group | None:
    """Make a group with these limits; None where there is no place for one.

    Raises OSError when the place refuses what it gave before.
    """
    where = place()
    if not where.parents:
        return None
    name = f"{PREFIX}{os.getpid()}-{next(_numbers)}"
    made: list[str] = []
    try:
        for parent, controllers in where.parents:
            path = f"{parent}/{name}"
            os.mkdir(path, 0o755)
            made.append(path)
            for file, value in _settings(where.version, controllers, limits):
                _write(f"{path}/{file}", value)
        return Group(made)
    except OSError:
        for path in made:
            os.rmdir(path)
        raise


@functools.cache
def place() -> Place:
    """Find, once, where this kernel can make groups, and clear away what dead kernels left."""
    found = _delegated()
    if not {"memory", "pids"} <= found.controllers:
        older = _hierarchies()
        found = older if len(older.controllers) > len(found.controllers) else found
    for parent, _ in found.parents:
        _sweep(parent)
    return found


def _settings(version: int, controllers: tuple[str, ...], limits: Limits) -> list[tuple[str, str]]:
    """Return the files to write, in order, and what."""
    memory, processes = str(limits.memory), str(limits.processes)
    if version == 1:
        files = {
            "memory": [("memory.limit_in_bytes", memory)],
            "pids": [("pids.max", processes)],
            "cpu": [("cpu.shares", str(SHARE))],
        }
    else:
        files = {
            "memory": [("memory.max", memory), ("memory.oom.group", "1")],
            "pids": [("pids.max", processes)],
            "cpu": [("cpu.weight", str(WEIGHT))],
        }
    return [line for name in controllers for line in files[name]]


def _own() -> dict[str, str]:
    """Return the kernel's own group in each hierarchy, by controllers ("" is version 2's)."""
    with open("/proc/self/cgroup", encoding="ascii") as file:
        lines = (line.rstrip("\n").split(":", 2) for line in file)
        return {controllers: path for _, controllers, path in lines}


def _delegated() -> Place:
    """Look for a version 2 group of ours whose children can be limited."""
    path = _own().get("")
    for mount in (ROOT, f"{ROOT}/unified"):
        if path is None or not os.path.exists(f"{mount}/cgroup.controllers"):
            continue
        own = f"{mount}{path}".rstrip("/")
        above = os.path.dirname(own) if os.path.basename(own) == SUBGROUP else own
        for parent in {own: 0, above: 0}:
            controllers = _enable(parent) if parent.startswith(f"{mount}/") else ()
            if controllers:
                return Place(((parent, controllers),), 2)
    return Place((), 2, "the kernel's cgroup is not delegated to it")


def _enable(parent: str) -> tuple[str, ...]:
    """Hand the wanted controllers down to children; return those that they get."""
    if not os.access(f"{parent}/cgroup.procs", os.W_OK):
        return ()
    for name in WANTED:
        with contextlib.suppress(OSError):  # busy: processes sit in it; unknown: not given to us
            _write(f"{parent}/cgroup.subtree_control", f"+{name}")
    try:
        with open(f"{parent}/cgroup.subtree_control", encoding="ascii") as file:
            given = file.read().split()
    except OSError:
        return ()
    return tuple(name for name in WANTED if name in given)


def _hierarchies() -> Place:
    """Look for version 1 hierarchies in which we may make groups beside our own."""
    parents = []
    for names, path in _own().items():
        mount = f"{ROOT}/{names}"
        wanted = tuple(name for name in names.split(",") if name in WANTED)
        if not wanted or not os.path.isdir(mount):
            continue
        parent = f"{mount}{path}".rstrip("/")
        if os.access(parent, os.W_OK):
            parents.append((parent, wanted))
    return Place(tuple(parents), 1, "" if parents else "no cgroup here may be written")


def _sweep(parent: str) -> None:
    """Remove the groups of kernels that are gone."""
    with contextlib.suppress(OSError):
        for name in os.listdir(parent):
            pid = name.removeprefix(PREFIX).partition("-")[0]
            if name.startswith(PREFIX) and pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
                with contextlib.suppress(OSError):
                    os.rmdir(f"{parent}/{name}")


def _kill_members(path: str) -> bool:
    """Send SIGKILL to each member; false when there is none."""
    try:
        with open(f"{path}/cgroup.procs", encoding="ascii") as file:
            members = [int(pid) for pid in file.read().split()]
    except OSError:
        return False
    for pid in members:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    return bool(members)


def _write(path: str, value: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)
