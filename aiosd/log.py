"""The kernel's log: one concise line an event on stderr, or records with fields under systemd.

Every module logs with `logging.getLogger(__name__)`; `start` says once where it goes. What a record
is about (journald.ABOUT) is given as `extra`: `log.warning("...", extra={"core": name})`.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from typing import TextIO

import msgspec

from aiosd import journald
from aiosd.journald import ABOUT, PRIORITIES, Journal


class _Lines(logging.Formatter):
    """`time level module: message` for a person, `<6>module: message` for the journal."""

    def __init__(self, journal: bool) -> None:
        super().__init__("%(room)s: %(message)s")
        self._journal = journal
        self.default_msec_format = "%s.%03d"

    def format(self, record: logging.LogRecord) -> str:
        record.room = record.name.removeprefix("aiosd.")
        text = super().format(record)
        if self._journal:
            priority = f"<{PRIORITIES.get(record.levelno, 5)}>"
            return priority + text.replace("\n", f"\n{priority}")
        return f"{self.formatTime(record)} {record.levelname.lower():7} {text}"


class _Objects(logging.Formatter):
    """A JSON object a line, for what collects logs from a stream."""

    def format(self, record: logging.LogRecord) -> str:
        told = {
            "t": record.created,
            "level": record.levelname.lower(),
            "room": record.name.removeprefix("aiosd."),
            "message": super().format(record),
        }
        about = {
            name: value for name in ABOUT if (value := getattr(record, name, None)) is not None
        }
        return msgspec.json.encode(told | about).decode()


def start(level: str, stream: TextIO | None = None, form: str = "auto") -> None:
    """Log what is at least as grave as `level` to `stream` (stderr by default).

    form: plain (lines), json (objects), journal (journald's own records), or auto: the last where
    the stream goes to the journal, else the first.
    """
    stream = stream or sys.stderr
    root = logging.getLogger()
    root.handlers[:] = [_handler(stream, form)]
    set_level(level)


def _handler(stream: TextIO, form: str) -> logging.Handler:
    journal = is_journal(stream, os.environ)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Objects() if form == "json" else _Lines(journal))
    if form == "journal" or (form == "auto" and journal):
        return Journal(handler, journald.SOCKET)
    return handler


def set_level(level: str) -> None:
    """Change what is logged: debug, info, warning or error."""
    logging.getLogger().setLevel(level.upper())
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether a stream goes straight to systemd's journal, by the file that it names."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
