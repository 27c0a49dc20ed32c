"""Files in an agent's own workspace: read, write, list.

The sandbox shows a tool little else anyway. Here a path is walked one name at a time from the
workspace down, without following symbolic links, so that no `..`, no link and no exchange of a
directory for a link meanwhile leads out of it. Only regular files are opened: a pipe would hold the
call up, a device might do anything.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import contextlib
import errno
import fnmatch
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Annotated, Final, Literal

import msgspec

from aios.tools import BadArguments, Meta, tool

MOST_BYTES: Final = 1 << 20
MOST_ENTRIES: Final = 1000
MOST_SEEN: Final = 20_000
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY

FilePath = Annotated[str, Meta(min_length=1, max_length=4096, description="path in the workspace")]
Encoding = Annotated[
    Literal["text", "base64"], Meta(description="text is UTF-8; base64 for anything else")
]


class Piece(msgspec.Struct):
    """A part of a file. size: bytes of the whole. next: where to read on; None at its end."""

    content: str
    size: int
    next: int | None


class Written(msgspec.Struct):
    """A file that was written. size: its bytes now."""

    path: str
    size: int


class Entry(msgspec.Struct):
    """What is in a directory. modified: seconds since 1970."""

    path: str
    kind: Literal["file", "directory", "link", "other"]
    size: int
    modified: float


class Listing(msgspec.Struct):
    """Entries by path. complete: there are no more."""

    entries: list[Entry]
    complete: bool


@tool(idempotent=True)
def file_read(
    path: FilePath,
    offset: Annotated[int, Meta(ge=0, description="byte to begin at")] = 0,
    limit: Annotated[int, Meta(ge=1, le=MOST_BYTES, description="most bytes to read")] = 65_536,
    encoding: Encoding = "text",
) -> Piece:
    """Read a file of the workspace, or a part of it."""
    with _parent(path, make=False) as (folder, name), _opened(folder, name, path) as fd:
        size = os.fstat(fd).st_size
        data = os.pread(fd, limit, offset)
    end = offset + len(data)
    if encoding == "base64":
        content = base64.b64encode(data).decode()
    else:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        content = decoder.decode(data, final=end >= size or not data)
        pending = len(decoder.getstate()[0])  # the beginning of a character that the limit cut
        end -= pending if pending < len(data) else 0
    return Piece(content, size, end if data and end < size else None)


@tool
def file_write(
    path: FilePath,
    content: Annotated[str, Meta(max_length=2 * MOST_BYTES)],
    encoding: Encoding = "text",
    append: bool = False,
) -> Written:
    """Write a file of the workspace; directories that are missing are made.

    append: add to the file's end instead of replacing it, which happens all at once
    """
    data = _bytes(content, encoding)
    with _parent(path, make=True) as (folder, name):
        if append:
            size = _append(folder, name, path, data)
        else:
            size = _replace(folder, name, path, data)
    return Written(path, size)


@tool(idempotent=True)
def file_list(
    path: Annotated[str, Meta(max_length=4096)] = ".",
    pattern: Annotated[str, Meta(min_length=1, max_length=200)] = "*",
    recursive: bool = False,
) -> Listing:
    """List a directory of the workspace.

    pattern: only names that match it, such as "*.txt"
    recursive: directories below it as well
    """
    with _directory(_parts(path, empty=True), path, make=False) as folder:
        prefix = "/".join(_parts(path, empty=True))
        found = _Walk(pattern, recursive)
        found.look(folder, prefix + "/" if prefix else "")
    entries = sorted(found.entries, key=lambda entry: entry.path)
    return Listing(entries[:MOST_ENTRIES], found.complete and len(entries) <= MOST_ENTRIES)


class _Walk:
    """A bounded walk through directories."""

    def __init__(self, pattern: str, recursive: bool) -> None:
        self.entries: list[Entry] = []
        self.complete = True
        self._pattern = pattern
        self._recursive = recursive
        self._seen = 0

    def look(self, folder: int, prefix: str, depth: int = 0) -> None:
        """Take in the directory that `folder` is open on; prefix: its path, for its entries."""
        with os.scandir(folder) as entries:
            for entry in entries:
                self._seen += 1
                if self._seen > MOST_SEEN:
                    self.complete = False
                    return
                with contextlib.suppress(FileNotFoundError, UnicodeEncodeError):
                    self._take(entry, folder, prefix, depth)

    def _take(self, entry: os.DirEntry[str], folder: int, prefix: str, depth: int) -> None:
        entry.name.encode()  # a name that is no UTF-8 can't be said
        status = os.stat(entry.name, dir_fd=folder, follow_symlinks=False)
        if fnmatch.fnmatchcase(entry.name, self._pattern):
            kind = _kind(status.st_mode)
            row = Entry(prefix + entry.name, kind, status.st_size, status.st_mtime)
            self.entries.append(row)
        if self._recursive and stat.S_ISDIR(status.st_mode):
            if depth >= 32:
                self.complete = False
                return
            with _descend(folder, entry.name) as inner:
                self.look(inner, f"{prefix}{entry.name}/", depth + 1)


def _kind(mode: int) -> Literal["file", "directory", "link", "other"]:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    return "link" if stat.S_ISLNK(mode) else "other"


def _bytes(content: str, encoding: str) -> bytes:
    try:
        data = base64.b64decode(content, validate=True) if encoding == "base64" else None
    except binascii.Error as error:
        raise BadArguments(f"content is not base64: {error}") from None
    data = content.encode(errors="replace") if data is None else data
    if len(data) > MOST_BYTES:
        raise BadArguments(f"content has {len(data)} bytes, the limit is {MOST_BYTES}: append")
    return data


def _append(folder: int, name: str, path: str, data: bytes) -> int:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    with _opened(folder, name, path, flags) as fd:
        _write(fd, data)
        return os.fstat(fd).st_size


def _replace(folder: int, name: str, path: str, data: bytes) -> int:
    """Write beside a file, then put it in the file's place; a link there is replaced itself."""
    beside = f".{secrets.token_hex(8)}.part"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        with _opened(folder, beside, path, flags) as fd:
            _write(fd, data)
        os.replace(beside, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside, dir_fd=folder)
        if isinstance(error, IsADirectoryError):
            raise BadArguments(f"{path} is a directory") from None
        raise
    return len(data)


def _write(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def _parts(path: str, *, empty: bool = False) -> list[str]:
    """Take a path apart. Raises BadArguments for one that leads, or might lead, elsewhere."""
    if "\0" in path:
        raise BadArguments("path holds a NUL")
    pure = PurePosixPath(path)
    if pure.is_absolute() and pure.is_relative_to(os.getcwd()):
        pure = pure.relative_to(os.getcwd())
    if pure.is_absolute() or ".." in pure.parts:
        raise BadArguments(f"{path} is not in the workspace: name it relative to that, without ..")
    if not pure.parts and not empty:
        raise BadArguments(f"{path} is the workspace itself: name a file in it")
    return list(pure.parts)


@contextlib.contextmanager
def _parent(path: str, *, make: bool) -> Iterator[tuple[int, str]]:
    """Open the directory that a file is in; gives it with the file's name."""
    *folders, name = _parts(path)
    with _directory(folders, path, make=make) as folder:
        yield folder, name


@contextlib.contextmanager
def _directory(names: list[str], path: str, *, make: bool) -> Iterator[int]:
    with contextlib.ExitStack() as stack:
        folder = os.open(".", _FOLDER)
        stack.callback(os.close, folder)
        for name in names:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, dir_fd=folder)
            with _saying(path):
                folder = stack.enter_context(_descend(folder, name))
        yield folder


@contextlib.contextmanager
def _descend(folder: int, name: str) -> Iterator[int]:
    inner = os.open(name, _FOLDER, dir_fd=folder)
    try:
        yield inner
    finally:
        os.close(inner)


@contextlib.contextmanager
def _opened(folder: int, name: str, path: str, flags: int = os.O_RDONLY) -> Iterator[int]:
    """Open a regular file of a directory."""
    with _saying(path):
        fd = os.open(name, flags | _FILE, 0o666, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise BadArguments(f"{path} is not a regular file")
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _saying(path: str) -> Iterator[None]:
    """Turn the system's errors about a path into sentences."""
    try:
        yield
    except FileNotFoundError:
        raise BadArguments(f"there is no {path} in the workspace: file_list shows it") from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise BadArguments(f"{path} leads over a link or a file: name it itself") from None
        if error.errno in (errno.ENXIO, errno.EISDIR, errno.ENAMETOOLONG):
            raise BadArguments(f"{path} can't be opened: {error.strerror}") from None
        raise
