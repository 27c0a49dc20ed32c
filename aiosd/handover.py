"""Files of a call that go to a model's host and back: it sees no agent's workspace.

    given = lend(tool, arguments, workspace, folder)    # copies, and the arguments that name them
    names = take_back(tool, folder, names, workspace, room)

Both sides of it are written by others while the kernel looks, so no link is followed on either,
nothing but regular files is read, and nothing is written over but by a name in the directory that
it belongs to. Everything here blocks, bounded by `MOST` bytes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterable, Iterator
from typing import Any, Final

from aiosd.artefact import open_beneath
from aiosd.declaration import Declaration

MOST: Final = 64 << 20
"""Bytes of the files of one call, each way."""
CHUNK: Final = 1 << 20


def lend(
    tool: Declaration, arguments: dict[str, Any], workspace: str, folder: str
) -> dict[str, Any]:
    """Copy the files that the arguments name, and return the arguments with the copies' names.

    Raises OSError(EINVAL) that names the argument and says what is wrong with its file.
    """
    os.mkdir(folder, 0o700)
    given, left, taken = dict(arguments), [MOST], set[str]()
    for field in tool.files:
        named = given.get(field)
        if isinstance(named, str) and named:
            given[field] = _lent(tool, field, named, workspace, folder, left, taken)
        elif isinstance(named, list):
            given[field] = [
                _lent(tool, field, str(each), workspace, folder, left, taken) for each in named
            ]
    return given


def _lent(
    tool: Declaration,
    field: str,
    name: str,
    workspace: str,
    folder: str,
    left: list[int],
    taken: set[str],
) -> str:
    """Copy one file; its name stays, unless another one has it."""
    short = os.path.basename(name)
    called = short if short not in taken else f"{len(taken)}-{short}"
    taken.add(called)
    try:
        source = open_beneath(workspace, os.path.normpath(name) if name else name)
        try:
            with _new(folder, called) as fd:
                left[0] -= _copy(source, fd, left[0])
        finally:
            os.close(source)
    except OSError as error:
        reason = f"{field}: {error.strerror or error}"
        raise OSError(errno.EINVAL, f"tool {tool.name}: argument {reason}") from None
    return called


def take_back(
    tool: Declaration, folder: str, names: Iterable[str], workspace: str, room: int
) -> list[str]:
    """Move the files that a host has left for a call into the caller's workspace.

    They are called as in the host, without directories. room: bytes that the workspace still
    holds. Raises OSError.
    """
    left, back = min(MOST, room), list[str]()
    for name in names:
        called = os.path.basename(name)
        try:
            left -= _moved(folder, name, workspace, called, left)
        except OSError as error:
            code = errno.EMSGSIZE if error.errno == errno.EFBIG else errno.EPROTO
            reason = f"its file {called[:200]}: {error.strerror}"
            raise OSError(code, f"tool {tool.name}: {reason}") from None
        back.append(called)
    return back


def _moved(folder: str, name: str, workspace: str, called: str, most: int) -> int:
    """Write a file under a name of its own, then give it the one that it is to have."""
    made = f".{secrets.token_hex(8)}"
    source, at = open_beneath(folder, name), _directory(workspace)
    try:
        with _new(workspace, made) as fd:
            count = _copy(source, fd, most)
        os.rename(made, called, src_dir_fd=at, dst_dir_fd=at)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(made, dir_fd=at)
        raise
    finally:
        os.close(source)
        os.close(at)
    return count


def _directory(folder: str) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


@contextlib.contextmanager
def _new(folder: str, name: str) -> Iterator[int]:
    """Open a file that was not there for writing; gives its descriptor."""
    at = _directory(folder)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=at)
    finally:
        os.close(at)
    try:
        yield fd
    finally:
        os.close(fd)


def _copy(source: int, target: int, most: int) -> int:
    """Copy a file; returns its bytes. Raises OSError(EFBIG) when they are more than `most`."""
    count = 0
    while data := os.read(source, CHUNK):
        count += len(data)
        if count > most:
            raise OSError(errno.EFBIG, f"more than the {MOST} bytes that one call's files may have")
        view = memoryview(data)
        while view:
            view = view[os.write(target, view) :]
    return count
