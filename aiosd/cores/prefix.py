"""Prefixes: which sequences of a core begin alike. A pure index, without a device or a clock.

Every whole grid chunk of a prompt has a key: a digest of its tokens and of all chunks before it.
The index says which sequences have computed the chunk of a key, within a scope: an agent's own
sequences are one scope each, so that nobody learns by asking what others have asked; the chunks
that a sequence declares public (`Sequence.public`) are in one more that all may use.

What must hold: a key stands for the tokens before its end and for nothing else; what the index says
is a hint, whoever uses it looks at the sequence's own record. A look-up costs one digest and one
probe a chunk; there are as many entries as sequences have computed chunks, and they go with them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

PUBLIC: Final = 0
"""The scope of what is no secret; agents have ids from 1."""

KEY: Final = 16  # bytes of a chunk's digest: nobody finds two prompts of one key


@dataclass(slots=True)
class _Entry:
    """One sequence: its chunks' keys, how many are in the index, and how many of them are public.

    scope is its own, in which all its chunks are.
    """

    scope: int
    keys: list[bytes]
    known: int = 0
    public: int = 0


class Prefixes:
    """The index of one core, whose prefill chunks end at multiples of `grid` tokens."""

    def __init__(self, grid: int) -> None:
        self._grid = grid
        self._entries: dict[int, _Entry] = {}
        self._scopes: dict[int, dict[bytes, list[int]]] = {}

    def __len__(self) -> int:
        """How many sequences are known."""
        return len(self._entries)

    def enter(self, id: int, scope: int, tokens: Sequence[int], public: int = 0) -> None:
        """Note what a sequence begins with; it holds none of it until `computed` says so.

        tokens: those that prefill from position 0 on computes. public: how many of them are no
        secret. One that is known already is taken anew.
        """
        keys = list(_keys(tokens, self._grid))
        open_ = min(public // self._grid, len(keys))
        known = self._entries.get(id)
        if known is not None and (known.scope, known.keys, known.public) == (scope, keys, open_):
            return
        self.leave(id)
        if keys:
            self._entries[id] = _Entry(scope, keys, public=open_)

    def computed(self, id: int, end: int) -> None:
        """A sequence's first `end` positions have been computed, chunk by chunk."""
        entry = self._entries.get(id)
        if entry is None:
            return
        for number in range(entry.known, min(end // self._grid, len(entry.keys))):
            for scope in self._scopes_of(entry, number):
                self._scopes.setdefault(scope, {}).setdefault(entry.keys[number], []).append(id)
            entry.known = number + 1

    def leave(self, id: int) -> None:
        """Forget a sequence."""
        entry = self._entries.pop(id, None)
        if entry is None:
            return
        for number, key in enumerate(entry.keys[: entry.known]):
            for scope in self._scopes_of(entry, number):
                self._remove(scope, key, id)

    def length(self, id: int) -> int:
        """Positions of a sequence's whole chunks, 0 when it is not known."""
        entry = self._entries.get(id)
        return len(entry.keys) * self._grid if entry else 0

    def public(self, id: int) -> bytes:
        """The key of a sequence's last public chunk, b"" when it has none."""
        entry = self._entries.get(id)
        return entry.keys[entry.public - 1] if entry and entry.public else b""

    def donors(self, id: int, least: int, most: int) -> Iterator[tuple[int, int]]:
        """Yield (sequence, positions) of those that begin as this one does, longest part first.

        least, most: positions of which there must be more, and not more. The newest come first.
        """
        entry = self._entries.get(id)
        if entry is None:
            return
        for number in range(min(most // self._grid, len(entry.keys)), least // self._grid, -1):
            for scope in {entry.scope: None, PUBLIC: None}:
                found = self._scopes.get(scope, {}).get(entry.keys[number - 1], ())
                for other in reversed(found):
                    if other != id:
                        yield other, number * self._grid

    def common(self, donor: int, taker: int) -> int:
        """How many positions a sequence could ever take from another one."""
        one, other = self._entries.get(donor), self._entries.get(taker)
        if one is None or other is None:
            return 0
        most = len(one.keys) if one.scope == other.scope else one.public
        for number, (a, b) in enumerate(zip(one.keys[:most], other.keys, strict=False)):
            if a != b:
                return number * self._grid
        return min(most, len(other.keys)) * self._grid

    def _scopes_of(self, entry: _Entry, number: int) -> tuple[int, ...]:
        if number < entry.public and entry.scope != PUBLIC:
            return entry.scope, PUBLIC
        return (entry.scope,)

    def _remove(self, scope: int, key: bytes, id: int) -> None:
        index = self._scopes[scope]
        index[key].remove(id)
        if not index[key]:
            del index[key]
        if not index:
            del self._scopes[scope]


def _keys(tokens: Sequence[int], grid: int) -> Iterator[bytes]:
    key = b""
    for end in range(grid, len(tokens) + 1, grid):
        chunk = array("i", tokens[end - grid : end]).tobytes()
        key = blake2b(key + chunk, digest_size=KEY).digest()
        yield key
