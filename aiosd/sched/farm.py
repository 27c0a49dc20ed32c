"""Many cores in simulated time: agents spread over them, and cores whose machine dies.

    result = Farm(workload, [sched.make("fair") for _ in range(100)]).run()

Each core is a Simulation of its own. An agent goes to the core with least to do when it comes, and
stays there, as its context does. `deaths` are times at which the core with most to do, of those
that are there, loses its machine: `absence` seconds later it goes on on another one, and what was
in its slots is computed again, from the first token: the worst case, as snapshots outlive it.

What must hold, and is checked: every request of every agent is answered once, whatever died.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from .policy import Policy
from .simulation import Request, Result, Simulation
from .workload import Workload

ABSENCE_S = 20.0
"""Seconds until a core goes on elsewhere: death noticed, an engine started, a model opened."""


class Farm:
    """Cores, one for each policy, and the agents of a workload."""

    def __init__(
        self,
        workload: Workload,
        policies: Sequence[Policy],
        deaths: Sequence[float] = (),
        absence: float = ABSENCE_S,
    ) -> None:
        self.workload = workload
        self.cores = [Simulation(workload, policy, empty=True) for policy in policies]
        self.again = 0  # tokens that were computed once more
        self._absence = absence
        self._deaths = sorted(deaths)
        self._coming = [(agent.arrival, n) for n, agent in enumerate(workload.agents)]
        heapq.heapify(self._coming)
        self._next: list[tuple[float, int]] = []  # when each core makes its next call
        self._due: dict[int, float] = {}
        self._load = [(0, n) for n in range(len(self.cores))]

    def run(self) -> Result:
        """Go on until every request is done."""
        while (when := self._soonest()) is not None:
            if self._deaths and self._deaths[0] <= when:
                self._die(self._deaths.pop(0))
            elif self._coming and self._coming[0][0] <= when:
                self._settle()
            else:
                self._step()
        return self._result()

    def _soonest(self) -> float | None:
        times = [each[0][0] for each in (self._next, self._coming) if each]
        return min(times, default=None)

    def _settle(self) -> None:
        """Give an agent that has come to the core with fewest agents."""
        when, agent = heapq.heappop(self._coming)
        load, number = heapq.heappop(self._load)
        heapq.heappush(self._load, (load + 1, number))
        self.cores[number].expect(when, agent)
        self._await(number)

    def _step(self) -> None:
        """Have the core make a call whose turn it is."""
        when, number = heapq.heappop(self._next)
        if self._due.get(number) != when:
            return  # it has been given another time since
        del self._due[number]
        self.cores[number].step()
        self._await(number)

    def _await(self, number: int) -> None:
        """Note when a core makes its next call, if it has something to do."""
        due = self.cores[number].due()
        if due is not None and self._due.get(number) != due:
            self._due[number] = due
            heapq.heappush(self._next, (due, number))

    def _die(self, when: float) -> None:
        there = [n for n, core in enumerate(self.cores) if core.now < when + self._absence / 2]
        busy = max(there or [0], key=lambda n: (len(self.cores[n].policy), -n))
        core = self.cores[busy]
        self.again += core.lose(max(core.now, when) + self._absence)
        self._await(busy)

    def _result(self) -> Result:
        requests: list[Request] = [each for core in self.cores for each in core.requests]
        asked = sum(len(agent.turns) for agent in self.workload.agents)
        if len(requests) != asked or any(each.ended < 0 for each in requests):
            raise AssertionError(f"{asked} requests, and {len(requests)} on the cores")
        service: dict[int, dict[int, int]] = {}
        for core in self.cores:
            for window, tokens in core.service.items():
                service.setdefault(window, {}).update(tokens)
        return Result(
            self.cores[0].policy.name,
            self.workload,
            requests,
            max(core.now for core in self.cores),
            sum(core.preemptions for core in self.cores),
            sum(core.switches for core in self.cores),
            service,
            len(self.cores),
            self.again,
        )
