"""The bridge to the endpoints' process: started with the first remote core, and again if it dies.

    id = bridge.ask(lambda id: p.Ask(id, ...), hear)   # hear(event), until an end came or `drop`

What must hold: whoever asked hears an end, be it that the process has died or fallen silent, and is
told when nothing can have been done of it; a process that was started again knows all cores before
anything is asked of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from itertools import count
from typing import Any, ClassVar, Final

import msgspec
import psutil

from aiosd.cores.worker import Worker
from aiosd.endpoints import protocol as p

log = logging.getLogger(__name__)

NICE: Final = 5
"""Below the kernel, above workers that compute."""
LOOK: Final = 2.0
"""Seconds between two looks whether the process is well, while something is asked of it."""
LATE: Final = 1.0
"""Seconds by which a look comes late that say that the kernel itself stood still."""
BUSY: Final = 6.0
"""How many times as long a process may be silent that computes, or waits for its disk."""
PAUSE: Final = 0.5
"""Seconds before it is started again."""

Hear = Callable[[p.Event], None]


class _Process(Worker):
    program: ClassVar[str] = "aiosd.endpoints"
    niceness: ClassVar[str] = "AIOS_ENDPOINTS_NICE"
    leave: ClassVar[msgspec.Struct] = p.Quit()
    spoke = False  # before it has, it has done nothing

    @property
    def gone(self) -> bool:
        """Whether it is dead, or about to be, and hears nothing any more."""
        return self._transport is not None and self._transport.is_closing()

    def _decode(self, payload: bytes | bytearray) -> Any:
        self.spoke = True
        return p.decode_event(payload)


def hangs(silent: float, bears: float, *, busy: bool) -> bool:
    """Whether a process hangs that has owed a word for so many seconds, and may for `bears`.

    busy: it computes, waits for a processor or for its disk: it loads a client, or the machine has
    no time for it, and that is no hang yet.
    """
    return silent > (BUSY * bears if busy else bears)


class Bridge:
    """The process, and who waits for what of it. silence: seconds for which it may owe a word."""

    def __init__(self, silence: float = 10.0) -> None:
        self.silence = silence
        self.restarts = 0
        self._loop = asyncio.get_running_loop()
        self._process: _Process | None = None
        self._starting: asyncio.Task[None] | None = None
        self._start_timer: asyncio.TimerHandle | None = None
        self._not_before = 0.0
        self._ids = count(1)
        self._heard: dict[int, Hear] = {}
        self._later: dict[int, p.Command] = {}  # of those heard, what the next process is asked
        self._cores: dict[str, p.Setup] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._questioned = 0.0  # when the process was last asked whether it is well
        self._patient = 0.0  # since when it is silent, as far as that is its own doing
        self._due = 0.0  # when it is looked after next
        self._used = 0.0  # seconds that it had computed when it was last found silent
        self._closed = False

    @property
    def pid(self) -> int:
        """The process's id, 0 when there is none."""
        return self._process.pid if self._process else 0

    def open(self, core: str, setup: p.Setup, hear: Hear) -> int:
        """Have the client of a core made, now and in each process to come; as `ask`."""
        self._cores[core] = setup
        return self.ask(lambda id: p.Open(id, core, setup), hear)

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
        process, command = self._process, make(id)
        if process is not None and not process.gone:
            self._send(process, command)
        else:
            self._later[id] = command
            self._start_later()
        return id

    def tell(self, command: p.Command) -> None:
        """Send what has no answer, if there is anybody to hear it."""
        if self._process is not None:
            self._process.send(command)

    def drop(self, id: int) -> None:
        """Hear nothing more of what was asked, and have it stopped."""
        sent = self._later.pop(id, None) is None
        if self._heard.pop(id, None) is not None and sent:
            self.tell(p.Stop(id))

    async def close(self) -> None:
        """End the process."""
        self._closed = True
        for timer in (self._timer, self._start_timer):
            if timer is not None:
                timer.cancel()
        process, self._process = self._process, None
        if self._starting is not None:
            await asyncio.gather(self._starting, return_exceptions=True)
        if process is not None:
            await process.stop(2.0)

    # Inside.

    def _send(self, process: _Process, command: p.Command) -> None:
        process.send(command)
        if self._timer is None:  # it owed nothing until now
            self._question(process)

    def _question(self, process: _Process) -> None:
        self._questioned = self._patient = self._loop.time()
        process.send(p.Check(next(self._ids), ""))
        self._look_later()

    def _look_later(self) -> None:
        self._due = self._loop.time() + LOOK
        self._timer = self._loop.call_at(self._due, self._look)

    def _start_later(self) -> None:
        """Start a process when it is time, unless there is one or one is to be started."""
        if self._process is None and self._start_timer is None and not self._closed:
            self._start_timer = self._loop.call_at(self._not_before, self._start)

    def _start(self) -> None:
        """Start the process, tell it of all cores, and ask what waits for it.

        Cores that can't be opened say so when they are used.
        """
        self._start_timer = None
        later, self._later = self._later, {}
        if self._closed or not later:
            return
        process = self._process = _Process(
            "endpoints", self._take, lambda reason, _: self._died(process, reason)
        )
        self._starting = self._loop.create_task(process.start(NICE))
        self._starting.add_done_callback(lambda task: self._started(process, task))
        opening = {command.core for command in later.values() if isinstance(command, p.Open)}
        for core, setup in self._cores.items():
            if core not in opening:
                process.send(p.Open(next(self._ids), core, setup))
        for command in later.values():
            self._send(process, command)

    def _started(self, process: _Process, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._died(process, f"it can't be started: {error}")

    def _take(self, event: p.Event) -> None:
        hear = self._heard.get(event.id)
        if hear is None:
            return  # nobody waits any more
        if not isinstance(event, p.Piece | p.Metered):
            del self._heard[event.id]
        hear(event)

    def _died(self, process: _Process, reason: str) -> None:
        if self._closed or self._process is not process:
            return
        self._process = None
        self._not_before = self._loop.time() + PAUSE
        self.restarts += 1
        log.warning("endpoints: the process died: %s", reason)
        kind: p.Kind = "lost" if process.spoke else "unreachable"
        asked = [id for id in self._heard if id not in self._later]
        for id, hear in [(id, self._heard.pop(id)) for id in asked]:
            hear(p.Failed(id, kind, f"the process that speaks to providers died: {reason}"))
        if self._later:
            self._start_later()

    def _look(self) -> None:
        """Ask a process that owes something whether it is well; one that does not say is killed.

        It counts from the question, and anew where the kernel stood still itself: it has not heard
        for as long, whatever was said.
        """
        self._timer = None
        process = self._process
        if process is None or not self._heard:
            return
        now = self._loop.time()
        if process.heard >= self._questioned:
            self._question(process)
            return
        if now - self._due > LATE:
            self._patient = now
        if hangs(now - self._patient, self.silence, busy=self._busy(process.pid)):
            process.kill(f"silent for {now - self._patient:.0f} s")
        else:
            self._look_later()

    def _busy(self, pid: int) -> bool:
        """Whether the process has computed since the last look, will now, or waits for its disk."""
        try:
            seen = psutil.Process(pid)
            used, state = sum(seen.cpu_times()[:2]), seen.status()
        except psutil.Error:
            return False
        before, self._used = self._used, used
        return used > before or state in (psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP)

    def _leave(self) -> None:
        """End the process; whoever still waits for something was told by who asked for it."""
        self._heard.clear()
        self._later.clear()
        process, self._process = self._process, None
        if process is not None:
            self._starting = self._loop.create_task(process.stop(2.0))
