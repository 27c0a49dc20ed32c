"""Landlock, as far as the kernel's side goes: what this machine knows, and the rules of a box.

The rules are put on inside the box, by `confine`. A right that this Linux does not know is left
out of what is handled; `layers` says below which version it no longer counts as a layer.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Iterable
from typing import Final

CREATE_RULESET: Final = 444
VERSION: Final = 1  # the flag that asks for it

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << n for n in range(6))
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = (
    1 << n for n in range(6, 13)
)
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
BIND_TCP, CONNECT_TCP = 1, 2
SCOPE_ABSTRACT_UNIX, SCOPE_SIGNAL = 1, 2

# The versions that brought rights on files (13 at first, then one each), ports, and scopes.
FILES: Final = (1, 2, 3, 5)
PORTS: Final = 4
SCOPES: Final = 6

READ: Final = EXECUTE | READ_FILE | READ_DIR
DEVICE: Final = READ_FILE | READ_DIR | WRITE_FILE | IOCTL_DEV
WRITE: Final = (
    READ
    | WRITE_FILE
    | REMOVE_DIR
    | REMOVE_FILE
    | MAKE_DIR
    | MAKE_REG
    | MAKE_SOCK
    | MAKE_FIFO
    | MAKE_SYM
    | REFER
    | TRUNCATE
)

Rules = tuple[bytes, list[tuple[str, int]], bool]
"""struct landlock_ruleset_attr, what is allowed beneath which path, whether ports are handled."""


@functools.cache
def version() -> int:
    """Return the version of Landlock that this Linux speaks; 0 when it is off or missing."""
    libc = ctypes.CDLL(None, use_errno=True)
    return max(0, int(libc.syscall(CREATE_RULESET, None, 0, VERSION)))


def rules(read: Iterable[str], write: Iterable[str], devices: Iterable[str]) -> Rules:
    """Return what `confine` needs to allow these paths, as the box sees them, and nothing else."""
    known = version()
    files = (1 << sum(13 if since == 1 else 1 for since in FILES if known >= since)) - 1
    attributes = struct.pack("=Q", files)
    if known >= PORTS:
        attributes += struct.pack("=Q", BIND_TCP | CONNECT_TCP)
    if known >= SCOPES:
        attributes += struct.pack("=Q", SCOPE_ABSTRACT_UNIX | SCOPE_SIGNAL)
    allowed = [(path, READ & files) for path in read]
    allowed += [(path, WRITE & files) for path in write]
    allowed += [(path, DEVICE & files) for path in devices]
    return (
        attributes,
        allowed,
        known >= PORTS,
    )
