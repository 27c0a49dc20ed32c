"""Files that a tool has left in its workspace, opened by the kernel.

A tool may put anything there, and change it at any moment: a symbolic link to a file of the
kernel's, a FIFO that blocks whoever opens it, a directory that becomes a link between two looks.
So no link is followed on any step of a path, and nothing but a regular file is opened.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

DEPTH: Final = 32


def open_beneath(workspace: str, name: str) -> int:
    """Open a regular file of a workspace for reading; return its descriptor.

    name: relative to the workspace. Raises OSError: EINVAL for a name that leads out, ELOOP for one
    with a symbolic link in it, ENOENT, ENOTSUP for what is no regular file.
    """
    parts = name.split("/")
    if not name or len(parts) > DEPTH or any(part in ("", ".", "..") for part in parts):
        raise OSError(errno.EINVAL, f"{name!r} is no relative path without . and ..")
    at = os.open(workspace, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            inner = _open(part, os.O_DIRECTORY, at, name)
            os.close(at)
            at = inner
        fd = _open(parts[-1], os.O_NONBLOCK, at, name)
    finally:
        os.close(at)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.ENOTSUP, f"{name} is no regular file")
    return fd


def _open(part: str, flags: int, at: int, name: str) -> int:
    try:
        return os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, dir_fd=at)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise OSError(errno.ELOOP, f"{name}: a symbolic link is not followed") from None
        if error.errno == errno.ENXIO:  # a socket, or a FIFO
            raise OSError(errno.ENOTSUP, f"{name} is no regular file") from None
        raise OSError(error.errno, f"{name}: {error.strerror}") from None
