"""What is due to whom: the part of a core that each agent would get under fair shares.

By this one can tell how far any policy departs from them: `top` shows it beside what agents get.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from .policy import Task
from .weights import weight


@dataclass(frozen=True, slots=True)
class Parties:
    """Who shares with whom, as Fair's options of these names say."""

    groups: bool = True
    members: Mapping[int, str] = field(default_factory=dict)
    weights: Mapping[Hashable, float] = field(default_factory=dict)

    def due(self, tasks: Iterable[Task]) -> dict[int, float]:
        """Return the part (0 to 1) due to each agent that has one of these tasks, by aid."""
        parties: dict[Hashable, dict[int, float]] = {}
        for task in tasks:
            agents = parties.setdefault(self._party(task), {})
            agents[task.aid] = max(weight(task.nice), agents.get(task.aid, 0.0))
        worth = {
            party: self.weights.get(party, 1.0) if self.groups else sum(agents.values())
            for party, agents in parties.items()
        }
        total = sum(worth.values())
        return {
            aid: worth[party] / total * own / sum(agents.values())
            for party, agents in parties.items()
            for aid, own in agents.items()
        }

    def _party(self, task: Task) -> Hashable:
        if not self.groups:
            return ""
        return task.group or self.members.get(task.uid) or task.uid
