"""Strict priority: the lowest nice runs first and preempts; equals take turns as in round robin.

A task can starve here for as long as better ones keep coming: that is what strict means.
"""

from __future__ import annotations

from .levels import DEFAULT_QUANTUM, Levels
from .policy import NICE_MAX, NICE_MIN, Task


class Priority(Levels):
    """One level for each nice."""

    name = "priority"

    def __init__(self, quantum: int = DEFAULT_QUANTUM) -> None:
        """quantum: tokens a task may compute before it gives way to a waiting equal."""
        super().__init__(levels=NICE_MAX - NICE_MIN + 1, quantum=quantum)

    def level(self, task: Task) -> int:
        """A level for each nice."""
        return task.nice - NICE_MIN
