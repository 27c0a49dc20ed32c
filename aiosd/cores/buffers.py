"""Buffers: files on tmpfs that hold the KV of sequences which are off the core.

They outlive a worker, and are reused: fresh memory costs more in page faults than a whole save.
The bytes of all files together never exceed the limit, as far as sizes are known in advance: a
caller states what it will write, and what was written is booked when the worker has answered.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path


class Buffers:
    """A pool of files in `directory`, `limit` bytes at most."""

    def __init__(self, directory: Path, limit: int) -> None:
        self.directory = directory
        self.limit = limit
        self.used = 0
        self._free: list[tuple[int, str]] = []
        self._size: dict[str, int] = {}
        self._holders: dict[str, int] = {}
        self._names = itertools.count(1)

    def boot(self) -> None:
        """Make the directory (0700) and remove what an earlier kernel left in it."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chmod(self.directory, 0o700)
        for path in self.directory.glob("*.kv"):
            path.unlink(missing_ok=True)

    @property
    def room(self) -> int:
        """Bytes that may still be taken; idle buffers count as room."""
        return self.limit - self.used

    def take(self, size: int) -> str | None:
        """Return the path of a buffer for about `size` bytes, or None when there is no room."""
        if size > self.room:
            return None
        path = self._reuse(size) or str(self.directory / f"{next(self._names)}.kv")
        self._book(path, size)
        self._trim()
        return path

    def booked(self, path: str, size: int) -> None:
        """Note how many bytes the buffer really holds."""
        self._book(path, size)

    def share(self, path: str) -> None:
        """Count one more holder of a buffer; what it holds is never written again."""
        self._holders[path] = self._holders.get(path, 1) + 1

    def give(self, path: str) -> None:
        """Let go of a buffer; with its last holder the file is kept for the next taker."""
        holders = self._holders.pop(path, 1)
        if holders > 2:
            self._holders[path] = holders - 1
        if holders > 1 or path not in self._size:
            return
        size = self._size.pop(path)
        self.used -= size
        with contextlib.suppress(OSError):
            self._free.append((os.stat(path).st_size, path))
        self._trim()

    def close(self) -> None:
        """Remove all files and the directory."""
        for path in self.directory.glob("*.kv"):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.directory.rmdir()

    def _book(self, path: str, size: int) -> None:
        self.used += size - self._size.get(path, 0)
        self._size[path] = size

    def _reuse(self, size: int) -> str | None:
        """Take the smallest idle buffer that fits, else the largest (it grows)."""
        if not self._free:
            return None
        self._free.sort()
        index = next((i for i, (have, _) in enumerate(self._free) if have >= size), -1)
        return self._free.pop(index)[1]

    def _trim(self) -> None:
        """Delete idle buffers that no longer fit under the limit beside the used ones."""
        while self._free and self.used + sum(size for size, _ in self._free) > self.limit:
            _, path = self._free.pop(0)
            Path(path).unlink(missing_ok=True)
