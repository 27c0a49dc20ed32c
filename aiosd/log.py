"""The kernel's log: one concise line an event on stderr, with syslog priorities under systemd.

Every module logs with `logging.getLogger(__name__)`; `start` says once where it goes.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from typing import Final, TextIO

_PRIORITY: Final = {
    logging.DEBUG: "<7>",
    logging.INFO: "<6>",
    logging.WARNING: "<4>",
    logging.ERROR: "<3>",
    logging.CRITICAL: "<2>",
}


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
            priority = _PRIORITY.get(record.levelno, "<5>")
            return priority + text.replace("\n", f"\n{priority}")
        return f"{self.formatTime(record)} {record.levelname.lower():7} {text}"


def start(level: str, stream: TextIO | None = None) -> None:
    """Log what is at least as grave as `level` to `stream` (stderr by default)."""
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Lines(is_journal(stream, os.environ)))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    set_level(level)


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
