"""Blobs beyond a network: what a store of objects and a database have in common.

    backend = Remote("s3", shelf, directory, store, timeout)

A blob is gathered in a draft on the local disk. Once it is whole it goes out in chunks, each under
STORE/KEY/NUMBER, where KEY is the blob's SHA-256 and a random word. The database gets the key when
the last chunk is acknowledged: until then nobody can see any of it. No key is ever used twice, so
that asking again does no harm, and a request that comes late neither changes nor deletes what
others have written since.

The methods block, in the threads of storage. The clients are asynchronous and live on an event loop
of their own, in one thread: whatever a server does, a request is given up when its time is over.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import random
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from aiosd.blobdir import Directory, FileDraft

T = TypeVar("T")

log = logging.getLogger(__name__)

TRIES: Final = 3
PAUSE: Final = 0.2
"""Seconds before the second try, twice that before the third; half of it is left to chance."""
GRACE: Final = 1.0
"""Seconds after which a request that does not even let itself be cancelled is left alone."""
RATE: Final = 1 << 20
"""Bytes a second below which a large blob counts as stuck."""
ROOM: Final = 1 << 62


class Unreachable(OSError):
    """The server could not be asked, or says that it can't answer now: worth another try."""


class Shelf(Protocol):
    """A store of chunks by name. Names are STORE/KEY/NUMBER.

    Raises FileNotFoundError for what is not there, Unreachable, or OSError for what no other try
    would change; messages hold no credential. chunk: bytes of one, a multiple of blobs.PIECE.
    """

    chunk: int

    async def put(self, name: str, data: bytes) -> None:
        """Write a chunk; returns when it is durable."""

    async def get(self, name: str, start: int, size: int) -> bytes:
        """Return bytes of a chunk, fewer only at its end."""

    async def delete(self, prefix: str) -> None:
        """Delete all chunks whose names begin so."""

    async def names(self, prefix: str) -> list[str]:
        """Return, each once, what follows the prefix in names that begin so, up to a slash."""

    async def close(self) -> None:
        """Close connections."""


class Remote:
    """A back end that keeps chunks on a shelf. store: the first word of all names.

    timeout: seconds for one chunk, tries included.
    """

    def __init__(
        self, name: str, shelf: Shelf, local: Directory, store: Callable[[], str], timeout: float
    ) -> None:
        self._name = name
        self._shelf = shelf
        self._local = local
        self._store = store
        self._timeout = timeout
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name=f"aiosd-{name}", daemon=True
        )
        self._thread.start()

    def draft(self) -> FileDraft:
        """Begin a file on the local disk."""
        return self._local.draft(self._send)

    def open(self, key: str) -> RemoteReader:
        """Return what reads a blob; the server is asked at the first read."""
        return RemoteReader(self, key)

    def read(self, key: str, offset: int, size: int) -> bytes:
        """Read at a place, within one chunk."""
        number, start = divmod(offset, self._shelf.chunk)
        name = f"{self._store()}/{key}/{number}"
        return self._ask(lambda: self._shelf.get(name, start, size), self._timeout)

    def delete(self, key: str) -> None:
        """Delete all chunks of a key."""
        self._ask(lambda: self._shelf.delete(f"{self._store()}/{key}/"), self._timeout)

    def all(self) -> Iterator[str]:
        """Yield the keys of which there is something."""
        yield from self._ask(lambda: self._shelf.names(f"{self._store()}/"), self._timeout)

    def free(self) -> int:
        """Nobody knows."""
        return ROOM

    def close(self) -> None:
        """Close connections, end the thread."""
        with suppress(OSError):
            self._ask(self._shelf.close, GRACE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(GRACE)
        if not self._thread.is_alive():
            self._loop.close()

    def _send(self, draft: Path, digest: str) -> str:
        """Send a finished draft's file in chunks; return its key."""
        key = f"{digest}-{secrets.token_hex(8)}"
        end = time.monotonic() + self._timeout + draft.stat().st_size / RATE
        number = 0
        try:
            with draft.open("rb") as file:
                while data := file.read(self._shelf.chunk):
                    self._put(f"{self._store()}/{key}/{number}", data, end)
                    number += 1
        except OSError:
            self._abandon(key)
            raise
        draft.unlink(missing_ok=True)
        return key

    def _put(self, name: str, data: bytes, end: float) -> None:
        seconds = min(self._timeout, end - time.monotonic())
        self._ask(lambda: self._shelf.put(name, data), max(0.0, seconds))

    def _abandon(self, key: str) -> None:
        """Have deleted, by and by, what was sent of a blob; the next start finds what stays."""

        async def delete() -> None:
            with suppress(OSError):
                await self._within(
                    lambda: self._shelf.delete(f"{self._store()}/{key}/"), self._timeout
                )

        asyncio.run_coroutine_threadsafe(delete(), self._loop)

    def _ask(self, deed: Callable[[], Awaitable[T]], seconds: float) -> T:
        """Have the other thread do something, within its time; raises OSError."""
        future: Future[T] = asyncio.run_coroutine_threadsafe(
            self._within(deed, seconds), self._loop
        )
        try:
            return future.result(seconds + GRACE)
        except FutureTimeout:
            future.cancel()
            raise self._late(seconds) from None

    async def _within(self, deed: Callable[[], Awaitable[T]], seconds: float) -> T:
        try:
            async with asyncio.timeout(seconds):
                return await self._persist(deed)
        except TimeoutError:
            raise self._late(seconds) from None

    async def _persist(self, deed: Callable[[], Awaitable[T]]) -> T:
        """Try several times. Whatever is asked here may be asked again."""
        for count in range(1, TRIES):
            try:
                return await deed()
            except Unreachable as error:
                log.debug("storage: %s: try %d: %s", self._name, count, error.strerror)
                await asyncio.sleep(PAUSE * count * random.uniform(0.5, 1.0))
        return await deed()

    def _late(self, seconds: float) -> OSError:
        return TimeoutError(
            errno.ETIMEDOUT,
            f"the back end {self._name!r} of storage has not answered within {seconds:g} s "
            "([storage] timeout); is its server well?",
        )


class RemoteReader:
    """Reads a blob piece by piece."""

    def __init__(self, remote: Remote, key: str) -> None:
        self._remote = remote
        self._key = key

    def read(self, offset: int, size: int) -> bytes:
        """Read at a place, within one chunk."""
        return self._remote.read(self._key, offset, size)

    def close(self) -> None:
        """Nothing is held."""


def unreachable(what: str, error: BaseException | str, *secret: str) -> Unreachable:
    """Return an error worth another try, in one line that holds none of the secrets."""
    return Unreachable(errno.EIO, f"{what}: {line(error, *secret)}")


def line(error: Any, *secret: str) -> str:
    """Return an error's first line, shortened, without the secrets."""
    text = str(error).strip().partition("\n")[0][:300] or type(error).__name__
    for word in filter(None, secret):
        text = text.replace(word, "***")
    return text
