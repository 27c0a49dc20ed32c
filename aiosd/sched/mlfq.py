"""Multi-level feedback: agents that have received little run first, whatever they ask for next.

The level of a request is by the tokens that its agent has received over all its requests, and
those of its prompt that are still to be computed: it takes as many at least. Level n begins at
(2^n - 1) quanta and has quanta of 2^n times the first level's. So short work overtakes long work
without anyone saying how long a reply will be, and long work is interrupted ever more rarely.

- What was received is weighted by nice (1.25 for each step) and halves with each `boost` tokens
  that the core computes: what an agent did long ago says little.
- Nobody starves: a request that has waited while the core computed `boost` tokens goes to the
  first level for one quantum (of many at once, 16 with each plan). It then starts when those that
  are ahead of it there have had a quantum of the first level each. Time doesn't enter: a core that
  computes nothing ages nobody.
- What the agent receives counts at once; its requests move down as they reach their level's head.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from .levels import DEFAULT_QUANTUM, Levels
from .policy import Plan, Task
from .weights import share

LEVELS: Final = 8
BOOST: Final = 16_384
AT_ONCE: Final = 16
REMEMBERED: Final = 4096
"""Agents without a request whose tokens are remembered; of more, those gone longest are not."""


@dataclass(slots=True)
class _Agent:
    received: float = 0.0  # weighted tokens, as of `epoch`
    epoch: int = 0
    tasks: int = 0


class Mlfq(Levels):
    """Levels by what the agent has received; see the head of this file."""

    name = "mlfq"

    def __init__(
        self, quantum: int = DEFAULT_QUANTUM, levels: int = LEVELS, boost: int = BOOST
    ) -> None:
        """quantum: tokens of the first level's. boost: tokens of the core's, see above."""
        if not 1 <= levels <= 32:
            raise OSError(errno.EINVAL, f"levels {levels}: there can be 1 to 32")
        if boost < 1:
            raise OSError(errno.EINVAL, f"boost {boost}: it is 1 token or more")
        super().__init__(levels, quantum)
        self._levels = levels
        self._first = quantum
        self._boost = boost
        self._computed = 0  # tokens, by this core
        self._agents: dict[int, _Agent] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # those of them without a task
        self._since: OrderedDict[int, int] = OrderedDict()  # ready id: `_computed` as it was queued
        self._boosted: set[int] = set()
        self._prompt: dict[int, int] = {}  # tokens of its prompt that a request has yet to compute

    def level(self, task: Task) -> int:
        """By what the agent has received and the prompt needs; the first while it is boosted."""
        if task.id in self._boosted:
            return 0
        agent = self._agents.get(task.aid)
        needed = self._prompt.get(task.id, task.prompt_tokens) * share(task.nice)
        quanta = int((needed + (self._faded(agent) if agent else 0)) // self._first)
        return min((quanta + 1).bit_length() - 1, self._levels - 1)

    def limit(self, level: int) -> int:
        """Twice the tokens of the level above."""
        return self._first << level

    def add(self, task: Task) -> None:
        """Queue a task at the tail of its agent's level."""
        super().add(task)
        self._join(task)
        self._since[task.id] = self._computed

    def adopt(self, task: Task) -> None:
        """Take a running task as one that has just started."""
        super().adopt(task)
        self._join(task)

    def remove(self, id: int) -> Task:
        """Forget a task; what its agent has received is remembered for a while."""
        task = super().remove(id)
        self._since.pop(id, None)
        self._boosted.discard(id)
        del self._prompt[id]
        agent = self._agents[task.aid]
        agent.tasks -= 1
        if not agent.tasks:
            self._idle[task.aid] = None
            if len(self._idle) > REMEMBERED:
                gone, _ = self._idle.popitem(last=False)
                del self._agents[gone]
        return task

    def charge(self, id: int, prefill: int, decode: int) -> None:
        """Count tokens for the agent, and spend the quantum; its end is the end of a boost."""
        super().charge(id, prefill, decode)
        entry = self._entries[id]
        agent = self._agents[entry.task.aid]
        self._computed += prefill + decode
        self._prompt[id] = max(0, self._prompt[id] - prefill)
        received = self._faded(agent) + (prefill + decode) * share(entry.task.nice)
        agent.received = min(received, self._first * float(1 << self._levels))
        agent.epoch = self._computed // self._boost
        if id in self._expired:
            self._boosted.discard(id)
            self._place(entry)

    def spare(self, id: int, count: int) -> None:
        """A task has less to compute than it came with: it may belong to a better level."""
        self._prompt[id] = max(0, self._prompt[id] - count)
        self._place(self._entries[id])

    def plan(self, slots: int) -> Plan:
        """As with all levels, after those who have waited long enough were moved to the first."""
        for _ in range(min(AT_ONCE, len(self._since))):
            id, since = next(iter(self._since.items()))
            if self._computed - since < self._boost:
                break
            del self._since[id]
            self._boosted.add(id)
            self._place(self._entries[id])
        return super().plan(slots)

    def _join(self, task: Task) -> None:
        self._prompt[task.id] = task.prompt_tokens
        self._agents.setdefault(task.aid, _Agent(epoch=self._computed // self._boost)).tasks += 1
        self._idle.pop(task.aid, None)

    def _faded(self, agent: _Agent) -> float:
        """What an agent has received, as far as it still counts."""
        epochs = self._computed // self._boost - agent.epoch
        return agent.received / (1 << epochs) if epochs < 64 else 0.0

    def _look(self) -> None:
        """Move those at the head down whose agents have received more since they were queued."""
        while len(self._ready):
            entry = self._entries[self._ready.first()]
            if self._due(entry.task) <= entry.level:
                return
            self._place(entry)

    def _run(self, id: int) -> None:
        super()._run(id)
        self._since.pop(id, None)

    def _stop(self, id: int) -> int:
        super()._stop(id)
        self._since[id] = self._computed
        return id
