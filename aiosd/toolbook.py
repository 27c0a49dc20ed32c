"""What is written down of calls of tools: in the audit log, and in what get_usage adds up.

    number = book.begun(caller, tool, arguments, secrets)    # before it is carried out
    book.ended(number, caller, tool, {...})                  # and after
    await book.settle()                                      # all use is in the database

What must hold: a call that can't be put on record is not carried out; no secret is on record. Use
is written behind, FLUSH_S at most.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from aiosd import accounts
from aiosd.accounts import Use, line_of
from aiosd.redaction import STRUCK, Redaction
from aiosd.settings import History
from aiosd.toolsecrets import strike

if TYPE_CHECKING:
    from aiosd.access import Access, Caller
    from aiosd.audit import Audit
    from aiosd.db import Connection, Database
    from aiosd.declaration import Declaration

log = logging.getLogger(__name__)

FLUSH_S: Final = 0.25
MOST: Final = 4096
"""Bytes of a call's arguments that are on record."""
_SECRET: Final = re.compile(r"(?i)(^|_)(passw(or)?d|secret|token|api_?key|credentials?)$")
"""Names of arguments that are struck out, whatever the schema says of them."""

_encode = msgspec.json.Encoder(order="deterministic").encode


class Book:
    """Puts calls on record. history: what is struck out of texts, now.

    tell: told of each call that has ended: whose, and the facts by name. Must not raise.
    """

    def __init__(
        self, db: Database, access: Access, audit: Audit, history: Callable[[], History]
    ) -> None:
        self._db = db
        self._access = access
        self._audit = audit
        self._history = history
        self._redaction: tuple[list[str], Redaction] = ([], Redaction([]))
        self._used: Counter[tuple[int, int, str]] = Counter()
        self._due: asyncio.TimerHandle | None = None
        self._last = 0
        self.tell: Callable[..., None] = lambda aid, **facts: None

    def begun(
        self, caller: Caller, tool: Declaration, arguments: dict[str, Any], secrets: Iterable[str]
    ) -> int:
        """Record that a call begins; return its number. OSError(EAGAIN) when that can't be."""
        self._last += 1
        shown = self._shown(tool, arguments, secrets)
        facts = {"call": self._last, "tool": tool.name, "version": tool.version}
        self._audit.record("tool.call", caller, 0, {**facts, "arguments": shown})
        return self._last

    def ended(self, number: int, caller: Caller, tool: Declaration, facts: dict[str, Any]) -> None:
        """Record how a call ended, and count it as used. Never raises."""
        try:
            self._audit.record("tool.end", caller, 0, {"call": number, "tool": tool.name, **facts})
        except OSError as error:
            log.error("the end of call %d of %s is not on record: %s", number, tool.name, error)
        self._used[caller.aid, caller.uid, tool.name] += 1
        self.tell(caller.aid, call=number, tool=tool.name, **facts)
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(FLUSH_S, self._flush)

    async def settle(self) -> None:
        """Return once all use so far is in the database."""
        if self._due is not None:
            self._due.cancel()
            self._flush()
        await self._db.flush()

    def _flush(self) -> None:
        self._due = None
        used, self._used = self._used, Counter()
        uses = [self._use(*whose, count) for whose, count in used.items()]
        day = int(time.time() // accounts.DAY)

        def write(db: Connection) -> None:
            for use in uses:
                accounts.count(db, use, day)

        try:
            self._db.write_soon(write)
        except OSError as error:
            log.error("what tools were used is not on record: %s", error)

    def _use(self, aid: int, uid: int, tool: str, count: int) -> Use:
        kin = self._access.kin
        try:
            line = (*kin.lineage(aid), aid) if aid and kin is not None else ()
            uid = kin.uid_of(aid) if aid and kin is not None else uid
        except ProcessLookupError:  # its row went meanwhile
            line = (aid,)
        return Use(aid=aid, uid=uid, line=line_of(line), tool=tool, requests=count)

    def _shown(self, tool: Declaration, arguments: dict[str, Any], secrets: Iterable[str]) -> str:
        """Return what is on record of arguments."""
        fields = tool.input.get("properties", {})
        public = {
            name: STRUCK if _is_secret(name, value, fields.get(name)) else value
            for name, value in arguments.items()
        }
        text = strike(_encode(public).decode(errors="replace"), secrets)
        patterns = self._history().redact
        if patterns != self._redaction[0]:
            self._redaction = (patterns, Redaction(patterns))
        if not patterns and len(text) <= MOST // 4:
            return text
        return self._redaction[1].kept(text, MOST)


def digest(value: object) -> tuple[int, str]:
    """Return the bytes and the SHA-256 of a value as JSON; OSError(EPROTO) for what is no JSON."""
    try:
        data = _encode(value)
        return len(data), hashlib.sha256(data).hexdigest()
    except (TypeError, ValueError, msgspec.EncodeError, RecursionError) as error:
        raise OSError(errno.EPROTO, f"holds what JSON can't: {error}") from None


def _is_secret(name: str, value: object, schema: object) -> bool:
    if isinstance(schema, dict) and (schema.get("writeOnly") or schema.get("format") == "password"):
        return True
    return isinstance(value, str) and _SECRET.search(name) is not None
