"""One HTTP connection, with less patience than uvicorn's own: heads are bounded, and slow peers go.

A peer has `request_timeout` to send a request's head, of at most MAX_HEAD bytes, and when it does
not read, `send_timeout` until it goes on. The guard looks after bodies.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD: Final = 64 << 10
"""Bytes of a request's line and headers."""


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, with timers. request_timeout and send_timeout are set before serving."""

    request_timeout: ClassVar[float] = 30.0
    send_timeout: ClassVar[float] = 60.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        self._head = 0
        self._waiting: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Count what comes before a head is whole."""
        super().data_received(data)
        if self._waiting is not None:
            self._head += len(data)
            if self._head > MAX_HEAD:
                self.transport.abort()

    def on_message_begin(self) -> None:
        """A request begins: its head must come in time."""
        super().on_message_begin()
        if self._waiting is None:
            self._wait_for_head()

    def on_headers_complete(self) -> None:
        """The head is there."""
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        super().on_headers_complete()

    def pause_writing(self) -> None:
        """The peer does not read."""
        super().pause_writing()
        if self._stuck is None:
            self._stuck = self.loop.call_later(self.send_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        """It has read."""
        super().resume_writing()
        self._unstuck()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._unstuck()
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        self._head = 0
        self._waiting = self.loop.call_later(self.request_timeout, self.transport.abort)

    def _unstuck(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None
