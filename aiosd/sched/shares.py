"""The tree of those who share a core: groups, their agents, and the agents' requests.

Each node has a virtual counter: the tokens that it has received, divided by its weight. Among the
children of one node the lowest counter is next. A node that has had nothing to do comes back with
its counter raised to the clock of its siblings less `credit`, so that it can't save up.

What must hold: a node is in its parent's queue exactly while it has something queued itself; what
is kept of nodes that have nothing to do is bounded.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

from .heap import Heap

REMEMBERED: Final = 1024
"""Children that have nothing to do and are ahead of the clock still: of more, the nearest go."""


class Node:
    """The root, a group or an agent.

    virtual: its counter, tokens in advance included. clock: the counter that was the lowest when
    one of its children was last given a slot; it never goes back. busy: what is in it that runs or
    is queued: requests of an agent, busy children of others. ready: children that have something
    queued; of an agent, the ids of its queued requests. share: what a token counts in a group (1
    by its weight); what it counts in an agent its seats say.
    """

    __slots__ = (
        "_children",
        "_idle",
        "busy",
        "clock",
        "credit",
        "name",
        "parent",
        "queue",
        "ready",
        "share",
        "virtual",
    )

    def __init__(self, credit: float, name: Hashable = None, parent: Node | None = None) -> None:
        self.name = name
        self.parent = parent
        self.credit = credit
        self.share = 1.0
        self.virtual = 0.0
        self.clock = 0.0
        self.busy = 0
        self.queue: Heap[int] = Heap()
        self.ready: Heap[Node] = Heap()
        self._children: dict[Hashable, Node] = {}
        self._idle: Heap[Node] = Heap()

    @property
    def remembered(self) -> int:
        """How many children are known, idle ones too."""
        return len(self._children)

    def child(self, name: Hashable) -> Node:
        """The child of this name, made if there is none."""
        node = self._children.get(name)
        if node is None:
            node = self._children[name] = Node(self.credit, name, self)
            self._idle.push(node, node.virtual)
        return node

    def path(self) -> list[Node]:
        """From the root's child down to this node."""
        path: list[Node] = []
        node = self
        while node.parent is not None:
            path.append(node)
            node = node.parent
        return path[::-1]

    def enter(self) -> None:
        """One thing more is to be done in it; if it was idle, it comes back without savings."""
        self.busy += 1
        if self.busy == 1 and self.parent is not None:
            self.parent._idle.discard(self)
            self.catch_up()
            self.parent.enter()

    def leave(self) -> None:
        """One thing less is to be done in it."""
        self.busy -= 1
        if not self.busy and self.parent is not None:
            self.parent._forget(self)
            self.parent.leave()

    def catch_up(self) -> None:
        """Take from its counter what it is further behind its siblings than the credit."""
        if self.parent is not None:
            self.virtual = max(self.virtual, self.parent.clock - self.credit)
            self.sort()

    def tick(self) -> None:
        """It is given a slot: its siblings' clock goes on to its counter."""
        if self.parent is not None:
            self.parent.clock = max(self.parent.clock, self.virtual)

    def pay(self, tokens: float) -> None:
        """Add weighted tokens to the counter."""
        self.virtual += tokens
        self.sort()

    def sort(self) -> None:
        """Put itself where it belongs in its parent's queue, or take itself out of it."""
        if self.parent is None:
            return
        if self.queue or self.ready:
            self.parent.ready.push(self, self.virtual)
        else:
            self.parent.ready.discard(self)
        if len(self.parent.ready) <= 1:
            self.parent.sort()

    def _forget(self, child: Node) -> None:
        """Remember of idle children those alone who are ahead of the clock."""
        child._children.clear()
        child._idle = Heap()
        self._idle.push(child, child.virtual)
        floor = self.clock - self.credit
        while self._idle and (self._idle.lowest() <= floor or len(self._idle) > REMEMBERED):
            gone = self._idle.first()
            self._idle.discard(gone)
            del self._children[gone.name]
