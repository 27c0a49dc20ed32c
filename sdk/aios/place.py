"""Where the kernel listens, and which agent this process is.

`socket_path` finds the socket as aiosd itself does. `Inherited` holds the credential that a
spawned process was given: it is read once from the descriptor that AIOS_CREDENTIAL_FD names, the
descriptor is closed and the variable removed, so that no child process inherits either.
"""

from __future__ import annotations

import os
import threading
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Final

SOCKET: Final = "AIOS_SOCKET"
RUNTIME_DIR: Final = "AIOS_RUNTIME_DIR"
TEMPORARY: Final = "/tmp"
CREDENTIAL_FD: Final = "AIOS_CREDENTIAL_FD"
LONGEST: Final = 128
"""Bytes in a credential; more than that on the descriptor is not one."""


def socket_path(given: str | os.PathLike[str] | None = None) -> str:
    """Return the socket to connect to: the one given, AIOS_SOCKET's, else the first that exists.

    Where none exists it is the one at which this user's own kernel would listen.
    """
    if given is not None:
        return os.fspath(given)
    named = os.environ.get(SOCKET, "")
    if named:
        return named
    paths = [f"{directory}/aiosd.sock" for directory in candidates()]
    return next((path for path in paths if _usable(path)), paths[0])


def candidates() -> list[str]:
    """Return the directories in which a kernel may listen, the user's own first, as aiosd does."""
    named = os.environ.get(RUNTIME_DIR, "")
    if named:
        return [named]
    user = os.getuid()
    temporary = f"{TEMPORARY}/aios-{user}"
    usual = f"/run/user/{user}"
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    own = given or (usual if os.path.isdir(usual) else "")
    first = f"{own}/aios" if own else temporary
    return list(dict.fromkeys([first, f"{usual}/aios", "/run/aios", temporary]))


def _usable(path: str) -> bool:
    """Whether there is a socket that we may trust: in /tmp, anybody could have made one."""
    directory = os.path.dirname(path)
    with suppress(OSError):
        exposed = os.path.dirname(directory) == TEMPORARY
        return os.path.exists(path) and not (exposed and os.stat(directory).st_uid != os.getuid())
    return False


class Inherited:
    """The credential that this process got from the kernel that started it; safe among threads.

    The first `hello` uses it up and is answered with the one that replaces it: `replace` keeps
    that for the next connection of this process.
    """

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        self._environ = environ
        self._lock = threading.Lock()
        self._credential = ""

    def take(self) -> str:
        """Return the credential, empty when there is none.

        Raises OSError when AIOS_CREDENTIAL_FD names a descriptor that can't be read.
        """
        with self._lock:
            number = self._environ.pop(CREDENTIAL_FD, "")
            if number:
                self._credential = _read(number)
            return self._credential

    def replace(self, old: str, new: str) -> None:
        """Keep the credential that took the place of `old`."""
        with self._lock:
            if old == self._credential:
                self._credential = new


def _read(number: str) -> str:
    """Read a credential from a descriptor and close it."""
    try:
        fd = int(number)
        data = os.read(fd, LONGEST + 1)
    except (ValueError, OSError) as error:
        raise OSError(
            getattr(error, "errno", None) or 9,
            f"{CREDENTIAL_FD}={number}: not a readable descriptor; "
            "unset it to connect without the agent's identity",
        ) from error
    os.close(fd)
    return data[:LONGEST].decode("ascii", "replace").strip()


inherited: Final = Inherited()
