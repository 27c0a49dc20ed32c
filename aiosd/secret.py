"""The kernel's key for watermarks: 32 random bytes in the state directory, made once.

    key = secret.load(Path(state_dir))

What must hold: nobody but the daemon's user can read it (mode 0600); it never changes, or texts
that were marked with it could not be recognised any more. It goes to workers over their sockets
and is written nowhere else.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from aiosd.directory import sync_directory

NAME: Final = "watermark.key"
SIZE: Final = 32


def load(directory: Path) -> bytes:
    """Return the key, making it when there is none.

    Raises OSError: EBADMSG for a file that is no key, or the disk's own errors.
    """
    path = directory / NAME
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        return _make(path)
    if len(key) != SIZE:
        raise OSError(
            errno.EBADMSG,
            f"{path}: a watermark key has {SIZE} bytes, this file {len(key)}; restore it, "
            "or remove it to begin with a new key",
        )
    return key


def _make(path: Path) -> bytes:
    """Write a new key so that it is there whole or not at all."""
    key = os.urandom(SIZE)
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, key)
        os.fsync(fd)
    finally:
        os.close(fd)
    fresh.rename(path)
    sync_directory(path.parent)
    return key
