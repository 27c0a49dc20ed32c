"""A heap that knows where everything is: any entry can be moved or taken out in O(log n)."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Heap(Generic[T]):
    """Items ordered by a number, lowest first; equals in the order in which they were put in."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, T]] = []
        self._at: dict[T, int] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, item: object) -> bool:
        return item in self._at

    def __iter__(self) -> Iterator[T]:
        """The items in order. O(n log n)."""
        return (entry[2] for entry in sorted(self._entries, key=lambda entry: entry[:2]))

    def leading(self) -> Iterator[T]:
        """The items in order, found one after the other: k of them in O(k log k).

        Nothing may be put in or taken out meanwhile.
        """
        ahead = [(self._entries[0][:2], 0)] if self._entries else []
        while ahead:
            _, at = heapq.heappop(ahead)
            yield self._entries[at][2]
            for child in range(2 * at + 1, min(2 * at + 3, len(self._entries))):
                heapq.heappush(ahead, (self._entries[child][:2], child))

    def first(self) -> T:
        """The lowest item. IndexError when empty."""
        return self._entries[0][2]

    def lowest(self) -> float:
        """The lowest item's number. IndexError when empty."""
        return self._entries[0][0]

    def push(self, item: T, key: float) -> None:
        """Put an item in, after its equals; one that is in already is moved and keeps its turn."""
        at = self._at.get(item)
        if at is None:
            self._count += 1
            self._entries.append((key, self._count, item))
            self._rise(len(self._entries) - 1)
            return
        self._entries[at] = (key, self._entries[at][1], item)
        self._sink(self._rise(at))

    def discard(self, item: T) -> None:
        """Take an item out, if it is in."""
        at = self._at.pop(item, None)
        if at is None:
            return
        last = self._entries.pop()
        if at < len(self._entries):
            self._entries[at] = last
            self._sink(self._rise(at))

    def _rise(self, at: int) -> int:
        entries = self._entries
        entry = entries[at]
        while at and entry[:2] < entries[parent := (at - 1) // 2][:2]:
            self._put(at, entries[parent])
            at = parent
        self._put(at, entry)
        return at

    def _sink(self, at: int) -> None:
        entries = self._entries
        entry = entries[at]
        while (child := 2 * at + 1) < len(entries):
            if child + 1 < len(entries) and entries[child + 1][:2] < entries[child][:2]:
                child += 1
            if entry[:2] < entries[child][:2]:
                break
            self._put(at, entries[child])
            at = child
        self._put(at, entry)

    def _put(self, at: int, entry: tuple[float, int, T]) -> None:
        self._entries[at] = entry
        self._at[entry[2]] = at
