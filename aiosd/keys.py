"""Answers kept by key, so that a client that lost its connection can safely ask again.

The dispatcher takes a Kept for each keyed request. A fresh one has neither answer nor work: the
caller does the work and calls `keep` or `drop`. One with `work` is being answered just now; one
with `answer` was answered before. Where what was done outlives the kernel, so does the answer:
`row` is what the journal writes of it, best in one transaction with the deed (`asking` says whose
answer a handler is at work on), and `restore` takes it back at boot.

What must hold: under one (owner, call, key) the work is done once, as long as it succeeds. Failed
work had no effect, so its key is free again. Kept answers are bounded in number, bytes and age.
"""

from __future__ import annotations

import errno
import hashlib
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from time import monotonic, time
from typing import Any, Final

import msgspec

from aiosd.db import Connection
from aiosd.journal import AnswerRow, Write, keeping

Owner = tuple[bool, int]
"""(True, aid) for an agent, (False, uid) for a person."""

Name = tuple[Owner, str, str]
"""Owner, call and key of a request."""

STALE: Final = 64
"""Answers that are forgotten before they are deleted from disk together."""

KEEP_S: Final = 600.0
"""Seconds that an answer is kept."""

MAX_BUSY: Final = 1024
"""Keyed requests that one owner may have in flight, over all its connections, past ones too."""


class Kept:
    """A keyed request. work: whatever stands for it in flight. answer: its encoded body.

    stored: the answer is on disk, or on its way there.
    """

    __slots__ = ("answer", "expires", "name", "owner", "print", "stored", "work")

    def __init__(self, name: tuple[Owner, str, str], print: bytes) -> None:
        self.name = name
        self.owner = name[0]
        self.print = print
        self.work: Any = None
        self.answer: bytes | None = None
        self.expires = 0.0
        self.stored = False

    def row(self, answer: bytes) -> AnswerRow:
        """Return what is to be written of its answer."""
        self.stored = True
        _, call, key = self.name
        return AnswerRow(self.owner, call, key, self.print, answer, time() + KEEP_S)


asking: Final[ContextVar[Kept | None]] = ContextVar("asking", default=None)
"""The keyed request that the present task answers, set by the dispatcher."""


def answering(answer: object) -> list[Write]:
    """Return what writes the answer of the keyed call at work, to go with what the call does.

    So that a kernel which dies has done both or neither. Empty when the call has no key.
    """
    kept = asking.get()
    return [] if kept is None else [keeping(kept.row(msgspec.msgpack.encode(answer)))]


def answerer() -> Callable[[Connection, object], None]:
    """Return what writes the answer of the keyed call at work inside the deed's own transaction.

    For answers that are known there only, such as a new row's number. Does nothing without a key.
    """
    kept = asking.get()

    def write(db: Connection, answer: object) -> None:
        if kept is not None:
            keeping(kept.row(msgspec.msgpack.encode(answer)))(db)

    return write


class Keys:
    """All keyed requests in flight and the answers of past ones. clock: seconds, monotonic.

    discard: deletes answers from disk; called when some have gathered.
    """

    def __init__(
        self,
        clock: Callable[[], float] = monotonic,
        *,
        max_answers: int = 10_000,
        max_bytes: int = 32 << 20,
    ) -> None:
        self._clock = clock
        self._max_answers = max_answers
        self._max_bytes = max_bytes
        self._bytes = 0
        self._busy: Counter[Owner] = Counter()
        self._open: dict[tuple[Owner, str, str], Kept] = {}
        self._answers: dict[tuple[Owner, str, str], Kept] = {}  # oldest first
        self._stale: list[Name] = []  # forgotten here, and still on disk
        self.discard: Callable[[list[Name]], None] = lambda names: None

    def __len__(self) -> int:
        return len(self._open) + len(self._answers)

    def take(self, owner: Owner, call: str, key: str, body: bytes) -> Kept:
        """Return what is known under this key, or a fresh Kept.

        Raises OSError: EINVAL when the key was used with another body.
        """
        self._expire()
        name = (owner, call, key)
        print = _print(body)
        kept = self._open.get(name) or self._answers.get(name)
        if kept is None:
            self._admit(owner, call)
            kept = self._open[name] = Kept(name, print)
        elif kept.print != print:
            raise OSError(
                errno.EINVAL,
                f"{call}: field 'key': {key!r} was used with other arguments; "
                "a key belongs to one request, make a new one",
            )
        return kept

    def keep(self, kept: Kept, answer: bytes) -> None:
        """Keep the answer of work that succeeded."""
        self._close(kept)
        kept.work = None
        kept.answer = answer
        kept.expires = self._clock() + KEEP_S
        self._answers[kept.name] = kept
        self._bytes += len(answer)
        while len(self._answers) > self._max_answers or self._bytes > self._max_bytes:
            self._forget(next(iter(self._answers.values())))

    def drop(self, kept: Kept) -> None:
        """Free the key of work that failed or was cancelled."""
        kept.work = None
        if kept.stored:
            self._outdated(kept)
        self._close(kept)

    def reopen(self, owner: Owner, call: str, key: str, body: bytes) -> Kept:
        """Enter a request of an earlier kernel that goes on; no limit holds it up."""
        self._busy[owner] += 1
        kept = Kept((owner, call, key), _print(body))
        self._open[kept.name] = kept
        return kept

    def restore(self, row: AnswerRow) -> None:
        """Take back an answer of an earlier kernel."""
        kept = Kept((row.owner, row.call, row.key), row.print)
        kept.stored = True
        self.keep(kept, row.answer)
        kept.expires = self._clock() + max(0.0, min(row.expires - time(), KEEP_S))

    def stale(self) -> list[Name]:
        """Return, once, what is to be deleted from disk: owner, call and key of each."""
        stale, self._stale = self._stale, []
        return stale

    def forget(self, owner: Owner) -> None:
        """Drop the answers of an owner that will never ask again."""
        for kept in [kept for kept in self._answers.values() if kept.owner == owner]:
            self._forget(kept)

    def _admit(self, owner: Owner, call: str) -> None:
        if self._busy[owner] >= MAX_BUSY:
            raise BlockingIOError(
                errno.EAGAIN,
                f"{call}: {MAX_BUSY} keyed requests of yours are in flight, the limit; "
                "let some end first",
            )
        self._busy[owner] += 1

    def _close(self, kept: Kept) -> None:
        if self._open.pop(kept.name, None) is not None:
            self._busy[kept.owner] -= 1
            if not self._busy[kept.owner]:
                del self._busy[kept.owner]

    def _expire(self) -> None:
        now = self._clock()
        while self._answers:
            oldest = next(iter(self._answers.values()))
            if oldest.expires > now:
                break
            self._forget(oldest)

    def _forget(self, kept: Kept) -> None:
        del self._answers[kept.name]
        assert kept.answer is not None
        self._bytes -= len(kept.answer)
        if kept.stored:
            self._outdated(kept)

    def _outdated(self, kept: Kept) -> None:
        self._stale.append(kept.name)
        if len(self._stale) >= STALE:
            self.discard(self.stale())


def _print(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).digest()
