"""A directory on the disk: what was made, renamed or removed in it stays so after a crash."""

from __future__ import annotations

import os


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Bring a directory's entries onto the disk, as fsync(2) says that a new file needs it too.

    Blocks. Raises OSError.
    """
    file = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
