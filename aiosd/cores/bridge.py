"""The bridge to the endpoints' process: started with the first remote core, and again if it dies.

    id = bridge.ask(lambda id: p.Ask(id, ...), hear)   # hear(event), until an end came or `drop`

What must hold: whoever asked hears an end, be it that the process has died or fallen silent; a
process that was started again knows all cores before anything is asked of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from itertools import count
from typing import Any, ClassVar, Final

import msgspec

from aiosd.cores.worker import Worker
from aiosd.endpoints import protocol as p

log = logging.getLogger(__name__)

NICE: Final = 5
"""Below the kernel, above workers that compute."""
LOOK: Final = 10.0
"""Seconds between two looks whether the process is well, while something is asked of it."""
SILENCE: Final = 60.0
"""Seconds without a word after which it hangs: importing a client takes a few."""
PAUSE: Final = 0.5
"""Seconds before it is started again."""

Hear = Callable[[p.Event], None]


class _Process(Worker):
    program: ClassVar[str] = "aiosd.endpoints"
    niceness: ClassVar[str] = "AIOS_ENDPOINTS_NICE"
    leave: ClassVar[msgspec.Struct] = p.Quit()

    def _decode(self, payload: bytes | bytearray) -> Any:
        return p.decode_event(payload)


class Bridge:
    """The process, and who waits for what of it."""

    def __init__(self) -> None:
        self.restarts = 0
        self._loop = asyncio.get_running_loop()
        self._process: _Process | None = None
        self._starting: asyncio.Task[None] | None = None
        self._not_before = 0.0
        self._ids = count(1)
        self._heard: dict[int, Hear] = {}
        self._cores: dict[str, p.Setup] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def pid(self) -> int:
        """The process's id, 0 when there is none."""
        return self._process.pid if self._process else 0

    def open(self, core: str, setup: p.Setup, hear: Hear) -> None:
        """Have the client of a core made, now and in each process to come."""
        self._cores[core] = setup
        self.ask(lambda id: p.Open(id, core, setup), hear)

    def shut(self, core: str) -> None:
        """A core is no more; with the last one the process goes."""
        if self._cores.pop(core, None) is None:
            return
        self.tell(p.Shut(core))
        if not self._cores:
            self._leave()

    def ask(self, make: Callable[[int], p.Command], hear: Hear) -> int:
        """Send a command that is answered; returns its id."""
        id = next(self._ids)
        self._heard[id] = hear
        command = make(id)
        wait = self._not_before - self._loop.time()
        if self._process is not None or wait <= 0:
            self._send(command)
        else:
            self._loop.call_later(wait, self._send_later, id, command)
        return id

    def tell(self, command: p.Command) -> None:
        """Send what has no answer, if there is anybody to hear it."""
        if self._process is not None:
            self._process.send(command)

    def drop(self, id: int) -> None:
        """Hear nothing more of what was asked, and have it stopped."""
        if self._heard.pop(id, None) is not None:
            self.tell(p.Stop(id))

    async def close(self) -> None:
        """End the process."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        process, self._process = self._process, None
        if self._starting is not None:
            await asyncio.gather(self._starting, return_exceptions=True)
        if process is not None:
            await process.stop(2.0)

    # Inside.

    def _send_later(self, id: int, command: p.Command) -> None:
        if id in self._heard and not self._closed:
            self._send(command)

    def _send(self, command: p.Command) -> None:
        if self._process is None:
            self._start(command)
        assert self._process is not None
        self._process.send(command)
        if self._timer is None:  # it owed nothing until now
            self._process.heard = self._loop.time()
            self._timer = self._loop.call_later(LOOK, self._look)

    def _start(self, first: p.Command) -> None:
        """Start the process and tell it of all cores; those that can't be opened say so when used.

        first: what is sent right behind.
        """
        process = self._process = _Process("endpoints", self._take, self._died)
        self._starting = self._loop.create_task(process.start(NICE))
        self._starting.add_done_callback(lambda task: self._started(process, task))
        opening = first.core if isinstance(first, p.Open) else ""
        for core, setup in self._cores.items():
            if core != opening:
                process.send(p.Open(next(self._ids), core, setup))

    def _started(self, process: _Process, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and self._process is process:
            self._died(f"it can't be started: {error}", False)

    def _take(self, event: p.Event) -> None:
        hear = self._heard.get(event.id)
        if hear is None:
            return  # nobody waits any more
        if not isinstance(event, p.Piece | p.Metered):
            del self._heard[event.id]
        hear(event)

    def _died(self, reason: str, killed: bool) -> None:
        self._process = None
        self._not_before = self._loop.time() + PAUSE
        if self._closed:
            return
        self.restarts += 1
        log.warning("endpoints: the process died: %s", reason)
        waiting, self._heard = self._heard, {}
        for id, hear in waiting.items():
            hear(p.Failed(id, "cut", f"the process that speaks to providers died: {reason}"))

    def _look(self) -> None:
        """Ask a process that owes something whether it is well; one that is silent is killed."""
        self._timer = None
        process = self._process
        if process is None or not self._heard:
            return
        if self._loop.time() - process.heard > SILENCE:
            process.kill(f"silent for {SILENCE:.0f} s")
            return
        process.send(p.Check(next(self._ids), ""))
        self._timer = self._loop.call_later(LOOK, self._look)

    def _leave(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            self._starting = self._loop.create_task(process.stop(2.0))
