"""The audit chain: how one record is bound to the one before it.

A record's digest is SHA-256 over the digest before it and the record in its one canonical form.
So whoever has the records can prove that none was changed, left out or put in between; whoever
writes them can't be wrong about what that means. Every file of the log begins with a record of
kind `audit.segment`, whose data names the digest before it: there a chain can be picked up when
older files are gone.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import msgspec

SEGMENT: Final = "audit.segment"
BROKEN: Final = "audit.broken"
"""Kind of a record that stands for a line that is no record; it was never written."""
GAP: Final = "audit.gap"
"""Kind of a record that says that the end of the log was missing when a kernel began."""

START: Final = "0" * 64
"""What stands for the digest before the very first record."""

_encode = msgspec.json.Encoder(order="sorted", enc_hook=str).encode


def canonical(id: int, t: float, uid: int, aid: int, kind: str, data: dict[str, Any]) -> bytes:
    """Return a record in the one form that is hashed: JSON, fields in order, keys sorted."""
    return _encode((id, t, uid, aid, kind, data))


def digest(before: str, record: bytes) -> str:
    """Return the digest of a canonical record, in hex; before: that of the record before it."""
    return hashlib.sha256(before.encode() + record).hexdigest()


class Verifier:
    """Follows a chain from its oldest record; `broken` says what is wrong with the first bad one.

    records: how many were sound.
    """

    def __init__(self) -> None:
        self.records = 0
        self.first = 0
        self.last = 0
        self.broken = ""
        self._before = ""

    def feed(
        self, id: int, t: float, uid: int, aid: int, kind: str, data: dict[str, Any], claimed: str
    ) -> bool:
        """Take the next record; False when it is the first broken one."""
        if not self._before:
            self.first = id
            self._before = str(data.get("before", "")) or START
        wrong = self._wrong(id, kind, data)
        if not wrong:
            found = digest(self._before, canonical(id, t, uid, aid, kind, data))
            if found != claimed:
                wrong = "its digest does not follow from it and the record before"
        if wrong:
            self.broken = f"record {id}: {wrong}"
            return False
        self._before, self.last = claimed, id
        self.records += 1
        return True

    def _wrong(self, id: int, kind: str, data: dict[str, Any]) -> str:
        if kind == BROKEN:
            return f"it can't be read ({data.get('reason', 'damaged')})"
        if self.last and id != self.last + 1:
            return f"record {self.last + 1} should come after {self.last}"
        if not self.last and kind != SEGMENT:
            return "no file of the log begins with it: older records were cut off"
        if kind == GAP:
            return f"records up to {data.get('written')} were written and are missing before it"
        return ""
