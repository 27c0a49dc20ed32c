"""The index of beginnings, without a core."""

from __future__ import annotations

import random

from aiosd.cores.prefix import PUBLIC, Prefixes

GRID = 4
TEXT = list(range(100, 130))


def index(**computed: tuple[int, list[int], int, int]) -> Prefixes:
    """Make one from name=(scope, tokens, public, computed); the names' numbers are the ids."""
    prefixes = Prefixes(GRID)
    for name, (scope, tokens, public, end) in computed.items():
        prefixes.enter(int(name[1:]), scope, tokens, public)
        prefixes.computed(int(name[1:]), end)
    return prefixes


def first(prefixes: Prefixes, id: int, least: int = 0, most: int = 1000) -> tuple[int, int] | None:
    return next(prefixes.donors(id, least, most), None)


def test_the_longest_beginning_is_found_of_whole_chunks_that_were_computed() -> None:
    prefixes = index(s1=(7, TEXT[:10], 0, 10), s2=(7, TEXT[:17], 0, 14), s3=(7, TEXT, 0, 0))
    assert list(prefixes.donors(3, 0, 1000)) == [(2, 12), (2, 8), (1, 8), (2, 4), (1, 4)]
    assert first(prefixes, 3, most=11) == (2, 8)
    assert first(prefixes, 3, least=8) == (2, 12)
    assert first(prefixes, 3, least=12) is None
    assert first(prefixes, 2) == (1, 8)


def test_a_chunk_counts_with_all_that_is_before_it() -> None:
    other = [1, *TEXT[1:]]
    prefixes = index(s1=(7, TEXT, 0, 30), s2=(7, other, 0, 0), s3=(7, TEXT[4:], 0, 0))
    assert first(prefixes, 2) is None and first(prefixes, 3) is None
    assert prefixes.common(1, 2) == prefixes.common(1, 3) == 0


def test_nobody_finds_what_is_anothers() -> None:
    prefixes = index(s1=(7, TEXT, 0, 30), s2=(8, TEXT, 0, 0), s3=(7, TEXT, 0, 0))
    assert first(prefixes, 2) is None and prefixes.common(1, 2) == 0
    assert first(prefixes, 3) == (1, 28) and prefixes.common(1, 3) == 28


def test_what_is_public_is_everybodys_and_no_more_than_that() -> None:
    prefixes = index(s1=(7, TEXT, 11, 30), s2=(8, TEXT, 0, 0), s3=(7, TEXT, 0, 0))
    assert list(prefixes.donors(2, 0, 1000)) == [(1, 8), (1, 4)]
    assert prefixes.common(1, 2) == 8 and prefixes.common(2, 1) == 0
    assert first(prefixes, 3) == (1, 28)
    prefixes.enter(4, PUBLIC, TEXT[:8], 8)
    prefixes.computed(4, 8)
    prefixes.leave(1)
    assert list(prefixes.donors(2, 0, 1000)) == [(4, 8), (4, 4)]
    assert prefixes.public(4) and prefixes.public(2) == b""


def test_a_sequence_that_goes_on_otherwise_is_taken_anew() -> None:
    prefixes = index(s1=(7, TEXT, 0, 30), s2=(7, TEXT, 0, 0))
    prefixes.enter(1, 7, TEXT)
    assert first(prefixes, 2) == (1, 28)
    prefixes.enter(1, 7, TEXT[:8] + TEXT[:8])
    assert first(prefixes, 2) is None
    prefixes.computed(1, 16)
    assert first(prefixes, 2) == (1, 8)
    prefixes.enter(1, 9, TEXT)
    assert first(prefixes, 2) is None


def test_what_is_not_known_has_nothing() -> None:
    prefixes = index(s1=(7, TEXT[:3], 0, 3))
    prefixes.computed(2, 8)
    prefixes.leave(2)
    assert len(prefixes) == 0
    assert first(prefixes, 1) is None and prefixes.length(1) == prefixes.common(1, 2) == 0


def test_nothing_is_left_of_those_that_leave() -> None:
    rng = random.Random(1)
    prefixes, here = Prefixes(GRID), dict[int, tuple[int, list[int], int, int]]()
    for _ in range(2000):
        id = rng.randrange(20)
        if rng.random() < 0.3:
            prefixes.leave(id)
            here.pop(id, None)
        else:
            scope, tokens = rng.randrange(1, 4), TEXT[: rng.randrange(8, 30)]
            tokens[rng.randrange(8)] += rng.randrange(2)
            public, end = rng.choice([0, 0, 8, 40]), rng.randrange(31)
            prefixes.leave(id)
            prefixes.enter(id, scope, tokens, public)
            prefixes.computed(id, end)
            here[id] = scope, tokens, public, end
        asker = rng.randrange(20)
        assert first(prefixes, asker) == expected(here, asker, prefixes)
    for id in range(20):
        prefixes.leave(id)
    assert len(prefixes) == 0 and not prefixes._scopes


def expected(
    here: dict[int, tuple[int, list[int], int, int]], asker: int, prefixes: Prefixes
) -> tuple[int, int] | None:
    """The same, found the slow way; of several of one length any will do."""
    if asker not in here:
        return None
    scope, tokens = here[asker][:2]
    best: dict[int, int] = {}
    for id, (other, theirs, public, end) in here.items():
        most = min(end, len(tokens), len(theirs) if other == scope else min(public, len(theirs)))
        same = next((n for n in range(most) if tokens[n] != theirs[n]), most)
        if id != asker and same >= GRID:
            best[id] = same // GRID * GRID
    found = first(prefixes, asker)
    if found and best and best.get(found[0]) == max(best.values()) == found[1]:
        return found
    return max(((id, n) for id, n in best.items()), key=lambda pair: pair[1], default=None)
