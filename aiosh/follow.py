"""An agent in the foreground: its output shown as it comes, the terminal's keys as its signals.

    status = follow(aid, started=True)

Ctrl-C sends INT to the agent, pressed again TERM, then KILL. Ctrl-Z suspends it: `aiosctl` stops
with it and resumes it when its own shell continues it; in aiosh the agent becomes a stopped job.
What must hold: signals go out on a connection of their own, since the handler may interrupt the
reading of the other one at any point.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Final

from aiosh import link, signals
from aiosh.tables import print_json_line

if TYPE_CHECKING:
    from aios import Kernel
    from aiosd.abi.process import ExitStatus, LogRecord

INTERRUPTS: Final = ("INT", "TERM", "KILL")
"""What the first, the second and every further Ctrl-C sends."""


class Suspended(Exception):
    """Ctrl-Z was pressed and the agent is suspended; `shown` records of its output are out."""

    def __init__(self, aid: int, shown: int) -> None:
        super().__init__(aid)
        self.aid = aid
        self.shown = shown


@dataclass
class Foreground:
    """What is followed: how many records of its output were shown, how often Ctrl-C was hit."""

    aid: int
    shown: int = 0
    interrupts: int = 0


class _Stop(Exception):
    """Raised out of the reading by Ctrl-Z, inside aiosh."""


leave_on_stop = False
"""Whether Ctrl-Z returns to a prompt (aiosh) or stops this very process (aiosctl)."""


def follow(aid: int, *, skip: int = 0, json: bool = False) -> int:
    """Show an agent's output until it ends, then reap it; return the status to pass on.

    skip: records of its output that were shown before. json: print records as JSON lines and the
    exit status as the last. Raises Suspended after Ctrl-Z in aiosh, OSError from the calls.
    """
    here = Foreground(aid, skip)
    try:
        with _keys(here), link.kernel() as kernel:
            _output(kernel, here, json)
            ended = kernel.wait(aid=aid)
    except _Stop:
        raise Suspended(aid, here.shown) from None
    if json:
        print_json_line(ended)
    return _passed_on(ended)


def _passed_on(ended: ExitStatus | None) -> int:
    if ended is None:
        return 1
    if ended.code is None and not ended.signal:
        print(f"agent {ended.aid} ended: {ended.reason or 'nobody knows how'}", file=sys.stderr)
    return signals.ending(ended.code, ended.signal)


def _output(kernel: Kernel, here: Foreground, json: bool) -> None:
    for place, record in enumerate(kernel.read_log(aid=here.aid, follow=True)):
        if place >= here.shown:
            show_record(record, json)
            here.shown = place + 1


def show_record(record: LogRecord, json: bool = False) -> None:
    """Print one record of output: what was stdout to stdout, the rest to stderr."""
    if json:
        print_json_line(record)
        return
    file = sys.stdout if record.stream == "out" else sys.stderr
    file.write(record.text if record.stream != "log" else f"[log] {record.text}\n")
    file.flush()


@contextmanager
def _keys(here: Foreground) -> Iterator[None]:
    """Give Ctrl-C and Ctrl-Z their meaning for the agent while the block runs."""
    handlers: dict[int, Callable[[int, FrameType | None], None]] = {
        signal.SIGINT: lambda *_: _interrupt(here),
        signal.SIGTERM: lambda *_: _pass(here.aid, "TERM"),
        signal.SIGTSTP: lambda *_: _stop(here.aid),
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(here: Foreground) -> None:
    name = INTERRUPTS[min(here.interrupts, len(INTERRUPTS) - 1)]
    here.interrupts += 1
    _pass(here.aid, name)


def _pass(aid: int, name: str) -> None:
    # The agent may have ended just now, or the daemon be gone: the reading finds that out itself.
    with suppress(OSError, link.Unreachable), link.kernel() as kernel:
        kernel.kill(aid=aid, signal=name)


def _stop(aid: int) -> None:
    with suppress(OSError, link.Unreachable), link.kernel() as kernel:
        kernel.suspend_agent(aid=aid)
    if leave_on_stop:
        raise _Stop
    # As any program does on Ctrl-Z: stop, and go on together with what it was doing.
    os.kill(os.getpid(), signal.SIGSTOP)
    with suppress(OSError, link.Unreachable), link.kernel() as kernel:
        kernel.resume_agent(aid=aid)
