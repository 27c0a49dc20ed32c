"""Which snapshot files a node has, by what is in them.

    name = shelf.write(path)            # for what the engine there is to write
    shelf.written(name, mark, size)     # it has, and this is its beginning
    shelf.find(path, mark)              # the node's own copy of a file, if it has one
    name = shelf.add(mark, size)        # for one that is about to be brought there

The mark of a file is its first bytes: they hold the checksums of all the others, so that two files
with the same mark are the same, whatever their names. Pure bookkeeping: names of files, no files.

What must hold: a name stands for one content from the time it is given out until it is given out
again; that happens only when nothing has named it for GRACE seconds, so that no command that is
still under way finds another content there; what is being written is not given out at all.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from aiosd.engine.snapshot import POOLED

GRACE: Final = 30.0
"""Seconds for which a file is left alone after it was last named in a command."""


@dataclass(slots=True)
class File:
    """One file on the node. path: the kernel's, while what is written has not come there."""

    name: str
    size: int
    used: float
    mark: bytes = b""
    path: str = ""


class Shelf:
    """The files of one node, `limit` bytes as far as it can be; clock: seconds, monotonic."""

    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        self.limit = limit
        self.used = 0
        self._clock = clock
        self._count = 0
        self._files: OrderedDict[str, File] = OrderedDict()  # the one longest unused first
        self._by_mark: dict[bytes, File] = {}
        self._writing: dict[str, File] = {}  # by the kernel's path
        self._typical = 0

    def write(self, path: str) -> str:
        """Return the name under which the engine is to write what the kernel wants at `path`."""
        file = self._fresh(self._typical)
        file.path = path
        self._writing[path] = file
        return file.name

    def written(self, name: str, mark: bytes, size: int) -> None:
        """Note what the engine has written; mark b"": nothing that is of use."""
        file = self._files.get(name)
        if file is None:
            return
        if self._writing.get(file.path) is file:
            del self._writing[file.path]
        file.path = ""
        self._drop(file)
        self._mark(file, mark, size)
        self._typical = size or self._typical

    def add(self, mark: bytes, size: int) -> str:
        """Return the name for a file that is about to be brought to the node."""
        file = self._fresh(size)
        self._mark(file, mark, size)
        return file.name

    def find(self, path: str, mark: bytes) -> str:
        """Return the node's name of the file that the kernel has at `path`, "" when it has none.

        What the engine has yet to write there counts: it will have done so before it reads it.
        """
        file = self._writing.get(path) or (self._by_mark.get(mark) if mark else None)
        if file is None:
            return ""
        file.used = self._clock()
        self._files.move_to_end(file.name)
        return file.name

    def surplus(self) -> list[str]:
        """Give up what is over the limit; returns the names of the files to delete."""
        gone = []
        while self.used > self.limit and (file := self._idle()) is not None:
            self._drop(file)
            del self._files[file.name]
            self.used -= file.size
            gone.append(file.name)
        return gone

    def _fresh(self, size: int) -> File:
        """Take a name that nobody needs any more where there is no room, else a new one.

        A file that is written again costs no fresh pages.
        """
        file = self._idle() if self.used + size > self.limit else None
        if file is None:
            self._count += 1
            file = File(f"{self._count}{POOLED}", 0, 0.0)
        else:
            self._drop(file)
        self._files[file.name] = file
        self._files.move_to_end(file.name)
        file.used = self._clock()
        self._resize(file, size)
        return file

    def _idle(self) -> File | None:
        """The file that was named longest ago, if that is long enough."""
        before = self._clock() - GRACE
        for file in self._files.values():
            if file.used > before:
                return None
            if not file.path:
                return file
        return None

    def _drop(self, file: File) -> None:
        if self._by_mark.get(file.mark) is file:
            del self._by_mark[file.mark]
        file.mark = b""

    def _mark(self, file: File, mark: bytes, size: int) -> None:
        file.mark = mark
        if mark:
            self._by_mark[mark] = file
        self._resize(file, size)

    def _resize(self, file: File, size: int) -> None:
        self.used += size - file.size
        file.size = size
