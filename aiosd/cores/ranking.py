"""A ranking: things in the order of a key, put right only where a key has changed.

Finding the first one that will do takes a few steps, however many there are; a change costs a
search and a shift of pointers.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
Key = tuple[float, ...]


class Ranking(Generic[T]):
    """Things by name, in the order of `key`; those with equal keys in the order given."""

    def __init__(self, key: Callable[[T], Key], things: Iterable[tuple[str, T]]) -> None:
        self._key = key
        self._things: dict[int, T] = {}
        self._places: dict[str, tuple[Key, int]] = {}
        self._stale: set[str] = set()
        for number, (name, thing) in enumerate(things):
            self._things[number] = thing
            self._places[name] = (key(thing), number)
        self._order = sorted(self._places.values())

    def __len__(self) -> int:
        return len(self._order)

    def changed(self, name: str) -> None:
        """Note that the key of a thing may be another now; nothing when it is none of these."""
        if name in self._places:
            self._stale.add(name)

    def all_changed(self) -> None:
        """Note that any key may be another now."""
        self._stale.update(self._places)

    def __iter__(self) -> Iterator[T]:
        """Go through all, the first one first; nothing may change meanwhile."""
        while self._stale:
            self._mend(self._stale.pop())
        for _, number in self._order:
            yield self._things[number]

    def _mend(self, name: str) -> None:
        old = self._places[name]
        new = (self._key(self._things[old[1]]), old[1])
        if new != old:
            del self._order[bisect_left(self._order, old)]
            insort(self._order, new)
            self._places[name] = new
