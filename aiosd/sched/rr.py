"""Round robin: everyone in turn, a quantum of tokens each; prompt tokens count as well.

Nobody starves: a task at place p of the queue starts when each of the tasks before it on its slot,
at most p // slots + 1, has spent a quantum (and the step that ended it).
"""

from __future__ import annotations

from .levels import DEFAULT_QUANTUM, Levels
from .policy import Task


class RoundRobin(Levels):
    """One level with a quantum."""

    name = "rr"

    def __init__(self, quantum: int = DEFAULT_QUANTUM) -> None:
        """quantum: tokens a task may compute before it gives way to one that waits."""
        super().__init__(levels=1, quantum=quantum)

    def level(self, task: Task) -> int:
        """Everyone is in the one level."""
        return 0
