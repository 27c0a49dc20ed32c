"""What the client of a provider is: a chat goes in, pieces come out, trouble is named.

To add a provider, write a class that satisfies `Endpoint` in a module of its own and enter it in
`__main__.py`. Its library is imported there alone, when the first core of its kind is opened.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final, Protocol

from aiosd.endpoints.protocol import Call, Chat, Kind, Setup

LONGEST_WAIT: Final = 3600.0
"""Seconds: a provider that wants to be left alone for longer is asked again after that."""


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the reply."""

    text: str
    logprob: float = 0.0


@dataclass(frozen=True, slots=True)
class Count:
    """Tokens so far, as the provider has counted them."""

    prompt: int
    cached: int
    output: int


@dataclass(frozen=True, slots=True)
class End:
    """The reply is whole."""

    finish: str
    calls: tuple[Call, ...] = ()


Delta = Text | Count | End


class Trouble(Exception):
    """Something that a provider, or the way to it, has done; see protocol.Failed."""

    def __init__(self, kind: Kind, message: str, status: int = 0, wait: float = 0.0) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.status = status
        self.wait = wait


class Endpoint(Protocol):
    """A provider, as one core sees it. What it raises is `Trouble`."""

    def chat(self, chat: Chat) -> AsyncIterator[Delta]:
        """Ask; yields what comes, `End` last. Closing it closes the connection."""

    async def check(self) -> None:
        """Ask something that costs nothing; returns when the provider has answered."""

    async def embed(self, texts: list[str]) -> tuple[list[list[float]], int]:
        """Return a vector for each text, and how many tokens they had."""

    async def close(self) -> None:
        """Close connections."""


def refuse(chat: Chat, setup: Setup, fields: Iterable[str]) -> None:
    """Raise Trouble for the first of these fields of a chat that asks for something."""
    plain = Chat([], 0)
    for name in fields:
        if getattr(chat, name) != getattr(plain, name) and name not in setup.omit:
            raise Trouble("refused", f"{name}: the interface of this provider has no such thing")


def by_status(status: int, message: str, wait: float) -> Trouble:
    """Return what an HTTP status of an error means."""
    if status in (429, 503, 529):
        return Trouble("busy", message, status, wait)
    if status >= 500 or status in (408, 409):
        return Trouble("broken", message, status, wait)
    return Trouble("refused", message, status)


def wait_of(headers: Any) -> float:
    """Return how many seconds a reply asks to be left alone, 0 where it says nothing usable."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        wait = _seconds(headers.get(name, "")) * unit
        if wait > 0:
            return min(wait, LONGEST_WAIT)
    return 0.0


def _seconds(told: str) -> float:
    """Read a number of seconds, or a date; 0 for what is neither."""
    try:
        return float(told)
    except ValueError:
        pass
    try:
        return parsedate_to_datetime(told).timestamp() - time.time()
    except (ValueError, OverflowError):
        return 0.0


def whole(number: Any) -> int:
    """Return a count as a provider gives it; raises Trouble for what can't be one."""
    if number is None:
        return 0
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 1 << 40:
        raise Trouble("cut", f"it counts {str(number)[:40]!r} tokens")
    return number


def line(text: object) -> str:
    """Return the first line of a message, shortened."""
    return str(text).strip().partition("\n")[0][:400]
