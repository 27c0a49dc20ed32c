"""The soak's part about rights: a person grants and revokes, agents write to themselves.

What must hold: a grant that was acknowledged is in force until it is asked back, one whose
revocation was acknowledged is not; each is on record; a message is received once; the audit chain
is whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aiosd.abi.chain import Verifier

if TYPE_CHECKING:
    import aios


MOST = 1000  # grants in force; the kernel has a limit


class Rights:
    """What a person did with grants, and what agents were told in messages."""

    def __init__(self) -> None:
        self.given: set[int] = set()
        self.asked_back: set[int] = set()
        self.taken: set[int] = set()
        self.messages = 0
        self._go = asyncio.Event()

    def step(self) -> None:
        """Let the person do the next thing: grants keep pace with what agents do."""
        self._go.set()

    async def live(self, person: aios.AsyncKernel, over: Callable[[], bool]) -> None:
        """Grant, and take back every other grant, all beyond MOST, until it is over."""
        number = 0
        while not over():
            number += 1
            grant = await person.grant(
                subject=f"uid:{number}", capability="observe", object=f"uid:{number + 1}"
            )
            assert grant.id not in self.given, "one grant was given twice"
            self.given.add(grant.id)
            if number % 2 or len(self.given) - len(self.asked_back) > MOST:
                self.asked_back.add(grant.id)
                await person.revoke(id=grant.id)
                self.taken.add(grant.id)
            await self._go.wait()
            self._go.clear()

    async def write_home(self, kernel: aios.AsyncKernel, mark: int) -> None:
        """Send a message to oneself and receive it."""
        self.step()
        self.messages += 1
        await kernel.send_message(aid=kernel.aid, body=mark)
        found = [message.body for message in await kernel.recv_message(limit=9, timeout=0.0)]
        assert found == [mark], f"sent {mark}, received {found}"

    def look(self, rows: Callable[[str], list[tuple[Any, ...]]]) -> None:
        """What was acknowledged is in force, what was taken back is not."""
        given, taken = set(self.given), set(self.taken)
        there = {id for (id,) in rows("select id from grants")}
        assert given - self.asked_back <= there, "a grant that was acknowledged is lost"
        assert not taken & there, "a grant that was taken back is in force"

    async def count(self, person: aios.AsyncKernel) -> None:
        """The chain is whole, and every change is on record."""
        verifier, on_record = Verifier(), set()
        async for r in person.read_audit():
            assert verifier.feed(r.id, r.t, r.uid, r.aid, r.kind, r.data, r.digest), verifier.broken
            if r.kind in ("grant.add", "grant.revoke"):
                on_record.add((r.kind, r.data["grant"]["id"]))
        wanted = {("grant.add", id) for id in self.given}
        wanted |= {("grant.revoke", id) for id in self.taken}
        assert wanted <= on_record, f"not on record: {sorted(wanted - on_record)}"
        there = {grant.id for grant in await person.list_grants()}
        assert all(("grant.add", id) in on_record for id in there), "in force without a record"
