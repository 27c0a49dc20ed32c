"""What a scheduling policy is: pure decisions about one core's slots.

A policy holds the tasks (requests that want to compute) of one core and says which of them occupy
its slots. It does no I/O, reads no clock and knows no device; time passes for it only as tokens
that are charged. The kernel calls `add`, `remove`, `renice` and `charge` as things happen, then
`plan`, and carries out what the plan says. A simulator drives the same classes.

What must hold:
- a task is ready or running, never both, from `add` (or `adopt`) until `remove`;
- `plan` decides and applies: afterwards `running` is what the core should hold;
- no task is both stopped and started by one plan;
- the widths of what runs never exceed the slots;
- after `plan(slots)` no slot is empty that one of the first LOOK ready tasks could have used, but
  for those that the plan has just stopped, and for fifo, where nobody overtakes.

A task that needs several slots at once (beams) waits at the head until as many are free, or taken
by those who must give way to it: then it gets them all in one plan. Slots that come free meanwhile
are lent to those behind it that fit in, who give way as soon as it can start; and a quantum that
ends meanwhile is not renewed for one that must give way to it. So it waits for no more than the
quanta of those that it found running (in fifo, until enough of them have ended: nothing is lent),
and no slot idles. One that is wider than the core never starts: who adds it sees to that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

NICE_MIN = -20
NICE_MAX = 19

LOOK: Final = 16
"""Ready tasks among which one is sought that fits into slots kept for a wider one."""


@dataclass(frozen=True, slots=True)
class Task:
    """One runnable request: one sequence.

    id: the sequence (context id). nice: -20 (first) to 19 (last).
    prompt_tokens: how many are to be computed before the first token comes.
    group: with whom it shares, where a policy gives shares to groups; empty: with its uid's, or
    with the group that the policy knows the uid to be in.
    waits_for: ids of requests that must be done before it (see `Policy.wait`).
    width: how many slots it needs, all at once or none; what it is charged is for all of them.
    """

    id: int
    aid: int
    nice: int
    uid: int
    prompt_tokens: int
    group: str = ""
    waits_for: tuple[int, ...] = ()
    width: int = 1

    def __post_init__(self) -> None:
        if not NICE_MIN <= self.nice <= NICE_MAX:
            raise ValueError(f"nice {self.nice} is outside {NICE_MIN}..{NICE_MAX}")
        if self.width < 1:
            raise ValueError(f"width {self.width}: a task needs 1 slot or more")


@dataclass(frozen=True, slots=True)
class Plan:
    """What changes on the core now: first take `stop` off it, then put `start` on it, in order."""

    stop: tuple[int, ...]
    start: tuple[int, ...]

    def __bool__(self) -> bool:
        return bool(self.stop or self.start)


@dataclass(frozen=True, slots=True)
class Row:
    """One task as `aiosctl sched` shows it.

    state: R running, Q queued. used: tokens of the present quantum, spent.
    place: 0 is next in the queue; None while running. level: of a policy that has levels, 0 is
    the best. virtual: of a policy that counts it, the agent's weighted tokens, ahead of those of
    the one that was last given a slot (negative: behind).
    """

    id: int
    aid: int
    nice: int
    state: Literal["R", "Q"]
    used: int
    place: int | None
    level: int = 0
    virtual: float = 0.0


class Policy(ABC):
    """Who runs next, for how many tokens, and who is preempted. One instance per core.

    A task that the policy doesn't know is a KeyError, one it already has a ValueError: the caller's
    books are wrong then, and nothing may run on with them.
    """

    name: ClassVar[str]

    @property
    @abstractmethod
    def running(self) -> Set[int]:
        """A live view of the ids on the core."""

    @abstractmethod
    def add(self, task: Task) -> None:
        """A task became runnable: it arrived, or was resumed. It goes to the tail of its class."""

    @abstractmethod
    def adopt(self, task: Task) -> None:
        """Take over a task that is on the core already (the policy was changed while it ran)."""

    @abstractmethod
    def remove(self, id: int) -> Task:
        """A task finished, was cancelled or suspended, ready or running; nothing of it is kept."""

    @abstractmethod
    def wait(self, task: Task) -> None:
        """A request came that can't run before those in `task.waits_for` are done.

        It is not one of the tasks yet; but those inherit its importance, whether they are here
        already or come later, and so does what they wait for. OSError(EDEADLK) for a circle.
        """

    @abstractmethod
    def unwait(self, id: int) -> Task:
        """A request waits no more: what it waited for is done (`add` it now), or it is cancelled.

        Nothing is inherited from it any longer.
        """

    @property
    @abstractmethod
    def waiting(self) -> Iterable[Task]:
        """The requests that wait for others."""

    @abstractmethod
    def renice(self, id: int, nice: int) -> None:
        """Change a task's nice (-20..19); of one that waits for others too."""

    @abstractmethod
    def charge(self, id: int, prefill: int, decode: int) -> None:
        """Count the tokens that the core has just computed for a task.

        Tokens reported after the plan has stopped their task belong to a quantum that is over.
        """

    def spare(self, id: int, count: int) -> None:  # noqa: B027 what most policies don't look at
        """So many tokens of a task's prompt need not be computed after all; nobody is charged."""

    @abstractmethod
    def plan(self, slots: int) -> Plan:
        """Decide who occupies the core's slots (0 or more) now, and take it as done."""

    @abstractmethod
    def rank(self, id: int) -> int:
        """The order of prefill on the core, lower first; of a ready task: if it started now."""

    @abstractmethod
    def task(self, id: int) -> Task:
        """The task of this id, with its present nice."""

    @abstractmethod
    def order(self) -> Iterator[int]:
        """The ready ids, next first."""

    @abstractmethod
    def used(self, id: int) -> int:
        """Tokens of the task's present quantum that are spent."""

    @abstractmethod
    def __len__(self) -> int:
        """How many tasks are ready: waiting for a slot."""

    @abstractmethod
    def __contains__(self, id: object) -> bool:
        """Whether the task is known here, ready or running."""

    def position(self, id: int) -> int | None:
        """The task's place in the ready queue, 0 being next; None if it isn't waiting. O(n)."""
        return next((place for place, other in enumerate(self.order()) if other == id), None)

    def snapshot(self) -> list[Row]:
        """Every task: the running ones by rank, then the ready ones in their order. O(n log n)."""
        running = [self._row(id, None) for id in sorted(self.running, key=self.rank)]
        return running + [self._row(id, place) for place, id in enumerate(self.order())]

    def _row(self, id: int, place: int | None) -> Row:
        task = self.task(id)
        state: Literal["R", "Q"] = "R" if place is None else "Q"
        level, virtual = self.standing(id)
        return Row(id, task.aid, task.nice, state, self.used(id), place, level, virtual)

    def standing(self, id: int) -> tuple[int, float]:
        """A task's level and virtual tokens, for `Row`."""
        return 0, 0.0
