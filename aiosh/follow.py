"""An agent in the foreground: its output shown as it comes, the terminal's keys as its signals.

    status = follow(lambda: spawn(...).aid)

Ctrl-C sends INT to the agent, pressed again TERM, then KILL. Ctrl-Z suspends it: `aiosctl` stops
with it and resumes it when its own shell continues it; in aiosh the agent becomes a stopped job.
What must hold: signals go out on a connection of their own, since the handler may interrupt the
reading of the other one at any point.
"""

from __future__ import annotations

import os
import signal
import sys
import time
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

PATIENCE_S: Final = 20.0
"""How long a daemon that went away while an agent is followed may take to come back."""

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
    """What is followed: how many records of its output were shown, how often Ctrl-C was hit.

    aid is 0 until the agent has begun: keys pressed before that count as soon as it has.
    """

    aid: int = 0
    shown: int = 0
    interrupts: int = 0
    stop: bool = False


class _Stop(Exception):
    """Raised out of the reading by Ctrl-Z, inside aiosh."""


leave_on_stop = False
"""Whether Ctrl-Z returns to a prompt (aiosh) or stops this very process (aiosctl)."""


def follow(begin: Callable[[], int], *, skip: int = 0, json: bool = False) -> int:
    """Show an agent's output until it ends, then reap it; return the status to pass on.

    begin: starts or resumes the agent and returns its aid. skip: records of its output that were
    shown before. json: print records as JSON lines and the exit status as the last. Raises
    Suspended after Ctrl-Z in aiosh, OSError from the calls, and what `begin` raises.
    """
    here = Foreground(shown=skip)
    try:
        with _keys(here):
            here.aid = begin()
            _catch_up(here)
            ended = _to_the_end(here, json)
    except _Stop:
        raise Suspended(here.aid, here.shown) from None
    if json:
        print_json_line(ended)
    return _passed_on(ended)


def _catch_up(here: Foreground) -> None:
    """Act on the keys that were pressed before there was an agent."""
    if here.interrupts:
        _pass(here.aid, INTERRUPTS[min(here.interrupts, len(INTERRUPTS)) - 1])
    if here.stop:
        _stop(here)


def _to_the_end(here: Foreground, json: bool) -> ExitStatus | None:
    """Show the output and reap the agent; when the daemon restarts meanwhile, go on with it."""
    until = 0.0
    while True:
        try:
            with link.kernel() as kernel:
                until = 0.0
                _output(kernel, here, json)
                return kernel.wait(aid=here.aid)
        except link.Unreachable:
            now = time.monotonic()
            if not until:
                print(f"aiosd is away; agent {here.aid} goes on", file=sys.stderr)
                until = now + PATIENCE_S
            if now > until:
                raise
            time.sleep(0.1)


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
        signal.SIGTERM: lambda *_: _terminate(here),
        signal.SIGTSTP: lambda *_: _stop(here),
    }
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        del handlers[signal.SIGINT]  # a script's background command: Ctrl-C is not for it
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(here: Foreground) -> None:
    name = INTERRUPTS[min(here.interrupts, len(INTERRUPTS) - 1)]
    here.interrupts += 1
    link.below_the_key()
    if here.aid:
        _pass(here.aid, name)
    elif here.interrupts > 1:
        raise KeyboardInterrupt  # the daemon does not answer: nobody waits for it against his will


def _terminate(here: Foreground) -> None:
    if not here.aid:
        raise KeyboardInterrupt
    _pass(here.aid, "TERM")


def _pass(aid: int, name: str) -> None:
    # The agent may have ended just now, or the daemon be gone: the reading finds that out itself.
    with suppress(OSError, link.Unreachable), link.kernel() as kernel:
        kernel.kill(aid=aid, signal=name)


def _stop(here: Foreground) -> None:
    if not here.aid:
        here.stop = True
        return
    with suppress(OSError, link.Unreachable), link.kernel() as kernel:
        kernel.suspend_agent(aid=here.aid)
    if leave_on_stop:
        raise _Stop
    # As any program does on Ctrl-Z: stop, and go on together with what it was doing.
    os.kill(os.getpid(), signal.SIGSTOP)
    with suppress(OSError, link.Unreachable), link.kernel() as kernel:
        kernel.resume_agent(aid=here.aid)
