"""First in, first out: each task runs to completion, in order of arrival."""

from __future__ import annotations

from .levels import DEFAULT_QUANTUM, Levels
from .policy import Task


class Fifo(Levels):
    """One level without a quantum: nobody is preempted, unless the core loses slots."""

    name = "fifo"

    def __init__(self, quantum: int = DEFAULT_QUANTUM) -> None:
        """quantum: taken by every policy, so that one setting serves them all; unused here."""
        super().__init__(levels=1, quantum=None)

    def level(self, task: Task) -> int:
        """Everyone is in the one level."""
        return 0
