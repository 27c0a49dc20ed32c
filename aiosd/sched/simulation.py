"""A core in simulated time, driven by the same policies as a real one.

    result = Simulation(workload, sched.make("fair")).run()

Each turn is one device call, as in a worker: a slice of a prompt (of the running request with the
lowest rank) or a step in which all others decode; these alternate where both are to be done. What
they cost is the workload's to say; nothing here takes real time or draws lots.

What must hold, and is checked: each request computes every token of its prompt and reply once, in
order; no slot is empty while somebody waits.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from dataclasses import dataclass, field
from statistics import fmean

from .policy import Policy, Task
from .weights import weight
from .workload import Agent, Turn, Workload

WINDOW_S = 2.0


@dataclass(slots=True)
class Request:
    """One turn of an agent; times in seconds, -1 while it has not come to that.

    again: tokens that are to be decoded once more, since their KV is lost. prefilled is less than 0
    while earlier turns' prompts have to be read again.
    """

    id: int
    agent: int
    turn: int
    asked: Turn
    submitted: float
    started: float = -1.0
    first: float = -1.0
    ended: float = -1.0
    prefilled: int = 0
    decoded: int = 0
    again: int = 0

    @property
    def waited(self) -> float:
        """Seconds until it was first given a slot."""
        return self.started - self.submitted

    @property
    def turnaround(self) -> float:
        """Seconds until its last token."""
        return self.ended - self.submitted


@dataclass(slots=True)
class Result:
    """What came of a workload under a policy.

    service: tokens by window of WINDOW_S seconds and by agent. cores: how many there were. again:
    tokens that were computed once more, since a machine had died.
    """

    policy: str
    workload: Workload
    requests: list[Request]
    seconds: float
    preemptions: int
    switches: int
    service: dict[int, dict[int, int]]
    cores: int = 1
    again: int = 0

    def summary(self) -> dict[str, float | int | str]:
        """The figures of the table, by name."""
        waits = [each.waited for each in self.requests]
        rounds = [each.turnaround for each in self.requests]
        firsts = [each.first - each.submitted for each in self.requests]
        out = sum(each.decoded for each in self.requests)
        tokens = out + sum(each.prefilled for each in self.requests)
        jain = [index for _, index in self.fairness()]
        return {
            "policy": self.policy,
            "requests": len(self.requests),
            "waiting_s": fmean(waits),
            "waiting_p95_s": quantile(waits, 0.95),
            "first_p95_s": quantile(firsts, 0.95),
            "turnaround_s": fmean(rounds),
            "turnaround_p50_s": quantile(rounds, 0.5),
            "turnaround_p95_s": quantile(rounds, 0.95),
            "jain": fmean(jain) if jain else 1.0,
            "jain_min": min(jain, default=1.0),
            "tokens_per_s": tokens / self.seconds if self.seconds else 0.0,
            "out_per_s": out / self.seconds if self.seconds else 0.0,
            "preemptions": self.preemptions,
            "switches": self.switches,
            "seconds": self.seconds,
            "cores": self.cores,
            "again": self.again,
        }

    def fairness(self) -> list[tuple[int, float]]:
        """Jain's index of the tokens by weight, for each window in which two or more agents had
        something to do from its beginning to its end.
        """
        spans: dict[int, list[tuple[float, float]]] = defaultdict(list)
        for each in sorted(self.requests, key=lambda each: each.submitted):
            span = spans[each.agent]
            if span and each.submitted <= span[-1][1] + 1e-9:
                span[-1] = (span[-1][0], each.ended)
            else:
                span.append((each.submitted, each.ended))
        windows: dict[int, list[int]] = defaultdict(list)
        for agent, span in spans.items():
            for begin, end in span:
                for window in range(-int(-begin // WINDOW_S), int(end // WINDOW_S)):
                    windows[window].append(agent)
        return [(w, self._jain(w, busy)) for w, busy in sorted(windows.items()) if len(busy) > 1]

    def _jain(self, window: int, agents: list[int]) -> float:
        got = self.service.get(window, {})
        return jain([got.get(n, 0) / weight(self.workload.agents[n].nice) for n in agents])


def jain(shares: list[float]) -> float:
    """Jain's index: 1 where all are equal, 1/n where one has everything."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0


def quantile(values: list[float], part: float) -> float:
    """The smallest value that this part of all doesn't exceed; 0.0 of none."""
    ranked = sorted(values)
    return ranked[max(0, -int(-part * len(ranked) // 1) - 1)] if ranked else 0.0


@dataclass(slots=True)
class Simulation:
    """A workload on a core under a policy; `step` is one device call.

    empty: no agent comes but those that are told by `expect`.
    """

    workload: Workload
    policy: Policy
    empty: bool = False
    now: float = 0.0
    preemptions: int = 0
    switches: int = 0
    requests: list[Request] = field(default_factory=list)
    _coming: list[tuple[float, int, int]] = field(default_factory=list)
    service: dict[int, dict[int, int]] = field(default_factory=dict)
    _just_prefilled: bool = False

    def __post_init__(self) -> None:
        agents = () if self.empty else self.workload.agents
        self._coming = [(a.arrival, n, 0) for n, a in enumerate(agents)]
        heapq.heapify(self._coming)

    def run(self) -> Result:
        """Go on until every request is done."""
        while self.step():
            pass
        return Result(
            self.policy.name, self.workload, self.requests, self.now, self.preemptions,
            self.switches, self.service,
        )  # fmt: skip

    @property
    def idle(self) -> bool:
        """Whether nothing is to be done now."""
        return not self.policy.running and not len(self.policy)

    def due(self) -> float | None:
        """When the next device call can be made; None when all is done."""
        if not self.idle:
            return self.now
        return max(self.now, self._coming[0][0]) if self._coming else None

    def expect(self, when: float, agent: int) -> None:
        """Note that an agent will come."""
        heapq.heappush(self._coming, (when, agent, 0))

    def lose(self, until: float) -> int:
        """Lose all KV in the slots, and do nothing until then; returns the tokens that are lost."""
        lost = 0
        for id in self.policy.running:
            request = self.requests[id]
            earlier = self.workload.agents[request.agent].turns[: request.turn]
            lost += request.prefilled + request.decoded - request.again
            lost += sum(turn.prompt + turn.output for turn in earlier)
            request.prefilled = -sum(turn.prompt for turn in earlier)
            request.again = request.decoded + sum(turn.output for turn in earlier)
        self.now = max(self.now, until)
        return lost

    def step(self) -> bool:
        """Take what has come, plan, and make one device call; False when all is done."""
        if self.idle:
            if not self._coming:
                return False
            self.now = max(self.now, self._coming[0][0])
        self._arrive()
        self._plan()
        running = [self.requests[id] for id in self.policy.running]
        prefilling = [each for each in running if each.prefilled < each.asked.prompt]
        decoding = [each for each in running if each.prefilled == each.asked.prompt]
        self._just_prefilled = bool(prefilling) and not (decoding and self._just_prefilled)
        if self._just_prefilled:
            self._prefill(min(prefilling, key=lambda each: self.policy.rank(each.id)))
        else:
            self._decode(decoding)
        return True

    def _arrive(self) -> None:
        while self._coming and self._coming[0][0] <= self.now:
            when, number, turn = heapq.heappop(self._coming)
            agent: Agent = self.workload.agents[number]
            request = Request(len(self.requests), number, turn, agent.turns[turn], when)
            self.requests.append(request)
            prompt = request.asked.prompt
            self.policy.add(Task(request.id, number, agent.nice, agent.uid, prompt))

    def _plan(self) -> None:
        plan = self.policy.plan(self.workload.slots)
        self.preemptions += len(plan.stop)
        self.switches += len(plan.start)
        self.now += self.workload.costs.switch_s * len(plan.start)
        for id in plan.start:
            if self.requests[id].started < 0:
                self.requests[id].started = self.now
        if len(self.policy.running) < self.workload.slots and len(self.policy):
            raise AssertionError(f"policy {self.policy.name} leaves a slot empty")

    def _prefill(self, request: Request) -> None:
        costs = self.workload.costs
        tokens = min(costs.grid, request.asked.prompt - request.prefilled)
        self.now += costs.prefill_s * tokens
        request.prefilled += tokens
        self._served(request, tokens)
        self.policy.charge(request.id, tokens, 0)

    def _decode(self, requests: list[Request]) -> None:
        self.now += self.workload.costs.step(len(requests))
        for request in requests:
            self.policy.charge(request.id, 0, 1)
            if request.again:
                request.again -= 1
                continue
            request.decoded += 1
            self._served(request, 1)
            if request.first < 0:
                request.first = self.now
            if request.decoded == request.asked.output:
                self._end(request)

    def _served(self, request: Request, tokens: int) -> None:
        window = self.service.setdefault(int(self.now // WINDOW_S), {})
        window[request.agent] = window.get(request.agent, 0) + tokens

    def _end(self, request: Request) -> None:
        self.policy.remove(request.id)
        request.ended = self.now
        turns = self.workload.agents[request.agent].turns
        if request.turn + 1 < len(turns):
            next_at = self.now + request.asked.think
            heapq.heappush(self._coming, (next_at, request.agent, request.turn + 1))
