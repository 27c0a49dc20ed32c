"""Pools of snapshot files: one in memory (tmpfs), one on disk.

They outlive a worker and a kernel. Those in memory are reused: fresh memory costs more in page
faults than a whole save. The bytes of all files of a pool together never exceed its limit, as far
as sizes are known in advance: a caller states what it will write, and what was written is booked
when the worker has answered.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from aiosd.engine.snapshot import POOLED

STORED: Final = ".snapshot"  # how the name of a file on disk ends
_NUMBER: Final = re.compile(r"\d+")


def _unlink(path: str) -> None:
    Path(path).unlink(missing_ok=True)


class Buffers:
    """A pool of files in `directory`, `limit` bytes at most.

    reuse: whether a file is kept for the next taker. remove: deletes one (it may take its time).
    """

    def __init__(
        self,
        directory: Path,
        limit: int,
        suffix: str = POOLED,
        reuse: bool = True,
        remove: Callable[[str], None] = _unlink,
    ) -> None:
        self.directory = directory
        self.limit = limit
        self.used = 0
        self.sealed = False
        self._suffix = suffix
        self._reuses = reuse
        self._remove = remove
        self._free: list[tuple[int, str]] = []
        self._size: dict[str, int] = {}
        self._holders: dict[str, int] = {}
        self._names = itertools.count(1)

    def boot(self) -> list[str]:
        """Make the directory (0700); returns the files that an earlier kernel left there."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chmod(self.directory, 0o700)
        left = [path for path in self.directory.iterdir() if path.is_file()]
        numbers = [int(number.group()) for path in left if (number := _NUMBER.match(path.name))]
        self._names = itertools.count(1 + max(numbers, default=0))
        return [str(path) for path in left]

    @property
    def room(self) -> int:
        """Bytes that may still be taken; idle buffers count as room."""
        return self.limit - self.used

    def owns(self, path: str) -> bool:
        """Whether a file is booked here."""
        return path in self._size

    def take(self, size: int) -> str | None:
        """Return the path of a buffer for about `size` bytes, or None when there is no room."""
        if size > self.room or self.sealed:
            return None
        path = self._reuse(size) or str(self.directory / f"{next(self._names)}{self._suffix}")
        self._book(path, size)
        self._trim()
        return path

    def booked(self, path: str, size: int) -> None:
        """Note how many bytes a file of the pool really holds; one that was found joins it."""
        self._book(path, size)

    def share(self, path: str) -> None:
        """Count one more holder of a buffer; what it holds is never written again."""
        self._holders[path] = self._holders.get(path, 1) + 1

    def give(self, path: str) -> None:
        """Let go of a buffer; with its last holder the file is kept for the next taker."""
        holders = self._holders.pop(path, 1)
        if holders > 2:
            self._holders[path] = holders - 1
        if holders > 1 or path not in self._size or self.sealed:
            return
        self.used -= self._size.pop(path)
        if not self._reuses:
            self._remove(path)
            return
        with contextlib.suppress(OSError):
            self._free.append((os.stat(path).st_size, path))
        self._trim()

    def waste(self, path: str) -> None:
        """Let go of a buffer that its writer did not finish: the next kernel has no use for it."""
        if self.sealed:
            Path(path).unlink(missing_ok=True)
        self.give(path)

    def forget(self, path: str) -> None:
        """Take a file off the books, whoever holds it: it is gone, or moved elsewhere."""
        self._holders.pop(path, None)
        self.used -= self._size.pop(path, 0)

    def seal(self) -> None:
        """Delete what is idle; from now on nothing is taken, and what is given back stays."""
        self.sealed = True
        for _, path in self._free:
            Path(path).unlink(missing_ok=True)
        self._free.clear()

    def close(self) -> None:
        """Delete what is idle, and the directory when nothing is left in it."""
        self.seal()
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
