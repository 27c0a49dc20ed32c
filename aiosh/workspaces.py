"""Files for tools: copied to the directory in which the caller's tools work."""

from __future__ import annotations

import os
from pathlib import Path

from aiosh import link


def put(file: Path, workspace: str) -> None:
    """Copy a file to a workspace, under its own name, in place of what has it there.

    A tool may have left anything in that place; a link is replaced and not followed. Raises
    link.Failure.
    """
    try:
        data = file.read_bytes()
        at = os.open(workspace, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise link.Failure(f"{error.filename}: {error.strerror}") from None
    try:
        _replace(data, file.name, at)
    except OSError as error:
        raise link.Failure(f"{workspace}/{file.name}: {error.strerror}") from None
    finally:
        os.close(at)


def _replace(data: bytes, name: str, at: int) -> None:
    """Write a new file and give it the name. at: descriptor of the directory."""
    fresh = f".put-{os.getpid()}"
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=at)
    try:
        with open(fd, "wb") as copy:
            copy.write(data)
        os.replace(fresh, name, src_dir_fd=at, dst_dir_fd=at)
    except BaseException:
        os.unlink(fresh, dir_fd=at)
        raise
