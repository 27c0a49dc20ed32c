"""Signals: what `kill` means for an agent.

A signal acts on two things, the agent's requests and its process group:

    INT TERM    its generations end with the text they have    the group gets the signal
    HUP                                                        the group gets the signal
    KILL        its requests are cancelled                     everything it started is killed
    STOP TSTP   its generations freeze between two tokens      the group gets the signal
    CONT        its generations go on                          the group gets the signal
    0           nothing happens: is it there, and may I signal it?

The kernel never signals a process that it did not start. A foreign or forked agent ends, as an
agent, by what would end a process (HUP, INT, TERM, KILL): its connections are closed and its
program finds them so. STOP takes service away from it until CONT.

As in Unix a stopped program hears HUP, INT and TERM once it is continued, a zombie takes any
signal without effect, and a dead agent is ESRCH.
"""

from __future__ import annotations

import asyncio
import errno
import signal
import time
from typing import Final

from aiosd.abi.process import Kill, ResumeAgent, SetStatus, SuspendAgent
from aiosd.access import Access, Caller
from aiosd.process import Ending, Process
from aiosd.reaper import Reaper
from aiosd.roster import Note, Roster

EXISTS: Final = 0
SIGNALS: Final = {
    "0": EXISTS,
    **{
        sig.name.removeprefix("SIG"): int(sig)
        for sig in (
            signal.SIGHUP,
            signal.SIGINT,
            signal.SIGKILL,
            signal.SIGTERM,
            signal.SIGCONT,
            signal.SIGSTOP,
            signal.SIGTSTP,
        )
    },
}
NAMES: Final = {number: name for name, number in SIGNALS.items()}
STOPS: Final = (signal.SIGSTOP, signal.SIGTSTP)


def parse_signal(text: str) -> int:
    """Return a signal's number from its name, with or without SIG, in any case, or its number.

    EINVAL lists those that an agent can be sent.
    """
    word = text.strip().upper().removeprefix("SIG")
    number = int(word) if word.isascii() and word.isdigit() else SIGNALS.get(word, -1)
    if number not in NAMES:
        known = ", ".join(f"{name} ({number})" for name, number in SIGNALS.items() if number)
        raise OSError(errno.EINVAL, f"signal: no signal {text!r}; there are {known}, and 0")
    return number


class Signals:
    """Sends signals to agents."""

    def __init__(self, roster: Roster, reaper: Reaper, access: Access) -> None:
        self._roster = roster
        self._reaper = reaper
        self._access = access

    async def sys_kill(self, caller: Caller, args: Kill) -> None:
        """Send a signal; answered once it was sent and its effect on the table is durable."""
        number = parse_signal(args.signal)
        if args.generation and number != signal.SIGINT:
            raise OSError(errno.EINVAL, "generation: only INT can end a generation alone")
        process = self._target(args.aid)
        if process.ending is not None or number == EXISTS:
            return
        if args.generation:
            self._roster.listener.agent_interrupted(process.aid)
        else:
            await self._send(process, number, caller)

    sys_kill.lasting = True  # type: ignore[attr-defined]

    async def sys_suspend_agent(self, caller: Caller, args: SuspendAgent) -> None:
        """Suspend an agent; nothing more when it is suspended already."""
        await self._send(self._roster.get_alive(args.aid), signal.SIGSTOP, caller)

    async def sys_resume_agent(self, caller: Caller, args: ResumeAgent) -> None:
        """Resume an agent; nothing more when it is not suspended."""
        await self._send(self._roster.get_alive(args.aid), signal.SIGCONT, caller)

    async def sys_set_status(self, caller: Caller, args: SetStatus) -> None:
        """Suspend or resume where the caller may, or set the calling agent's own note."""
        process = self._roster.get_alive(args.aid)
        verbs = {"suspended": signal.SIGSTOP, "running": signal.SIGCONT}
        if number := verbs.get(args.status):
            self._access.over(caller, args.aid, "set_status")
            await self._send(process, number, caller)
            return
        if caller.aid != args.aid:
            raise PermissionError(
                errno.EPERM,
                f"set_status: only agent {args.aid} sets its note; "
                'others may say "suspended" or "running"',
            )
        process.note = args.status
        await self._roster.save(
            process, notes=[Note("agent.note", process.aid, {"note": args.status})]
        )

    async def _send(self, process: Process, number: int, by: Caller) -> None:
        """Do what a signal means, all of it, also when the caller no longer waits for it."""
        note = Note("agent.signal", process.aid, {"signal": NAMES[number], "by": str(by)})
        if number in STOPS:
            work = self._stop(process, number, note)
        elif number == signal.SIGCONT:
            work = self._continue(process, note)
        elif number == signal.SIGKILL:
            work = self._kill(process, note)
        else:
            work = self._end(process, number, note)
        await asyncio.shield(self._reaper.run(work))

    def repeat(self, process: Process) -> None:
        """Make sure of a group's STOP or CONT, which a kernel that died may not have sent."""
        if process.shim is not None:
            process.shim.signal(signal.SIGSTOP if process.stopped else signal.SIGCONT)

    async def _stop(self, process: Process, number: int, note: Note) -> None:
        # Durable before the group hears it: a kernel that comes back repeats the signal.
        first, process.stopped = not process.stopped, True
        self._roster.listener.agent_stopped(process.aid)
        try:
            await self._roster.save(process, notes=[note, *_changed(process, first, "T")])
        finally:
            if process.shim is not None:
                process.shim.signal(number)

    async def _continue(self, process: Process, note: Note) -> None:
        first, process.stopped = process.stopped, False
        try:
            await self._roster.save(process, notes=[note, *_changed(process, first, "S")])
        finally:
            if process.shim is not None:
                process.shim.signal(signal.SIGCONT)
            self._roster.listener.agent_continued(process.aid)

    async def _kill(self, process: Process, note: Note) -> None:
        self._reaper.withdraw(process)
        if process.shim is not None:
            process.shim.kill_tree()
        await self._roster.save(notes=[note])
        if not process.has_process:
            await self._end_here(process, signal.SIGKILL, "killed")

    async def _end(self, process: Process, number: int, note: Note) -> None:
        if number != signal.SIGHUP:
            self._roster.listener.agent_interrupted(process.aid)
        if process.shim is not None:
            process.shim.signal(number)
        await self._roster.save(notes=[note])
        if not process.has_process:
            await self._end_here(process, number, "signalled")

    async def _end_here(self, process: Process, number: int, reason: str) -> None:
        await self._reaper.end(process, Ending(reason, time.time(), signal=number))

    def _target(self, aid: int) -> Process:
        process = self._roster.get(aid)
        if process.dead:
            raise ProcessLookupError(errno.ESRCH, f"agent {aid} has ended and is dead (state X)")
        return process


def _changed(process: Process, first: bool, state: str) -> list[Note]:
    return [Note("agent.state", process.aid, {"state": state})] if first else []
