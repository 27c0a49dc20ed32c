"""Identity: how a connection becomes an agent, and what becomes of an agent without connections.

A spawned program finds a one-time ticket on its descriptor; the first hello with it uses it up and
gets the credential to re-attach with, which may be used any number of times, also by several
connections at once. A kernel that dies may have stored that and not told it: until the credential
is first used, the ticket is good once under each kernel. Foreign agents (register_agent) and forked
ones get that credential directly. Only digests are stored. A credential is of use to its agent's
own uid, the owner and root alone.

An agent with a process of ours ends when that does. A foreign or forked one has ended once its
last connection is closed and none has come back in time: REATTACH seconds; UNCLAIMED seconds for a
forked one that nobody has spoken for yet; the orphan timeout after a restart of the kernel.
"""

from __future__ import annotations

import asyncio
import errno
import time
from typing import Final

from aiosd.abi.process import (
    AuthenticateAgent,
    GetAid,
    Identity,
    SetAid,
)
from aiosd.access import Caller, digest, new_credential
from aiosd.killpoint import reach
from aiosd.process import Ending, Process
from aiosd.reaper import Reaper
from aiosd.roster import Roster

REATTACH: Final = 5.0
UNCLAIMED: Final = 600.0


class Identities:
    """Makes connections into agents, and ends agents that have lost theirs."""

    def __init__(self, roster: Roster, reaper: Reaper) -> None:
        self._roster = roster
        self._reaper = reaper
        self._redeemed: set[int] = set()  # agents whose ticket was used under this kernel
        self.reattach = REATTACH
        self.unclaimed = UNCLAIMED

    async def attach(self, caller: Caller, credential: str) -> tuple[Process, str]:
        """Make the caller the agent that a credential proves.

        Returns the process and the credential to re-attach with. EACCES when the credential is
        not valid, EINVAL when the connection is another agent already.
        """
        process = self._prove(caller, credential)
        if caller.aid not in (0, process.aid):
            raise OSError(
                errno.EINVAL,
                f"this connection is agent {caller.aid}; open another for agent {process.aid}",
            )
        if digest(credential) == process.ticket:
            return process, await self._use_ticket(process, caller)
        if process.ticket and digest(credential) == process.credential:  # it reached its owner
            self._roster.set_credentials(process, process.credential, "")
            self._redeemed.discard(process.aid)
            self._roster.save_soon(process)
        self.connect(process, caller)
        return process, credential

    async def sys_set_aid(self, caller: Caller, args: SetAid, session: object) -> Identity:
        """Re-attach the connection to an agent by its credential."""
        self._roster.get_alive(args.aid)
        if self._prove(caller, args.credential).aid != args.aid:
            raise PermissionError(errno.EACCES, f"the credential is not agent {args.aid}'s")
        process, _ = await self.attach(caller, args.credential)
        return process.identity()

    def sys_authenticate_agent(self, caller: Caller, args: AuthenticateAgent) -> Identity:
        """Say whose a credential is; EACCES when it is nobody's."""
        return self._prove(caller, args.credential).identity()

    def sys_get_aid(self, caller: Caller, args: GetAid) -> Identity:
        """Say which agent the caller is; ESRCH when it is none."""
        return self._roster.own(caller).identity()

    def connect(self, process: Process, caller: Caller) -> None:
        """Let the caller speak for an agent, and be of its user, until its connection closes."""
        process.stop_waiting()
        caller.aid, caller.uid, caller.gid = process.aid, process.uid, process.gid
        if caller not in process.connections:
            process.connections.add(caller)
            caller.on_close.append(lambda: self._disconnect(process, caller))

    def expect(self, process: Process, seconds: float, reason: str) -> None:
        """End an agent without connections, unless one comes within so many seconds."""
        process.stop_waiting()
        loop = asyncio.get_running_loop()
        process.grace = loop.call_later(seconds, self._give_up, process, reason)

    def _prove(self, caller: Caller, credential: str) -> Process:
        aid = self._roster.by_digest.get(digest(credential))
        process = self._roster.find(aid) if aid else None
        if process is not None and process.ticket == digest(credential):
            process = None if process.aid in self._redeemed else process
        if process is None or not process.alive:
            raise PermissionError(
                errno.EACCES,
                "this credential is not valid: it was never given out, was a one-time credential "
                "and is used up, or its agent has ended",
            )
        if caller.uid not in (process.uid, 0, self._roster.access.owner):
            raise PermissionError(
                errno.EACCES, f"this credential is of use to uid {process.uid}, not to {caller.uid}"
            )
        return process

    async def _use_ticket(self, process: Process, caller: Caller) -> str:
        """Take the one-time credential out of use; return the one that takes its place."""
        ticket, credential, before = process.ticket, new_credential(), process.credential
        self._redeemed.add(process.aid)
        self._roster.set_credentials(process, digest(credential), ticket)
        try:
            await self._roster.save(process, durable=True)
        except BaseException:
            self._redeemed.discard(process.aid)
            self._roster.set_credentials(process, before, ticket)  # nobody was told the new one
            self._roster.save_soon(process)
            raise
        reach("identity.answer")
        self.connect(process, caller)
        return credential

    def _disconnect(self, process: Process, caller: Caller) -> None:
        process.connections.discard(caller)
        if process.alive and not process.connections and not process.has_process:
            self.expect(process, self.reattach, "disconnected")

    def _give_up(self, process: Process, reason: str) -> None:
        process.grace = None
        self._reaper.end_soon(process, Ending(reason, time.time()))
