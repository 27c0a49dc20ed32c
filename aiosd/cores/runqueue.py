"""A core's run queue: a policy's decisions about it, made once a turn of the loop.

    queue = RunQueue(policy, carry_out)
    queue.enter(Task(...)); queue.leave(cid); queue.charge(cid, prefill, decode)

Whoever changes what the policy decides from says so here, and `carry_out` is called in the next
turn of the loop, however much has changed in this one: it asks the policy for a plan and makes it
so. What is not in the queue (held, or with no request) can be left out of it, or charged, without
harm: who reports that often knows less than who queues it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from aiosd import sched
from aiosd.cores.sequence import Sequence
from aiosd.cores.standing import Standing
from aiosd.sched.policy import Policy, Task


class RunQueue:
    """One core's. policy: the present one. standing: who got what of the core lately."""

    def __init__(self, policy: Policy, carry_out: Callable[[], None]) -> None:
        self.policy = policy
        self.standing = Standing(lambda: self.policy)
        self._carry_out = carry_out
        self._scheduled = False
        self._loop = asyncio.get_running_loop()

    def __contains__(self, cid: object) -> bool:
        return cid in self.policy

    def enter(self, task: Task) -> None:
        """Queue a request."""
        self.policy.add(task)
        self.schedule()

    def leave(self, cid: int) -> None:
        """Take a request out, if it is in."""
        if cid in self.policy:
            self.policy.remove(cid)
            self.schedule()

    def charge(self, cid: int, prefill: int, decode: int) -> None:
        """Count tokens that were computed for a request, if it is in."""
        if cid in self.policy:
            self.policy.charge(cid, prefill, decode)

    def spare(self, cid: int, count: int) -> None:
        """So many tokens of a request's prompt need not be computed after all."""
        if cid in self.policy:
            self.policy.spare(cid, count)

    def renice(self, sequence: Sequence, nice: int) -> None:
        """Change a sequence's priority; it takes effect with the next plan."""
        sequence.nice = nice
        if sequence.cid in self.policy:
            self.policy.renice(sequence.cid, nice)
            self.schedule()

    def wait(self, task: Task) -> None:
        """Note that a request waits for those in `task.waits_for` (see sched.Policy.wait)."""
        self.policy.wait(task)
        self.schedule()

    def unwait(self, cid: int) -> None:
        """Forget that a request waits."""
        self.policy.unwait(cid)
        self.schedule()

    def change(self, name: str, **options: Any) -> None:
        """Go on under another policy; who runs stays on the core until it says otherwise.

        Raises OSError(EINVAL) for a policy or an option that doesn't exist.
        """
        self.policy = sched.change(self.policy, name, **options)
        self.schedule()

    def schedule(self) -> None:
        """Plan once, when everything that happens in this turn of the loop is known."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._plan)

    def _plan(self) -> None:
        self._scheduled = False
        self._carry_out()
