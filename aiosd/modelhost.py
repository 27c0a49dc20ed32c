"""The host of a model: a warm host that computes several calls at once, of whoever asked.

    host = await launch(ModelHost, key, work, hidden)
    events = await host.compute(batch, seconds)     # what is answered to each call, in order

Like any host it may hang, lie or die: then `compute` raises, and it takes no more calls.
"""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING

from aiosd.abi import toolwire as w
from aiosd.toolpool import Host
from aiosd.toolrun import INSIDE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiosd.toolcores import Call


class ModelHost(Host):
    """A host that computes several calls at once."""

    served = 0
    _wanted: dict[int, w.Done | w.Failed | None] = {}

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    async def compute(self, batch: Sequence[Call], seconds: float) -> list[w.Done | w.Failed]:
        """Compute a batch; return what is answered to each call. Raises OSError of the host."""
        self.printed()  # what it said in between belongs to nobody
        first = self._tickets + 1
        self._tickets += len(batch)
        calls = [self._call(first + at, call) for at, call in enumerate(batch)]
        self._wanted = dict.fromkeys((call.ticket for call in calls), None)
        self._answer = self._loop.create_future()
        if self.broken:
            raise await self._died()
        assert self._transport is not None
        try:
            packed = w.pack(calls[0] if self._tool.batch == 1 else w.Batch(calls))
        except ValueError as error:
            raise OSError(errno.EINVAL, f"tool {self._name}: {error}") from None
        self._transport.write(packed)
        await self._wait(seconds)
        self.served += len(batch)
        return [event for event in self._wanted.values() if event is not None]

    def printed(self) -> tuple[str, str]:
        """Return what it has written to stdout and stderr since it was last asked."""
        pipes = (self._process.stdout, self._process.stderr)
        stdout, stderr = (pipe.take().decode(errors="replace") for pipe in pipes)
        return stdout, stderr

    def unwanted(self, grace: float) -> None:
        """Nobody waits for the batch any more: it has `grace` seconds to be interrupted."""
        if self._answer.done() or self._transport is None or self.broken:
            return
        for ticket in self._wanted:
            self._transport.write(w.pack(w.Cancel(ticket)))
        self._loop.call_later(grace, self._interrupt, self._answer)

    def _interrupt(self, answer: asyncio.Future[w.Event]) -> None:
        if self._answer is answer and not answer.done():
            self._give_up(0.0)

    def _call(self, ticket: int, call: Call) -> w.Call:
        boxed = call.work.tool.isolation == "full"
        folder = f"{INSIDE}/{os.path.basename(call.folder)}" if boxed else call.folder
        return w.Call(ticket, self._name, call.given, folder, call.work.seconds)

    def _take(self, event: w.Event) -> None:
        """Take an answer in; the last one wakes who waits."""
        if not self._tickets:
            super()._take(event)
            return
        if not isinstance(event, w.Done | w.Failed) or self._wanted.get(event.ticket, event):
            self._fail(self._lied("answered what it was not asked"))
            return
        self._wanted[event.ticket] = event
        if all(self._wanted.values()) and not self._answer.done():
            self._answer.set_result(event)
