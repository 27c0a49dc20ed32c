"""A reader: whoever a remote core reports to what comes of a request.

It is a sink (sequence.py) that is told more: a provider says what it has counted, may refuse, and
may stop in the middle, and what was sent to it must be on record before.
"""

from __future__ import annotations

from typing import Protocol

from aiosd.cores.sequence import Sink
from aiosd.endpoints import protocol as p


class Reader(Sink, Protocol):
    """One request's. chat: what to ask."""

    chat: p.Chat | None

    async def sending(self) -> None:
        """It is about to be sent: returns when that is on record. Raises OSError."""

    def unsent(self) -> None:
        """The provider has done nothing of what was sent; it waits again."""

    def bears(self, seconds: float) -> bool:
        """Whether it may wait so long: it has the time, and no other core would do it sooner."""

    def metered(self, prompt: int, cached: int, output: int) -> None:
        """What the provider has counted so far."""

    def answered(self, finish: str, calls: list[p.Call]) -> None:
        """It is done. finish: stop, length, calls or the provider's own word."""

    def cut(self, reason: str) -> None:
        """There is text, and no more will come."""

    def refused(self, code: int, message: str) -> None:
        """This core can't do it, nothing came of it: another one may."""
