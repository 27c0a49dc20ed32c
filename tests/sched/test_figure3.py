"""The paper's Figure 3: three agents' requests, one after the other and interleaved.

Agent A has three requests, B two, C three; each agent sends its next request some time after its
last was answered. One agent after the other gives A1 A2 A3 B1 B2 C1 C2 C3. All at once, the paper
shows A1 B1 C1 B2 A2 A3 C2 C3, "less waiting time": that is **fifo** on one slot (round robin gives
it too, when the quantum is no shorter than a request) with requests of one length where B sends
its next after half a length, A after two and C after five. The scheduler only orders what is there;
the rest is the agents' own time.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from statistics import mean

import pytest

from aiosd import sched
from aiosd.sched import Policy
from tests.sched.tiny_core import a_task

LENGTH = 10  # tokens of a request, and the unit of time is a token's


@dataclass(frozen=True)
class Agent:
    name: str
    requests: int
    think: int  # from an answer to the next request


AGENTS = [Agent("A", 3, 2 * LENGTH), Agent("B", 2, LENGTH // 2), Agent("C", 3, 5 * LENGTH)]


class OneSlot:
    """Agents on a core with one slot, token by token."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.now = 0
        self.order: list[str] = []
        self.waited: list[int] = []
        self._sent: dict[int, tuple[Agent, int, int]] = {}  # task: agent, which request, when
        self._coming: list[tuple[int, int, int]] = []  # when, agent's index, which request
        self._left: dict[int, int] = {}

    def run(self, agents: list[Agent], since: int) -> None:
        """Run agents that are there now to their end. since: when their first was submitted."""
        self._coming = [(self.now, index, 1) for index in range(len(agents))]
        while self._coming or len(self.policy) or self.policy.running:
            self._arrive(agents, since)
            for id in self.policy.plan(1).start:
                self._start(id)
            for id in list(self.policy.running):
                self._compute(id, agents)
            self.now += 1
        self.now -= 1  # the step in which nothing was left

    def _arrive(self, agents: list[Agent], since: int) -> None:
        while self._coming and self._coming[0][0] <= self.now:
            when, index, number = heapq.heappop(self._coming)
            id = len(self._sent) + 1
            self._sent[id] = (agents[index], number, since if number == 1 else when)
            self._left[id] = LENGTH
            self.policy.add(a_task(id, aid=index + 1))

    def _start(self, id: int) -> None:
        agent, number, submitted = self._sent[id]
        if self._left[id] == LENGTH:
            self.order.append(f"{agent.name}{number}")
            self.waited.append(self.now - submitted)

    def _compute(self, id: int, agents: list[Agent]) -> None:
        self._left[id] -= 1
        self.policy.charge(id, 0, 1)
        if self._left[id]:
            return
        agent, number, _ = self._sent[id]
        self.policy.remove(id)
        if number < agent.requests:
            ready = self.now + 1 + agent.think
            heapq.heappush(self._coming, (ready, agents.index(agent), number + 1))


def sequential() -> OneSlot:
    core = OneSlot(sched.make("fifo"))
    for agent in AGENTS:
        core.run([agent], since=0)
    return core


def concurrent(policy: Policy) -> OneSlot:
    core = OneSlot(policy)
    core.run(AGENTS, since=0)
    return core


def test_one_agent_after_the_other() -> None:
    assert sequential().order == ["A1", "A2", "A3", "B1", "B2", "C1", "C2", "C3"]


@pytest.mark.parametrize(("name", "quantum"), [("fifo", LENGTH), ("rr", LENGTH), ("rr", 64)])
def test_all_at_once(name: str, quantum: int) -> None:
    core = concurrent(sched.make(name, quantum=quantum))
    assert core.order == ["A1", "B1", "C1", "B2", "A2", "A3", "C2", "C3"]


def test_with_less_waiting() -> None:
    assert mean(concurrent(sched.make("fifo")).waited) < mean(sequential().waited) / 3
