"""Reading the output that an agent's shim keeps in `log` and `log.1`: pure file reading.

Offsets are logical: bytes ever written, across rotations. Each file's first line names the offset
at which the file starts, so a reader needs nothing from the shim, living or not.
"""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path
from typing import BinaryIO

import msgspec

READ_MAX = 1 << 20  # bytes of log given out by one call


class LogRecord(msgspec.Struct, frozen=True):
    """A piece of output: Unix time, "out" or "err", and text, ending in a newline unless cut."""

    time: float = msgspec.field(name="t")
    stream: str = msgspec.field(name="s")
    text: str = msgspec.field(name="d")


class _Head(msgspec.Struct, frozen=True):
    base: int


def read_log(directory: Path, offset: int, limit: int) -> tuple[int, list[LogRecord]]:
    """Read at most `limit` records, and at most about 1 MiB, from a logical offset.

    Returns the offset to go on from, and the records. An offset whose output was rotated away goes
    on at the oldest that is kept. FileNotFoundError when there is no such agent, EINVAL for an
    offset that is neither 0 nor one returned before.
    """
    if not directory.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no output is kept of this agent", str(directory))
    records: list[LogRecord] = []
    start = offset
    with contextlib.ExitStack() as stack:
        for base, file in _files(directory, stack):
            head = file.tell()
            file.seek(max(offset - base, head))
            while len(records) < limit and offset - start < READ_MAX:
                line = file.readline()
                if not line.endswith(b"\n"):
                    break  # the end, or a record that is being written
                records.append(_record(line, offset))
                offset = base + file.tell()
    return offset, records


def _record(line: bytes, offset: int) -> LogRecord:
    try:
        return msgspec.json.decode(line, type=LogRecord)
    except msgspec.DecodeError:
        why = f"offset {offset} is not the start of a record: use 0 or one that was returned"
        raise OSError(errno.EINVAL, why) from None


def _files(directory: Path, stack: contextlib.ExitStack) -> list[tuple[int, BinaryIO]]:
    """The log's files, oldest first, each with its offset and read up to the end of its head."""
    found: dict[int, BinaryIO] = {}
    # Newest first: a rotation in between shows one file twice rather than not at all.
    for name in ("log", "log.1"):
        with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
            file = stack.enter_context((directory / name).open("rb"))
            found[msgspec.json.decode(file.readline(), type=_Head).base] = file
    return sorted(found.items(), key=lambda entry: entry[0])
