"""A context's window: what is in it, and what goes when it is full. Pure.

A context has turns: each request's prompt (role user) and its reply (assistant), one after the
other; the tokens before the first turn's `head` are the system prompt, which stays. When the window
is full, `truncation` says which tokens stay, `sliding` how the KV shifts, and `Window.restart`
keeps the books of a context that begins anew with some of its tokens.

What must hold: turns are in the order of their starts, and their numbers count on for ever; the
position of a token, counted from the context's very first one, is `before` and its index.
"""

from __future__ import annotations

import errno
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from aiosd.abi.inference import POLICIES
from aiosd.engine.protocol import Slide

SINK: Final = 4  # first tokens that a sliding window keeps; a model leans on them (StreamingLLM)
LOG: Final = 8  # windows that a sliding context's record may span before it begins anew

PROMPT: Final = "user"
REPLY: Final = "assistant"


@dataclass(slots=True)
class Turn:
    """One prompt or one reply: its number in the context's life, and the index where it starts.

    lead: how many of its first tokens only close the turn before it.
    """

    number: int
    role: str
    start: int
    lead: int = 0


@dataclass(slots=True)
class Window:
    """What a context knows of its window beside its tokens.

    head: where the system prompt ends. lead: of a later turn, see `Turn`. before: how many tokens
    have gone for good. slid: shifts that are on the sequence's record no more. The others count
    how often each has happened. summary: tokens right behind the system prompt that stand for turns
    that went. internal: a context of the kernel's own, for one request. offered: of which functions
    its head tells in the template's own way (callforms.digest), "" of none.
    """

    policy: str = "error"
    head: int = 0
    lead: int = 0
    before: int = 0
    slid: int = 0
    truncated: int = 0
    summarized: int = 0
    expanded: int = 0
    summary: int = 0
    internal: bool = False
    offered: str = ""
    count: int = 0
    turns: list[Turn] = field(default_factory=list)

    def read(self, start: int, end: int, *, lead: int = 0, head: int = 0) -> None:
        """Note a prompt of the tokens start to end, and that a reply begins after it.

        Turns that a roll-back has undone are forgotten.
        """
        while self.turns and self.turns[-1].start >= start > 0:
            self.turns.pop()
        if not start:
            self.turns, self.head, self.summary = [], head, 0
        if start < end:
            self._begin(PROMPT, start, lead)
        if not self.turns or self.turns[-1].role == PROMPT:
            self._begin(REPLY, end, 0)

    def _begin(self, role: str, start: int, lead: int) -> None:
        self.count += 1
        self.turns.append(Turn(self.count, role, start, lead))

    def restart(self, kept: Sequence[int], length: int, inserted: int = 0) -> None:
        """The context begins anew: of its `length` tokens those at these indices stay.

        inserted: new tokens that come right behind the system prompt.
        """
        head = bisect_left(kept, self.head)
        turns = []
        ends = [*(turn.start for turn in self.turns[1:]), length]
        for turn, end in zip(self.turns, ends, strict=False):
            first, last = bisect_left(kept, turn.start), bisect_left(kept, end)
            if first < last or turn is self.turns[-1]:
                lead = turn.lead if first < len(kept) and kept[first] == turn.start else 0
                moved = inserted if first >= head else 0
                turns.append(Turn(turn.number, turn.role, first + moved, lead))
        old = bisect_left(kept, self.head + self.summary) - head
        self.before += length - len(kept) - inserted
        self.turns, self.head, self.summary = turns, head, old + inserted

    @property
    def aside(self) -> range:
        """The indices of the summary's tokens: they are no turn's."""
        return range(self.head, self.head + self.summary)

    def meta(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        found = asdict(self)
        found["turns"] = [[t.number, t.role, t.start, t.lead] for t in self.turns]
        return found

    @classmethod
    def of(cls, meta: dict[str, Any]) -> Window:
        """Take back what `meta` gave; what is unknown here is left out."""
        known = {name: meta[name] for name in cls.__dataclass_fields__ if name in meta}
        known["turns"] = [Turn(*turn) for turn in known.get("turns", [])]
        return cls(**known)


def check(policy: str) -> None:
    """Raise OSError(EINVAL) for a policy that there isn't."""
    if policy not in POLICIES:
        raise OSError(errno.EINVAL, f"policy: {policy!r} is none of {', '.join(POLICIES)}")


def truncation(
    window: Window, held: Sequence[int], size: int, *, extra: int = 0, follows: bool = False
) -> tuple[list[int], bool]:
    """Say which tokens stay when the oldest turns go, so that a quarter of the window is free.

    held: indices of the tokens in the window, the new prompt's among them. extra: tokens that will
    come in place of what goes; follows: as a turn that those which stay follow. Whole turns go, but
    a turn that is too long alone loses its oldest part. Returns the indices that stay, and whether
    they begin inside a turn. Raises OSError(ENOSPC) when the system prompt leaves no room.
    """
    goal, enough = size - max(1, size // 4) - extra, size - max(1, size // 8) - extra
    system = bisect_left(held, window.head)
    best: list[int] | None = None
    for start, lead in _cuts(window):
        first = bisect_left(held, start + (0 if system or follows else lead))
        if first <= system or first == len(held):
            continue
        count = system + len(held) - first
        if count <= enough:
            best = [*held[:system], *held[first:]]
        if count <= goal:
            break
    if best is not None:
        return best, False
    if goal - system < size // 8:
        raise OSError(
            errno.ENOSPC,
            f"the system prompt has {system} tokens, which leaves no room in a window of {size}; "
            "shorten it, or expand the context",
        )
    return [*held[:system], *held[len(held) - (goal - system) :]], True


def _cuts(window: Window) -> list[tuple[int, int]]:
    """The starts and leads of all prompts, oldest first: what is before one may go."""
    return [(turn.start, turn.lead) for turn in window.turns if turn.role == PROMPT]


def dropped(
    window: Window, held: Sequence[int], kept: Sequence[int], length: int
) -> list[tuple[Turn, list[int]]]:
    """Return what goes of each turn, by the indices of its tokens. A summary is no turn's."""
    stay, floor = set(kept), window.head + window.summary
    ends = [*(turn.start for turn in window.turns[1:]), length]
    found = []
    for turn, end in zip(window.turns, ends, strict=False):
        first, last = bisect_left(held, max(turn.start, floor)), bisect_left(held, end)
        if going := [at for at in held[first:last] if at not in stay]:
            found.append((turn, going))
    return found


def sliding(window: Window, size: int, grid: int) -> Slide:
    """Say how a window of this size slides: a quarter at a time, in whole chunks.

    The system prompt stays when it is short. Raises OSError(EINVAL) for a window too small.
    """
    keep = window.head if SINK <= window.head <= size // 4 else SINK
    gone = max(1, (size - keep) // 4 // grid) * grid
    if keep + gone >= size:
        raise OSError(
            errno.EINVAL,
            f"policy slide: a window of {size} tokens is too small for chunks of {grid}; "
            "use truncate, or a core with a larger n_ctx",
        )
    return Slide(keep=keep, gone=gone, window=size, limit=LOG * size)


def slid(held: Sequence[int], slide: Slide) -> list[int]:
    """Say which tokens stay when a window slides once."""
    return [*held[: slide.keep], *held[slide.keep + slide.gone :]]


def whole(pieces: Sequence[bytes]) -> int:
    """Return how many of the first tokens continue a character that began before them."""
    for count, piece in enumerate(pieces):
        if not piece or not 0x80 <= piece[0] < 0xC0:
            return count
    return len(pieces)


def larger(size: int, wanted: int, trained: int, *, beyond: bool) -> int:
    """Return the window of the smallest slot class that holds `wanted` tokens.

    Classes double from the core's own window, and end with what the model was trained for, unless
    it is allowed to go beyond. Raises OSError(EINVAL) that says how.
    """
    if wanted <= size:
        return size
    while size < wanted:
        size *= 2
    if wanted <= trained:
        return min(size, trained)
    if beyond:
        return size
    raise OSError(
        errno.EINVAL,
        f"tokens: {wanted}; the model was trained for {trained}. Beyond that its positions have to "
        "be scaled, by YaRN: exp_context with yarn, or policy expand-yarn",
    )
