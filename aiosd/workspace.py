"""Files of a workspace: what its agent, or person, puts there for tools, and what it reads back.

    files = WorkspaceFiles(spaces, watch)
    dispatcher.bind(files)                  # put_file, get_file

What must hold: a name never leads out of the workspace, whatever tools have left there: every
directory on its way is opened from the one before, and no link is followed; nothing but a regular
file is opened; a workspace holds no more than it may; what was answered is on disk, and a name has
its old file or the whole new one, whatever the kernel dies of; nothing blocks the event loop.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, Final
from weakref import WeakValueDictionary

from aiosd.abi.tools import FilePart, GetFile, PutFile, WorkspaceFile
from aiosd.access import Caller
from aiosd.toolfiles import Workspaces
from aiosd.toolwatch import Watch

DEPTH: Final = 16
"""Directories that a name may have."""
BLOCK: Final = 4096
"""Bytes that a workspace's limit counts a file, or a directory, in."""
FRESH: Final = ".put"
"""The name of a new file before it has its own, in its directory; of a dead kernel's too."""
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_SAID: Final = {
    errno.ENOENT: "there is no such file",
    errno.ELOOP: "it is a link, or behind one, and links are not followed",
    errno.ENOTDIR: "a file, or a link, stands where a directory should",
    errno.EISDIR: "it is a directory",
    errno.ENXIO: "it is no regular file",
    errno.ENOSPC: "the disk of the state directory is full",
}


class WorkspaceFiles:
    """Puts files into the callers' workspaces and reads them. watch: knows how full they are."""

    def __init__(self, spaces: Workspaces, watch: Watch) -> None:
        self._spaces = spaces
        self._watch = watch
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def sys_put_file(self, caller: Caller, args: PutFile) -> WorkspaceFile:
        """Write a file, or go on with one; in turn in a workspace, so that its limit holds."""
        way = _way(args.name, "put_file")
        subject = caller.subject
        lock = self._locks.setdefault(subject, asyncio.Lock())
        async with lock:
            folder = self._spaces.of(subject)
            room, _ = await self._watch.room(subject, folder)
            work = asyncio.ensure_future(asyncio.to_thread(_put, folder, way, args, room))
            work.add_done_callback(lambda done: done.cancelled() or done.exception())
            try:
                size = await asyncio.shield(work)
            finally:  # a thread that has begun goes on, whoever waits, and the next one comes after
                await asyncio.wait({work})
                self._watch.written(subject)
        return WorkspaceFile(args.name, size, folder)

    async def sys_get_file(self, caller: Caller, args: GetFile) -> FilePart:
        """Read a part of a file."""
        way = _way(args.name, "get_file")
        return await asyncio.to_thread(_get, self._spaces.of(caller.subject), way, args)


def _way(name: str, call: str) -> list[str]:
    """Return the parts of a name. Raises OSError(EINVAL) for one that isn't relative and plain."""
    parts = name.split("/")
    if "\0" in name or any(part in ("", ".", "..", FRESH) for part in parts):
        raise OSError(
            errno.EINVAL,
            f"{call}: name {name[:80]!r}: give a path inside the workspace, such as notes/a.txt, "
            f"without '.', '..', {FRESH!r} or an empty part",
        )
    if len(parts) > DEPTH:
        raise OSError(errno.EINVAL, f"{call}: name: {len(parts)} parts, at most {DEPTH} can be")
    return parts


def _put(folder: str, way: list[str], args: PutFile, room: int) -> int:
    """Write the data; return how large the file is now. Blocks."""
    with _told("put_file", args.name), _directory(folder, way[:-1], room) as at:
        if args.offset:
            return _extend(at, way[-1], args, room)
        _check_room(args, room + _held(at, way[-1]) + _held(at, FRESH))
        _replace(at, way[-1], args.data)
        return len(args.data)


def _replace(at: int, name: str, data: bytes) -> None:
    """Give a new file the name, in place of what has it."""
    with suppress(FileNotFoundError):
        os.unlink(FRESH, dir_fd=at)
    fd = os.open(FRESH, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE, 0o644, dir_fd=at)
    try:
        with open(fd, "wb") as file:
            _write(file, data)
        os.replace(FRESH, name, src_dir_fd=at, dst_dir_fd=at)
    except BaseException:
        os.unlink(FRESH, dir_fd=at)
        raise
    os.fsync(at)


def _write(file: BinaryIO, data: bytes) -> None:
    """Write data so that it is on disk."""
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _extend(at: int, name: str, args: PutFile, room: int) -> int:
    """Let a file go on with the data from the offset on, whatever stood there."""
    with open(_open(at, name, os.O_WRONLY), "wb") as file:
        size = os.fstat(file.fileno()).st_size
        if args.offset > size:
            raise OSError(
                errno.EINVAL,
                f"put_file: {args.name}: offset {args.offset}: the file has {size} bytes only; "
                "put what comes before first",
            )
        _check_room(args, room + size - args.offset)
        file.truncate(args.offset)
        file.seek(args.offset)
        _write(file, args.data)
    return args.offset + len(args.data)


def _get(folder: str, way: list[str], args: GetFile) -> FilePart:
    """Read a part. Blocks."""
    with (
        _told("get_file", args.name),
        _directory(folder, way[:-1]) as at,
        open(_open(at, way[-1], os.O_RDONLY), "rb") as file,
    ):
        size = os.fstat(file.fileno()).st_size
        file.seek(args.offset)
        return FilePart(file.read(args.size), size)


def _open(at: int, name: str, how: int) -> int:
    """Open a regular file; anything else (a FIFO, a device) is refused and never waited for."""
    fd = os.open(name, how | _FILE, dir_fd=at)
    kind = os.fstat(fd).st_mode
    if not stat.S_ISREG(kind):
        os.close(fd)
        raise OSError(errno.EISDIR if stat.S_ISDIR(kind) else errno.ENXIO, "")
    return fd


@contextmanager
def _directory(folder: str, way: list[str], room: int | None = None) -> Iterator[int]:
    """Give the directory at the end of a way, made where there is none and there is room."""
    at = os.open(folder, _DIRECTORY)
    try:
        for part in way:
            if room is not None and not _is_there(at, part):
                if room < BLOCK:
                    raise OSError(errno.EDQUOT, "")
                os.mkdir(part, 0o755, dir_fd=at)
                os.fsync(at)
            below = os.open(part, _DIRECTORY, dir_fd=at)
            os.close(at)
            at = below
        yield at
    finally:
        os.close(at)


def _is_there(at: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=at, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _held(at: int, name: str) -> int:
    """Return the bytes that are free again when what has a name is replaced."""
    try:
        found = os.stat(name, dir_fd=at, follow_symlinks=False)
    except FileNotFoundError:
        return 0
    return found.st_blocks * 512 if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 else 0


def _check_room(args: PutFile, room: int) -> None:
    if -(-len(args.data) // BLOCK) * BLOCK > room:
        raise OSError(
            errno.EDQUOT,
            f"put_file: {args.name}: {len(args.data)} bytes, the workspace takes {max(0, room)} "
            "more ([tools] workspace_limit); remove files from it, or have the limit raised",
        )


@contextmanager
def _told(call: str, name: str) -> Iterator[None]:
    """Have what the system says name the call, the file and the cause."""
    try:
        yield
    except OSError as error:
        text = error.strerror or ""
        if text.startswith(f"{call}: "):
            raise
        if error.errno == errno.EDQUOT:
            why = "the workspace, or its disk, takes no more ([tools] workspace_limit)"
        else:
            why = _SAID.get(error.errno or 0, text)
        raise OSError(error.errno, f"{call}: {name[:80]}: {why}") from None
