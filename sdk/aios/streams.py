"""What a streaming call gives: its chunks one by one, and in the end its reply.

    with kernel.watch() as events:
        for event in events: ...

    story = kernel.llm_generate("Tell a story.", stream=True)
    for chunk in story:
        print(chunk.text, end="")
    story.reply.usage

A stream that is left early (closed, or simply dropped) is cancelled in the kernel. A generation
goes on when the connection was lost, or its kernel: the next chunk is the one that would have come.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from aios.session import InFlight
from aiosd.abi.inference import Chunk

C = TypeVar("C")
R = TypeVar("R")
S = TypeVar("S", bound="_Flow[Any, Any]")


class Source(Protocol):
    """What a stream needs of the connection that it comes over."""

    def wait(self, pending: InFlight) -> None:
        """Return when something can be taken from the stream."""

    def cancel(self, pending: InFlight) -> None:
        """Ask the kernel to end the stream."""

    def abandon(self, pending: InFlight) -> None:
        """Ask the kernel to end the stream, and forget it. Never blocks."""

    def resume(self, pending: InFlight, seen: int, error: OSError) -> InFlight:
        """Ask for the rest of a stream that was cut off; raises `error` when that can't be."""

    def moved(self) -> None:
        """Something came."""


class AsyncSource(Protocol):
    """The same for the asynchronous face; `start` makes the request."""

    async def start(self) -> InFlight:
        """Send the request."""

    async def wait(self, pending: InFlight) -> None:
        """Return when something can be taken from the stream."""

    def cancel(self, pending: InFlight) -> None:
        """Ask the kernel to end the stream."""

    def abandon(self, pending: InFlight) -> None:
        """Ask the kernel to end the stream, and forget it."""

    async def resume(self, pending: InFlight, seen: int, error: OSError) -> InFlight:
        """Ask for the rest of a stream that was cut off; raises `error` when that can't be."""

    def moved(self) -> None:
        """Something came."""


class _Flow(Generic[C, R]):
    """What both kinds of stream know about theirs."""

    _pending: InFlight | None = None
    _closed = False
    _wished = False  # its end was asked for
    _seen = -1  # tokens that came; -1: none yet

    @property
    def ended(self) -> bool:
        """Whether the last chunk has been taken and the reply is there."""
        return self._pending is not None and self._pending.done and not self._pending.chunks

    @property
    def reply(self) -> R:
        """The call's reply, once the stream has ended; RuntimeError before."""
        if self._pending is None or self._closed or not self._pending.done:
            raise RuntimeError("the stream has not ended: take its chunks first, or use result()")
        reply: R = self._pending.result()
        return reply

    def _take(self) -> C | None:
        """Return the next chunk that is there, None at the end; raise the stream's error."""
        assert self._pending is not None
        if self._pending.chunks:
            chunk: C = self._pending.chunks.popleft()
            if isinstance(chunk, Chunk):
                self._seen = chunk.index + (chunk.pieces or len(chunk.token_ids))
            return chunk
        self._pending.result()
        return None

    def _place(self, pending: InFlight) -> int:
        """Return the index of the first token that did not come."""
        return self._seen if self._seen >= 0 else int(getattr(pending.args, "resume", 0))


class Stream(_Flow[C, R], Iterator[C]):
    """An iterator over the chunks of a call; `reply` is its result once it has ended."""

    def __init__(self, source: Source, pending: InFlight) -> None:
        self._source = source
        self._pending: InFlight = pending

    def __iter__(self) -> Stream[C, R]:
        return self

    def __next__(self) -> C:
        while not self._closed:
            if not self._pending.ready:
                try:
                    self._source.wait(self._pending)
                except BaseException:
                    self.close()
                    raise
            try:
                chunk = self._take()
            except OSError as error:
                self._go_on(error)
                continue
            self._source.moved()
            if chunk is None:
                break
            return chunk
        raise StopIteration

    def _go_on(self, error: OSError) -> None:
        """Take the stream up again after an error, or raise it."""
        seen = self._place(self._pending)
        self._pending = self._source.resume(self._pending, seen, error)
        if self._wished:
            self._source.cancel(self._pending)

    def result(self) -> R:
        """Take what is left of the stream and return its reply."""
        for _ in self:
            pass
        return self.reply

    def cancel(self) -> None:
        """Ask the kernel to end the stream; what it still brings, and its reply, can be taken.

        A generation ends with finish_reason "cancelled"; other streams raise ECANCELED.
        """
        self._wished = True
        self._source.cancel(self._pending)

    def close(self) -> None:
        """Leave the stream: cancel it and take no more of it. Closing twice is fine."""
        if not self._closed:
            self._closed = not self.ended
            self._source.abandon(self._pending)

    def __enter__(self) -> Stream[C, R]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._pending.done:
            self.close()


class AsyncStream(_Flow[C, R], AsyncIterator[C]):
    """An asynchronous iterator over the chunks of a call.

    The request is made by the first use: `async for`, `async with`, or `await stream`.
    """

    def __init__(self, source: AsyncSource) -> None:
        self._source = source

    def __aiter__(self) -> AsyncStream[C, R]:
        return self

    async def __anext__(self) -> C:
        while not self._closed:
            pending = self._pending or await self._start()
            if not pending.ready:
                try:
                    await self._source.wait(pending)
                except BaseException:
                    self._leave()
                    raise
            try:
                chunk = self._take()
            except OSError as error:
                await self._go_on(pending, error)
                continue
            self._source.moved()
            if chunk is None:
                break
            return chunk
        raise StopAsyncIteration

    async def _go_on(self, pending: InFlight, error: OSError) -> None:
        """Take the stream up again after an error, or raise it."""
        self._pending = await self._source.resume(pending, self._place(pending), error)
        if self._wished:
            self._source.cancel(self._pending)

    async def result(self) -> R:
        """Take what is left of the stream and return its reply."""
        async for _ in self:
            pass
        return self.reply

    def cancel(self) -> None:
        """Ask the kernel to end the stream; what it still brings, and its reply, can be taken."""
        self._wished = True
        if self._pending is not None:
            self._source.cancel(self._pending)

    async def aclose(self) -> None:
        """Leave the stream: cancel it and take no more of it. Closing twice is fine."""
        self._leave()

    async def _start(self) -> InFlight:
        self._pending = await self._source.start()
        return self._pending

    def _leave(self) -> None:
        if not self._closed:
            self._closed = not self.ended
            if self._pending is not None:
                self._source.abandon(self._pending)

    def __await__(self) -> Generator[Any, None, AsyncStream[C, R]]:
        if self._pending is None and not self._closed:
            yield from self._start().__await__()
        return self

    async def __aenter__(self) -> AsyncStream[C, R]:
        return await self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave()

    def __del__(self) -> None:
        if self._pending is not None and not self._pending.done:
            self._leave()
