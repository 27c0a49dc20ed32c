"""Snapshot files seen from the kernel: copied, synced, found again, set aside. Runs in threads.

What must hold: a copy appears under its name only when all of it is on disk; a file that is in the
way of nothing is never deleted unread: what is damaged is moved to `damaged`, which keeps the
newest few.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, TypeVar

from aiosd.cores.buffers import STORED
from aiosd.cores.sequence import Sequence
from aiosd.directory import sync_directory
from aiosd.engine import runs
from aiosd.engine.snapshot import POOLED, Layout, read_layout
from aiosd.killpoint import reach

T = TypeVar("T")

TEMPORARY: Final = ".tmp"
DAMAGED: Final = "damaged"
KEPT: Final = 4  # damaged files that are kept in each directory, the newest
LOOK: Final = 16  # tokens by which contexts that begin alike are told from others

log = logging.getLogger(__name__)


def copy(source: str, target: str, size: int) -> None:
    """Copy the first `size` bytes; target appears when all is on disk. Raises OSError."""
    temporary = target + TEMPORARY
    try:
        _copy(source, temporary, size)
        reach("snapshot.synced")
        os.rename(temporary, target)
        reach("snapshot.renamed")
        sync_directory(os.path.dirname(target))
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _copy(source: str, target: str, size: int) -> None:
    with open(source, "rb") as read, open(target, "xb", opener=_private) as write:
        os.posix_fallocate(write.fileno(), 0, size)  # a full disk is known before it is written
        reach("snapshot.begun")
        at = 0
        while at < size:
            sent = os.sendfile(write.fileno(), read.fileno(), at, size - at)
            if not sent:
                raise OSError(errno.ESTALE, f"{source} is cut short: {at} of {size} bytes")
            at += sent
        reach("snapshot.copied")
        os.fsync(write.fileno())


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def sync(path: str) -> None:
    """Bring a file that a worker wrote onto the disk; one that is torn later shows that itself."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        sync_directory(os.path.dirname(path))
    except FileNotFoundError:
        pass  # it has been given up since
    except OSError as error:
        log.warning("%s is not on disk for certain: %s", path, error)


def remove(paths: Iterable[str]) -> None:
    """Delete files; what can't be deleted is said in the log."""
    for path in paths:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("%s can't be deleted: %s", path, error)


def set_aside(path: str) -> None:
    """Move a file to the directory of damaged ones beside it; the oldest there give way."""
    place = Path(path).parent / DAMAGED
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        os.utime(path)
        os.replace(path, place / Path(path).name)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("damaged snapshot %s can't be set aside, it is deleted: %s", path, error)
        remove([path])
    with contextlib.suppress(OSError):
        aged = sorted(place.iterdir(), key=lambda p: p.stat().st_mtime)
        remove(str(p) for p in aged[:-KEPT])


def survey(paths: Iterable[str], named: set[str]) -> dict[str, Layout]:
    """Return the headers of those that are snapshot files; what was not finished is deleted.

    named: files that are set aside instead.
    """
    found: dict[str, Layout] = {}
    for path in paths:
        _look(path, path in named, found)
    return found


def _look(path: str, named: bool, found: dict[str, Layout]) -> None:
    if path.endswith(TEMPORARY):
        remove([path])
    elif path.endswith((STORED, POOLED)):
        try:
            found[path] = read_layout(path)
        except OSError as error:
            if named:
                log.warning("%s", error.strerror)
                set_aside(path)
            else:
                remove([path])  # a buffer that was free, or whose writer was killed


Match = list[tuple[Sequence, int]]  # sequences, and positions that they have in common with a file


def matches(
    found: dict[str, Layout],
    sequences: dict[int, Sequence],
    grid: Callable[[Sequence], int],
    named: set[str],
) -> list[tuple[str, Match]]:
    """Say which files hold KV of which sequences: of each tier the longest, and those with a name.

    A file is its context's by its header; a context without one may share another's, as forks do.
    """
    users: dict[str, Match] = {}
    for tier in (POOLED, STORED):
        mine: dict[int, list[tuple[int, str]]] = {}
        alike: dict[tuple[int, ...], list[str]] = {}
        for path, layout in found.items():
            if not path.endswith(tier):
                continue
            record = layout.header.record
            if (own := sequences.get(record.cid)) is not None:
                kv = shared(layout, own, grid(own))
                if path in named:
                    users[path] = [(own, kv)]
                    continue
                mine.setdefault(own.cid, []).append((kv, path))
            if path not in named:
                alike.setdefault(tuple(record.tokens[:LOOK]), []).append(path)
        for sequence in sequences.values():
            fits = [fit for fit in mine.get(sequence.cid, []) if fit[0]]
            if not fits and sequence.kv:
                others = alike.get(tuple(sequence.tokens[:LOOK]), [])
                fits = [(shared(found[p], sequence, grid(sequence)), p) for p in others]
            kv, path = max(fits, default=(0, ""))
            if kv:
                users.setdefault(path, []).append((sequence, kv))
    return list(users.items())


def shared(layout: Layout, sequence: Sequence, grid: int) -> int:
    """How many positions of a file are a sequence's own, as they are on record."""
    record = layout.header.record
    same = min(runs.common(record.runs, sequence.history, grid), sequence.kv, len(record.tokens))
    if record.tokens[:same] == sequence.tokens[:same]:
        return same
    return 0
