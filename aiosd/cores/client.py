"""A core's client in the process that speaks to providers: what can be asked of it, and what errors
mean to whoever asked.

    opened = await client.open(lambda: state != "removed")    # or p.Failed
    id = client.chat(chat, hear); client.credit(id, 16); client.drop(id)

What must hold: who awaits an answer gets one, be it that the core is removed meanwhile.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from aiosd.endpoints import protocol as p

if TYPE_CHECKING:
    from aiosd.config import Core as CoreConfig
    from aiosd.cores.bridge import Bridge, Hear

CREDIT: Final = 64  # pieces that may be on their way, or wait here for a reader
OPENINGS: Final = 3  # processes that may die before a client is made

CODES: Final = {400: errno.EINVAL, 401: errno.EACCES, 403: errno.EACCES, 404: errno.ENOENT,
                413: errno.ENOSPC, 422: errno.EINVAL}  # fmt: skip
"""What a provider's refusal is to the one who asked, by HTTP status."""


class Undone(OSError):
    """A provider has done nothing of what was asked."""


class Client:
    """One core's."""

    def __init__(self, config: CoreConfig, bridge: Bridge) -> None:
        self._config = config
        self._core = config.name
        self._bridge = bridge
        self._answers: set[asyncio.Future[p.Event]] = set()  # that somebody waits for

    @property
    def pid(self) -> int:
        """The process that it is in, 0 when there is none."""
        return self._bridge.pid

    async def open(self, wanted: Callable[[], bool]) -> p.Event:
        """Have it made, by another process where one has died over it, as long as it is wanted."""
        for _ in range(OPENINGS):
            event = await self._asked(
                lambda hear: self._bridge.open(self._core, self._setup(), hear)
            )
            opened = not isinstance(event, p.Failed) or event.kind == "refused"
            if opened or not wanted():
                break
        return event

    async def check(self) -> p.Event:
        """Ask the provider something that costs nothing."""
        return await self._asked(self.look)

    def look(self, hear: Hear) -> int:
        """As check, for who does not wait."""
        return self._bridge.ask(lambda id: p.Check(id, self._core), hear)

    async def embed(self, texts: list[str]) -> p.Event:
        """Ask for vectors."""
        return await self._asked(
            lambda hear: self._bridge.ask(lambda id: p.Embed(id, self._core, texts), hear)
        )

    def chat(self, chat: p.Chat, hear: Hear) -> int:
        """Have a chat answered; returns its id."""
        return self._bridge.ask(lambda id: p.Ask(id, self._core, chat, CREDIT), hear)

    def credit(self, id: int, count: int) -> None:
        """Let so many more pieces of a chat come."""
        self._bridge.tell(p.Credit(id, count))

    def drop(self, id: int) -> None:
        """Hear nothing more of a chat, and have it stopped."""
        self._bridge.drop(id)

    def close(self, why: str) -> None:
        """End it; who waits for an answer is told why."""
        for answer in self._answers:
            if not answer.done():
                answer.set_result(p.Failed(0, "lost", why))
        self._bridge.shut(self._core)

    async def _asked(self, ask: Callable[[Hear], int]) -> p.Event:
        """Ask something and return the answer. ask: gets who hears it, and returns its id."""
        answer: asyncio.Future[p.Event] = asyncio.get_running_loop().create_future()

        def hear(event: p.Event) -> None:
            if not answer.done():
                answer.set_result(event)

        self._answers.add(answer)
        id = ask(hear)
        try:
            return await answer
        finally:
            self._answers.discard(answer)
            self._bridge.drop(id)

    def _setup(self) -> p.Setup:
        settings = self._config.remote
        return p.Setup(
            driver=self._config.driver,
            model=self._config.model,
            base_url=settings.base_url,
            api_key=settings.api_key,
            dialect=settings.dialect,
            connect=settings.connect_timeout,
            first=settings.first_timeout,
            between=settings.token_timeout,
            ca_file=settings.ca_file,
            omit=settings.omit,
            extra=settings.extra,
            headers=settings.headers,
        )


def code(failed: p.Failed) -> int:
    """Return the errno of a failure."""
    if failed.kind == "busy":
        return errno.EAGAIN
    if failed.kind == "unreachable":
        return errno.EHOSTUNREACH
    if failed.kind == "refused":
        return CODES.get(failed.status, errno.EIO if failed.status else errno.EINVAL)
    return errno.EIO
