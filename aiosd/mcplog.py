"""What an MCP server says beside the protocol: a file of bounded size, and its last words.

    notes = Log(path); notes.write(data); notes.line(text); notes.tail()

The file begins anew, the old one becoming PATH.1, when it is full.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

LIMIT: Final = 1 << 20
"""Bytes of the file; the one before it has as many."""
TAIL: Final = 1000
"""Bytes that are told as last words."""


class Log:
    """One server's file. A disk that is full loses lines, and nobody waits for it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._tail = b""
        self._open(os.O_APPEND)

    def write(self, data: bytes | str) -> int:
        """Append bytes, or a text (as a stream of `logging` does); return how many were given."""
        given = data.encode(errors="replace") if isinstance(data, str) else data
        self._tail = (self._tail + given)[-TAIL:]
        if self._size + len(given) > LIMIT:
            self._rotate()
        with contextlib.suppress(OSError):
            self._size += os.write(self._fd, given[:LIMIT])
        return len(data)

    def line(self, text: str) -> None:
        """Append one line."""
        self.write(f"{text}\n")

    def flush(self) -> None:
        """Do nothing: what is written is written."""

    def tail(self) -> str:
        """Return the last that was written, as text without control characters."""
        text = self._tail.decode(errors="replace").strip()
        shown = "".join(each if each.isprintable() else " " for each in text)
        return " ".join(shown.split())

    def _open(self, flag: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | flag
        self._fd = os.open(self._path, flags, 0o600)
        self._size = os.fstat(self._fd).st_size

    def _rotate(self) -> None:
        with contextlib.suppress(OSError):
            os.rename(self._path, f"{self._path}.1")
        os.close(self._fd)
        self._open(os.O_TRUNC)
