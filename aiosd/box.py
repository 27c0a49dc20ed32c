"""What a box is asked for, and what a machine says of the layers that make one."""

from __future__ import annotations

from typing import Final

import msgspec

ALL: Final = frozenset({"namespaces", "cgroup", "rlimits", "landlock", "seccomp"})
"""Every layer. no_new_privs is none of them: it is always on."""


class Box(msgspec.Struct, frozen=True, kw_only=True):
    """What to run, and all that it may touch.

    argv: the program; one that begins with this Python and -m costs one start of Python, not two.
    workspace: a directory, /workspace for the tool and its working directory. read, write: host
    paths that it sees at the same place. hidden: host paths that stay invisible whatever read and
    write say. network: hosts as in `toolproxy`; without any there is no network. python:
    directories that its Python imports from. memory, file_bytes (of one file) and tmp_bytes (of
    /tmp) are bytes; processes counts threads too; cpu_s is seconds per process. nice: below the
    kernel.
    """

    argv: tuple[str, ...]
    env: dict[str, str] = {}
    workspace: str
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    network: tuple[str, ...] = ()
    python: tuple[str, ...] = ()
    memory: int = 512 << 20
    processes: int = 64
    cpu_s: int = 60
    file_bytes: int = 64 << 20
    tmp_bytes: int = 64 << 20
    open_files: int = 256
    nice: int = 5
    layers: frozenset[str] = ALL


class LayerReport(msgspec.Struct, frozen=True, kw_only=True):
    """What this machine says of a layer: what stands in for it or why it is missing, the cure."""

    layer: str
    available: bool
    reason: str
    cure: str = ""
