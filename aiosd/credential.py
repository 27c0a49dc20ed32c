"""Credentials for servers that the kernel uses: from its environment, systemd, or a file of ours.

    password = credential.load("AIOS_POSTGRES_PASSWORD", "aios-postgres-password", path, os.environ)

What must hold: a file that others could read, or that is not a plain file of ours, is refused; what
is in it is in no message.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Mapping
from typing import Final

MOST: Final = 64 << 10


def load(variable: str, name: str, path: str, environ: Mapping[str, str]) -> str:
    """Return a credential, stripped: of the variable, of systemd by its name, or in the file.

    path: "" for none. Returns "" where there is none at all. Raises PermissionError for a file that
    is not ours alone, and the disk's errors.
    """
    if text := environ.get(variable, ""):
        return text.strip()
    if directory := environ.get("CREDENTIALS_DIRECTORY", ""):
        with (
            contextlib.suppress(FileNotFoundError),
            open(os.path.join(directory, name), encoding="utf-8") as file,
        ):
            return file.read(MOST).strip()
    return _read(path).strip() if path else ""


def _read(path: str) -> str:
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise PermissionError(
                errno.EPERM, "a file of credentials must be ours alone: plain, mode 0600", path
            )
        return os.read(file, MOST).decode("utf-8", "replace")
    finally:
        os.close(file)
