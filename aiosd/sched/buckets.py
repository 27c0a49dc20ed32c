"""An ordered set of ids in a few dozen levels: every operation O(1) but iteration.

As in an O(1) scheduler: a queue for each level and a bitmap of the levels that hold something.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, KeysView


class Buckets:
    """Ids by level (0 is first), and within a level in the order they were put in."""

    def __init__(self, levels: int) -> None:
        # OrderedDict and not dict: taking the first of a dict walks over all that left before it.
        self._queues: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(levels)]
        self._level: dict[int, int] = {}
        self._filled = 0  # bit n: level n holds something

    @property
    def ids(self) -> KeysView[int]:
        """A live, set-like view of everything held."""
        return self._level.keys()

    def __len__(self) -> int:
        return len(self._level)

    def __iter__(self) -> Iterator[int]:
        for queue in self._queues:
            yield from queue

    def push(self, level: int, id: int) -> None:
        """Put an id at the tail of its level."""
        self._queues[level][id] = None
        self._level[id] = level
        self._filled |= 1 << level

    def push_front(self, level: int, id: int) -> None:
        """Put an id at the head of its level."""
        self.push(level, id)
        self._queues[level].move_to_end(id, last=False)

    def discard(self, id: int) -> None:
        """Take an id out, if it is in."""
        level = self._level.pop(id, None)
        if level is None:
            return
        queue = self._queues[level]
        del queue[id]
        if not queue:
            self._filled &= ~(1 << level)

    def lowest(self) -> int | None:
        """The first level that holds something."""
        return (self._filled & -self._filled).bit_length() - 1 if self._filled else None

    def highest(self) -> int | None:
        """The last level that holds something."""
        return self._filled.bit_length() - 1 if self._filled else None

    def first(self) -> int:
        """The head of the first level. KeyError when empty."""
        level = self.lowest()
        if level is None:
            raise KeyError("empty")
        return next(iter(self._queues[level]))

    def at(self, level: int) -> OrderedDict[int, None]:
        """The queue of one level, to read."""
        return self._queues[level]
