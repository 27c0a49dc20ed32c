"""Verdicts: what probes for exactness found, kept in a file each in the user's cache.

A verdict is about a model, a build and a processor, and says so itself (engine/probe.py): so every
kernel of this user may take it, and who finds it stale probes anew. Like all of a cache it may be
deleted at any time.

What must hold: a file that is damaged, too large or another user's is not read; a write that fails
costs the next start a probe and nothing else; there are at most MOST files, the oldest going first.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Final

import msgspec

log = logging.getLogger(__name__)

MOST: Final = 256
LARGEST: Final = 1 << 16
"""Bytes of a file."""


class _Known(msgspec.Struct, frozen=True):
    """A file: the key (drivers.setup_key), so that it tells what it is about, and the verdict."""

    key: str
    verdict: str


class Verdicts:
    """Those in a directory, which is made with the first one."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def find(self, key: str) -> str:
        """Return the verdict of a core's setting, "" when none is known."""
        path = self._path(key)
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
                if os.fstat(file.fileno()).st_uid != os.geteuid():
                    raise PermissionError(f"{path}: another user's")
                known = msgspec.json.decode(file.read(LARGEST), type=_Known)
        except FileNotFoundError:
            return ""
        except (OSError, msgspec.DecodeError) as error:
            log.warning("a core is probed again: what was kept of it can't be read: %s", error)
            return ""
        return known.verdict if known.key == key else ""

    def keep(self, key: str, verdict: str) -> None:
        """Keep a verdict for the next start."""
        path = self._path(key)
        new = path.with_suffix(f".{os.getpid()}")
        try:
            self._place.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._make_room()
            new.write_bytes(msgspec.json.encode(_Known(key, verdict)))
            new.replace(path)
        except OSError as error:
            log.warning("a core is probed again next time: its verdict can't be kept: %s", error)
            with suppress(OSError):
                new.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._place / f"{blake2b(key.encode(), digest_size=16).hexdigest()}.json"

    def _make_room(self) -> None:
        files = list(self._place.iterdir())
        if len(files) >= MOST:
            files.sort(key=lambda file: file.lstat().st_mtime)
            for file in files[: MOST // 4]:
                file.unlink(missing_ok=True)
