"""Fair shares: who has received least for its weight runs next, as in CFS, counted in tokens.

Groups (a user's agents, unless told otherwise) share evenly or by a weight of their own, agents
within a group by the weight of their nice, requests within an agent evenly; at each of these the
lowest virtual counter is next.
Prompt and reply tokens are charged at their cost; tokens found in a cache are never computed, so
nobody is charged for them.

- A quantum is paid in advance and what is left of it given back: several slots can then be filled
  at once by the counters alone.
- The more requests there are, the shorter quanta get, so that everyone has a turn while a slot
  computes `period`; but not below SHORTEST, for a switch takes 2 or 3 ms and a step of 8 takes 28.
  With 32 agents on 8 slots and the default period quanta are 4 tokens: in windows of two seconds
  all have then received the same (Jain's index 0.99), at a seventh of the throughput (simulated at
  measured costs; quanta of 64 take 1 %, and are as even over half a minute only).
- At the end of its quantum a request gives way to one whose group, agent or request (whichever
  they differ in first) is behind it, or has had as much: equals take turns. One that has just come
  need not wait for that: it takes the slot of one that it would be behind even when it had had its
  quantum.
- Whoever comes back after having had nothing to do is behind by no more than `credit`, and so is
  whoever runs all the time and is still behind (it can't use more than a slot).
- A request that others wait for is queued with each of their agents as well as with its own, under
  the waiter's weight. Whichever is next first runs it, and pays for it.

What holds of two agents of one group that have requests all the time, on one slot: since both had,
their weighted tokens, S/w, differ by no more than `credit` and the larger of their (Q + L)/w, with
Q the quantum and L what a batch computes beyond it (a slice of a prompt). So nobody starves: the
next request of an agent starts at the latest when each other agent has received that much.

Every operation is O(log n) in the number of requests; `plan` is O(slots log slots) besides.
"""

from __future__ import annotations

import errno
from collections.abc import Hashable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from itertools import islice
from types import MappingProxyType
from typing import Any, Final

from .levels import DEFAULT_QUANTUM
from .policy import LOOK, Plan, Policy, Task
from .shares import Node
from .waiters import Waiters
from .weights import share

CREDIT: Final = 256
"""Weighted tokens that one who comes back may be behind the others."""

NOBODY: Final[Mapping[Any, Any]] = MappingProxyType({})

PERIOD: Final = 12
SHORTEST: Final = 4
"""Tokens of a quantum, unless `quantum` is less."""

_TURN: Final = 1 << 20  # of a rank: what the group's counter is worth, against the agent's


@dataclass(slots=True)
class _Seat:
    """A task's place with an agent: its counter among the requests, and what a token counts."""

    virtual: float
    share: float


@dataclass(slots=True)
class _Entry:
    """payer: the agent that pays for the present quantum; None while queued.

    left: what is paid in advance and not used yet, in cost.
    """

    task: Task
    seats: dict[Node, _Seat] = field(default_factory=dict)
    payer: Node | None = None
    left: float = 0.0
    used: int = 0


class Fair(Policy):
    """Virtual token counters weighted by nice; see the head of this file."""

    name = "fair"

    def __init__(
        self,
        quantum: int = DEFAULT_QUANTUM,
        groups: bool = True,
        credit: int = CREDIT,
        prefill_cost: float = 1.0,
        decode_cost: float = 1.0,
        members: Mapping[int, str] = NOBODY,
        weights: Mapping[Hashable, float] = NOBODY,
        period: int = PERIOD,
    ) -> None:
        """quantum (the longest), credit, period: in cost, as tokens are. groups: they share first.

        prefill_cost, decode_cost: what a token of a prompt and of a reply counts. members: the
        group of each uid that is in one. weights: of groups, by name, and of users by uid.
        period: 0 where quanta are always the longest.
        """
        if quantum < 1:
            raise OSError(errno.EINVAL, f"quantum {quantum}: a quantum is 1 token or more")
        if credit < 0 or min(prefill_cost, decode_cost) <= 0:
            raise OSError(errno.EINVAL, "credit is 0 or more, and costs are more than 0")
        if period < 0:
            raise OSError(errno.EINVAL, f"period {period}: it is 0 or more tokens")
        if min(weights.values(), default=1) <= 0:
            raise OSError(errno.EINVAL, "weights are more than 0")
        self._members = members
        self._weights = weights
        self._quantum = self._longest = quantum
        self._period = period
        self._groups = groups
        self._costs = (prefill_cost, decode_cost)
        self._root = Node(credit)
        self._entries: dict[int, _Entry] = {}
        self._running: dict[int, None] = {}
        self._expired: dict[int, None] = {}  # running tasks that have used their quantum
        self._lent: dict[int, None] = {}  # running tasks in slots that are kept for `_kept`
        self._kept: tuple[_Entry, Node] | None = None  # next, when the slots are too few for it
        self._taken = 0  # slots
        self._waiters = Waiters()
        self._fresh = False  # something came that may take a slot before a quantum's end

    @property
    def running(self) -> Set[int]:
        """A live view of the ids on the core."""
        return self._running.keys()

    @property
    def waiting(self) -> Iterable[Task]:
        """The requests that wait for others."""
        return self._waiters

    def __len__(self) -> int:
        return len(self._entries) - len(self._running)

    def __contains__(self, id: object) -> bool:
        return id in self._entries

    def task(self, id: int) -> Task:
        """The task, with its present nice."""
        return self._entries[id].task

    def used(self, id: int) -> int:
        """Tokens of the present quantum that are spent."""
        return self._entries[id].used

    def standing(self, id: int) -> tuple[int, float]:
        """No level; how far the agent is ahead of the one that was last given a slot."""
        agent = self._payer(self._entries[id])
        assert agent.parent is not None
        return 0, agent.virtual - agent.parent.clock

    def order(self) -> Iterator[int]:
        """The ready ids, as they would start if each computed a quantum and nobody came."""
        return iter(dict.fromkeys(id for id, _ in self._turns(self._root)))

    def rank(self, id: int) -> int:
        """The counter of the group (or agent) first, then of the agent (or request) within it.

        As it will be after a quantum: of two that have had the same the weightier one is first.
        """
        entry = self._entries[id]
        payer = self._payer(entry)
        lead = self._lead(entry, payer, entry.left - self._longest)
        within = int(lead[1] - payer.path()[0].clock) + _TURN // 2
        return int(lead[0]) * _TURN + min(max(within, 0), _TURN - 1)

    def add(self, task: Task) -> None:
        """Queue a task with its agent, after the agent's requests that have had as little."""
        self._queue(self._enter(task))

    def adopt(self, task: Task) -> None:
        """Take a running task as one that has just started."""
        entry = self._enter(task)
        self._run(entry, self._payer(entry))

    def remove(self, id: int) -> Task:
        """Forget a task; what it didn't use is given back."""
        entry = self._entries.pop(id)
        if entry.payer is None:
            self._unqueue(entry)
        else:
            self._halt(entry)
        for agent in entry.seats:
            agent.leave()
        return entry.task

    def wait(self, task: Task) -> None:
        """Queue what a task waits for with the task's agent too."""
        if task.id in self._entries:
            raise ValueError(f"task {task.id} is here: it can't wait")
        self._waiters.add(task)
        self._reseat(self._waiters.before(task))

    def unwait(self, id: int) -> Task:
        """Take what a task waited for out of its agent's queue."""
        before = self._waiters.before(task := self._waiters.remove(id))
        self._reseat(before)
        return task

    def renice(self, id: int, nice: int) -> None:
        """Count a task's tokens by its new weight from now on."""
        if id in self._waiters:
            self.wait(replace(self.unwait(id), nice=nice))
            return
        entry = self._entries[id]
        entry.task = replace(entry.task, nice=nice)
        self._reseat([id])

    def charge(self, id: int, prefill: int, decode: int) -> None:
        """Take tokens from what was paid in advance, and what is beyond that from the payer."""
        entry = self._entries[id]
        cost = prefill * self._costs[0] + decode * self._costs[1]
        over = max(0.0, cost - entry.left)
        entry.left = max(0.0, entry.left - cost)
        if over:
            self._pay(entry, self._payer(entry), over)
        if entry.payer is not None:
            entry.used += prefill + decode
            if not entry.left:
                self._expired[id] = None

    def plan(self, slots: int) -> Plan:
        """Fill the slots from the lowest counters on, and give way to those that are behind."""
        if slots < 0:
            raise ValueError(f"a core has 0 slots or more, not {slots}")
        if self._period:
            fitting = self._period * slots // max(1, len(self._entries))
            self._quantum = min(self._longest, max(SHORTEST, fitting))
        stopped: dict[int, None] = {}
        started: list[int] = []
        if self._kept is None or self._kept[0].task.id not in self._entries:
            self._lent.clear()
        while self._taken > slots:
            stopped[self._stop(next(self._foremost(self._running)))] = None
        for id in self._expired:
            self._choose(self._entries[id])
        while len(self):
            entry, agent = self._next()
            victims = self._victims(entry, agent, slots - self._taken)
            if entry.task.id in stopped or victims is None:
                break
            for victim in victims:
                stopped[self._stop(victim)] = None
            started.append(self._start(entry, agent))
        started += self._lend(slots, stopped)
        self._renew()
        return Plan(tuple(stopped), tuple(started))

    # Tasks and their seats.

    def _enter(self, task: Task) -> _Entry:
        if task.id in self._entries:
            raise ValueError(f"task {task.id} is already here")
        if task.id in self._waiters:
            raise ValueError(f"task {task.id} still waits for others")
        entry = self._entries[task.id] = _Entry(task)
        self._sit(entry)
        self._fresh = True
        return entry

    def _agent(self, task: Task) -> Node:
        if not self._groups:
            return self._root.child(task.aid)
        party: Hashable = task.group or self._members.get(task.uid) or task.uid
        group = self._root.child(party)
        group.share = 1 / self._weights.get(party, 1.0)
        return group.child(task.aid)

    def _sit(self, entry: _Entry) -> None:
        """Seat a task with its agent and with those of all who wait for it."""
        wanted: dict[Node, float] = {}
        for task in (entry.task, *self._waiters.behind(entry.task.id)):
            agent = self._agent(task)
            wanted[agent] = min(share(task.nice), wanted.get(agent, share(task.nice)))
        before, entry.seats = entry.seats, {}
        for agent, tokens in wanted.items():
            seat = before.pop(agent, None)
            if seat is None:
                agent.enter()
            entry.seats[agent] = _Seat(agent.clock if seat is None else seat.virtual, tokens)
        for agent in before:
            agent.leave()

    def _reseat(self, ids: Iterable[int]) -> None:
        """Seat tasks anew whose nice, or those who wait for them, have changed."""
        for entry in [self._entries[id] for id in ids if id in self._entries]:
            if entry.payer is None:
                self._unqueue(entry)
                self._sit(entry)
                self._queue(entry)
            else:
                self._pay(entry, entry.payer, -entry.left)
                self._sit(entry)
                self._choose(entry)
                self._pay(entry, self._payer(entry), entry.left)
            self._fresh = True

    def _choose(self, entry: _Entry) -> None:
        """Let that agent pay for a running task, of those that it sits with, whose turn it is."""
        if len(entry.seats) > 1 or entry.payer not in entry.seats:
            entry.payer = min(entry.seats, key=lambda agent: self._lead(entry, agent, 0.0))

    def _queue(self, entry: _Entry) -> None:
        for agent, seat in entry.seats.items():
            agent.queue.push(entry.task.id, seat.virtual)
            agent.sort()

    def _unqueue(self, entry: _Entry) -> None:
        for agent in entry.seats:
            agent.queue.discard(entry.task.id)
            agent.sort()

    def _payer(self, entry: _Entry) -> Node:
        """The agent that pays; of a queued task, its own: always the first that it sits with."""
        return next(iter(entry.seats)) if entry.payer is None else entry.payer

    def _pay(self, entry: _Entry, agent: Node, cost: float) -> None:
        """Charge a request, its agent and that one's group; a negative cost is given back."""
        seat = entry.seats[agent]
        seat.virtual += cost
        if entry.task.id in agent.queue:
            agent.queue.push(entry.task.id, seat.virtual)
        for node in agent.path():
            node.pay(cost * (seat.share if node is agent else node.share))

    # Slots.

    def _next(self) -> tuple[_Entry, Node]:
        """The queued task that is next, and the agent whose turn it is."""
        node = self._root
        while node.ready:
            node = node.ready.first()
        return self._entries[node.queue.first()], node

    def _start(self, entry: _Entry, agent: Node) -> int:
        self._unqueue(entry)
        self._run(entry, agent)
        return entry.task.id

    def _run(self, entry: _Entry, agent: Node) -> None:
        entry.payer = agent
        self._running[entry.task.id] = None
        self._taken += entry.task.width
        self._advance(entry, agent)

    def _advance(self, entry: _Entry, agent: Node) -> None:
        """Begin a quantum, paid in advance."""
        for node in agent.path():
            node.tick()
        agent.clock = max(agent.clock, entry.seats[agent].virtual)
        entry.used = 0
        entry.left = self._quantum
        self._pay(entry, agent, entry.left)

    def _halt(self, entry: _Entry) -> None:
        """Take a task off its slot and give back what it didn't use."""
        assert entry.payer is not None
        self._pay(entry, entry.payer, -entry.left)
        entry.payer, entry.left, entry.used = None, 0.0, 0
        del self._running[entry.task.id]
        self._taken -= entry.task.width
        self._expired.pop(entry.task.id, None)
        self._lent.pop(entry.task.id, None)

    def _stop(self, id: int) -> int:
        entry = self._entries[id]
        self._halt(entry)
        self._queue(entry)
        return id

    def _renew(self) -> None:
        """Give those whose quantum is over, and for whom nobody takes over, another one.

        But not those who are to give way to the one that slots are kept for: they pay as they go.
        """
        for id in list(self._expired):
            if self._kept is not None and self._is_behind(*self._kept, id, 0.0):
                continue
            entry = self._entries[id]
            agent = self._payer(entry)
            for node in agent.path():
                node.catch_up()
            self._advance(entry, agent)
            del self._expired[id]
        self._fresh = False

    def _lend(self, slots: int, stopped: dict[int, None]) -> dict[int, None]:
        """Note for whom slots are kept, and start those meanwhile who fit into them."""
        lent: dict[int, None] = {}
        self._kept = None
        if len(self) and self._next()[0].task.width > 1:
            self._kept = self._next()
        if self._taken >= slots or not len(self):
            return lent
        for entry, agent in list(islice(self._leading(self._root), LOOK)):
            id, width = entry.task.id, entry.task.width
            if id not in stopped and id not in self._running and width <= slots - self._taken:
                lent[self._start(entry, agent)] = None
        self._lent |= lent
        return lent

    def _leading(self, node: Node) -> Iterator[tuple[_Entry, Node]]:
        """What is queued below a node, the first group's first agent's first request first."""
        for child in node.ready.leading():
            yield from self._leading(child)
        for id in node.queue.leading():
            yield self._entries[id], node

    # Who is ahead of whom.

    def _lead(self, entry: _Entry, agent: Node, left: float | None = None) -> tuple[float, ...]:
        """Counters from the group down to the request, without what is paid and not used."""
        left = entry.left if left is None else left
        seat = entry.seats[agent]
        above = [
            node.virtual - left * (seat.share if node is agent else node.share)
            for node in agent.path()
        ]
        return (*above, seat.virtual - left)

    def _foremost(self, ids: Iterable[int]) -> Iterator[int]:
        """Running tasks, the one that is furthest ahead first."""
        leads = {id: self._lead(self._entries[id], self._payer(self._entries[id])) for id in ids}
        return iter(sorted(leads, key=leads.__getitem__, reverse=True))

    def _victims(self, entry: _Entry, agent: Node, free: int) -> list[int] | None:
        """Those who give way so that a queued task can start now; None if it can't."""
        victims: list[int] = []
        if free >= entry.task.width:
            return victims
        for id in self._yielding(entry, agent):
            victims.append(id)
            free += self._entries[id].task.width
            if free >= entry.task.width:
                return victims
        return None

    def _yielding(self, entry: _Entry, agent: Node) -> Iterator[int]:
        """Those running who must give way to a queued task, in that order."""
        given = set(self._lent)
        yield from self._lent
        for id in self._foremost(self._expired) if self._expired else ():
            if id not in given and self._is_behind(entry, agent, id, 0.0):
                given.add(id)
                yield id
        for id in self._foremost(self._running) if self._fresh else ():
            if id not in given and self._is_behind(entry, agent, id, self._quantum):
                yield id

    def _is_behind(self, entry: _Entry, agent: Node, other: int, advance: float) -> bool:
        """Whether a queued task is behind a running one, even if it had `advance` more.

        Of two that have had the same the one that waits is behind: so equals take turns.
        """
        running = self._entries[other]
        payer = self._payer(running)
        lead = self._lead(running, payer)
        seat = entry.seats[agent]
        for mine, its, ahead in zip(agent.path(), payer.path(), lead, strict=False):
            if mine is not its:
                own = seat.share if mine is agent else mine.share
                return mine.virtual + advance * own <= ahead
        return seat.virtual + advance <= lead[-1]

    def _turns(self, node: Node) -> list[tuple[int, float]]:
        """The queued ids below a node, as they would start, and what a token of each counts."""
        if not node.ready:
            return [(id, self._entries[id].seats[node].share) for id in node.queue]
        turns = []
        for place, child in enumerate(node.ready):
            for turn, (id, tokens) in enumerate(self._turns(child)):
                cost = self._quantum * (tokens if not child.ready else child.share)
                turns.append((child.virtual + turn * cost, place, turn, id, tokens))
        return [(id, tokens) for *_, id, tokens in sorted(turns)]
