"""Scheduling policies, found by name. Pure: no I/O, no clock, no device, nothing else of ours.

    policy = sched.make("rr", quantum=64)

A new policy is a class in a file of its own and a line in POLICIES.
"""

from __future__ import annotations

import difflib
import errno
import inspect
from typing import Any

from .fair import Fair
from .fifo import Fifo
from .mlfq import Mlfq
from .policy import LOOK, NICE_MAX, NICE_MIN, Plan, Policy, Row, Task
from .priority import Priority
from .rr import RoundRobin

__all__ = [
    "LOOK",
    "NICE_MAX",
    "NICE_MIN",
    "POLICIES",
    "Fair",
    "Fifo",
    "Mlfq",
    "Plan",
    "Policy",
    "Priority",
    "RoundRobin",
    "Row",
    "Task",
    "change",
    "make",
    "takes",
]

POLICIES: dict[str, type[Policy]] = {
    cls.name: cls for cls in (Fifo, RoundRobin, Priority, Mlfq, Fair)
}


def make(name: str, **options: Any) -> Policy:
    """Make an empty policy by its name, e.g. make("rr", quantum=8).

    Raises OSError(EINVAL) for a name, an option or a value that doesn't exist, with the nearest.
    """
    cls = POLICIES.get(name)
    if cls is None:
        raise OSError(errno.EINVAL, f"no policy {name!r}{_nearest(name, list(POLICIES))}")
    known = list(inspect.signature(cls).parameters)
    for option in options:
        if option not in known:
            reason = f"policy {name} has no option {option!r}{_nearest(option, known)}"
            raise OSError(errno.EINVAL, reason)
    return cls(**options)


def takes(name: str, option: str) -> bool:
    """Whether the policy of this name has such an option; False for an unknown name."""
    cls = POLICIES.get(name)
    return cls is not None and option in inspect.signature(cls).parameters


def change(old: Policy, name: str, **options: Any) -> Policy:
    """Make a policy that takes over another's tasks, for a change while they run.

    What is on the core stays there until the next plan says otherwise. Raises as `make` does, and
    `old` is then as it was (it always is: it's read only).
    """
    new = make(name, **options)
    for task in old.waiting:
        new.wait(task)
    for row in old.snapshot():
        take = new.adopt if row.state == "R" else new.add
        take(old.task(row.id))
    return new


def _nearest(word: str, valid: list[str]) -> str:
    close = difflib.get_close_matches(word, valid, n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (valid: {', '.join(valid)})"
