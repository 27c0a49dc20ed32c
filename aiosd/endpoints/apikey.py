"""Keys: where a provider's key is kept, and how it is read. Never logged, never sent back.

find("env:OPENAI_API_KEY")    # a variable of the daemon's environment
find("credential:openai")     # of systemd: LoadCredential=openai:/path, by $CREDENTIALS_DIRECTORY
find("file:/etc/aios/openai") # a file of the daemon's own that nobody else may read
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

LONGEST: Final = 65_536  # bytes


def find(place: str) -> str:
    """Return a key; "" for no place. Raises OSError that says what is wrong with the place."""
    kind, _, name = place.partition(":")
    if not place:
        return ""
    if kind == "env":
        return _clean(
            os.environ.get(name, ""),
            place,
            "the daemon's environment has no such variable; set it where aiosd is started",
        )
    if kind == "credential":
        directory = os.environ.get("CREDENTIALS_DIRECTORY", "")
        if not directory or "/" in name:
            raise _wrong(place, "systemd gave the daemon no credentials (LoadCredential=)")
        return _clean(_read(Path(directory, name), place), place, "it is empty")
    if kind == "file":
        return _clean(_private(Path(name), place), place, "it is empty")
    raise _wrong("", "write env:VARIABLE, credential:NAME or file:/PATH, never the key itself")


def _private(path: Path, place: str) -> str:
    """Read a file that is nobody else's to read."""
    try:
        found = path.stat()
    except OSError as error:
        raise _wrong(place, error.strerror or str(error)) from None
    if not path.is_absolute() or not stat.S_ISREG(found.st_mode):
        raise _wrong(place, "give the whole path of a plain file")
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o077:
        raise _wrong(place, "others could read or replace it; chown it to the daemon, chmod 0600")
    return _read(path, place)


def _read(path: Path, place: str) -> str:
    try:
        with path.open("rb") as file:
            return file.read(LONGEST).decode("ascii", "replace")
    except OSError as error:
        raise _wrong(place, error.strerror or str(error)) from None


def _clean(key: str, place: str, lacking: str) -> str:
    key = key.strip()
    if not key:
        raise _wrong(place, lacking)
    if not key.isprintable() or not key.isascii():
        raise _wrong(place, "what is there is no key: it has other characters than a header may")
    return key


def _wrong(place: str, why: str) -> OSError:
    return OSError(errno.EINVAL, f"api_key{f' {place}' if place else ''}: {why}")
