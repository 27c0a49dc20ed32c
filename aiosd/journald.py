"""The log as the journal's own records: a message with fields, so that it can be asked for by them.

    journalctl -u aiosd AIOS_CORE=large PRIORITY=4

Each record is one datagram to journald's socket: names and values, in its native protocol. One that
it does not take at once is written to the stream in its stead: the log neither waits nor loses.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from typing import Final

SOCKET: Final = "/run/systemd/journal/socket"
LONGEST: Final = 48 << 10
"""Bytes of one field; a datagram of several is sure to be taken."""
ABOUT: Final = ("core", "aid", "context", "call", "server", "tool")
"""What a record may be about: given to the logger as `extra`, told as AIOS_CORE and so on."""
PRIORITIES: Final = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}


class Journal(logging.Handler):
    """Sends records to journald. beside: takes those that can't be sent. path: its socket."""

    def __init__(self, beside: logging.Handler, path: str) -> None:
        super().__init__()
        self._beside = beside
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record, or have it written."""
        try:
            data = b"".join(_field(*each) for each in self._fields(record))
            self._socket.sendto(data, self._path)
        except OSError:
            self._beside.handle(record)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()

    def _fields(self, record: logging.LogRecord) -> Iterator[tuple[str, str]]:
        """Yield the names and values of a record's fields."""
        room = record.name.removeprefix("aiosd.")
        yield "MESSAGE", f"{room}: {self.format(record)}"
        yield "PRIORITY", str(PRIORITIES.get(record.levelno, 5))
        yield "SYSLOG_IDENTIFIER", "aiosd"
        yield "AIOS_ROOM", room
        yield "CODE_FILE", record.pathname
        yield "CODE_LINE", str(record.lineno)
        yield "CODE_FUNC", record.funcName or ""
        for name in ABOUT:
            if (value := getattr(record, name, None)) is not None:
                yield f"AIOS_{name.upper()}", str(value)


def _field(name: str, value: str) -> bytes:
    """Return a field as the protocol has it: by its length, where there is a line break in it."""
    data = value.encode(errors="backslashreplace")[:LONGEST]
    if b"\n" not in data:
        return b"%s=%s\n" % (name.encode(), data)
    return b"%s\n%s%s\n" % (name.encode(), len(data).to_bytes(8, "little"), data)
