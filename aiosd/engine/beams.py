"""Beam search: which continuations of a text are kept. Pure; `Gang` carries it out in slots.

A branch is one continuation, its score the sum of its tokens' log-probabilities; nothing is added
for its length, so a score can only fall. At each step the likeliest continuations of all branches
compete: those that end go to `ended`, of the others the best `width` live on. The search is over
when no live branch can overtake the worst of `width` ended ones, or when the text is long enough.

What must hold: it depends on the log-probabilities alone, equals are told apart by branch and
token; so a search that is computed again, or goes on from a copy of its tree, finds the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

Option = tuple[int, float]
"""A token that may come next, and its log-probability."""


class Branch(msgspec.Struct, frozen=True, array_like=True):
    """One continuation: its tokens, the log-probability of each, and of all together.

    finish: "" while it lives, else "stop" (its last log-probability is that of the end, which is
    no token of it) or "length".
    """

    tokens: list[int]
    logprobs: list[float]
    score: float
    finish: str = ""


class Tree(msgspec.Struct, frozen=True, array_like=True):
    """A search in the middle: what a snapshot of it holds beside the KV of each live branch."""

    live: list[Branch]
    ended: list[Branch]


class Search:
    """A search for the `width` best continuations of at most `most` tokens."""

    def __init__(self, width: int, most: int, tree: Tree | None = None) -> None:
        """tree: where to go on."""
        self._width = width
        self._most = most
        self.live = tree.live if tree else [Branch([], [], 0.0)]
        self._ended = tree.ended if tree else []

    @property
    def tree(self) -> Tree:
        """All that it knows."""
        return Tree(self.live, self._ended)

    @property
    def done(self) -> bool:
        """Whether nothing better can come."""
        if not self.live or len(self.live[0].tokens) >= self._most:
            return True
        full = len(self._ended) >= self._width
        return full and self._ended[-1].score >= max(branch.score for branch in self.live)

    def grow(self, options: Sequence[Sequence[Option]], is_end: Callable[[int], bool]) -> list[int]:
        """Go one token on; options: the likeliest of each live branch, `width` that don't end.

        Returns, for each branch that lives now, the number of the one that it continues.
        """
        ranked = sorted(
            (-(branch.score + logprob), parent, token, logprob)
            for parent, branch in enumerate(self.live)
            for token, logprob in options[parent]
        )
        live: list[Branch] = []
        parents: list[int] = []
        for negative, parent, token, logprob in ranked:
            if len(live) == self._width:
                break
            old = self.live[parent]
            logprobs = [*old.logprobs, logprob]
            if is_end(token):
                self._ended.append(Branch(old.tokens, logprobs, -negative, "stop"))
            else:
                live.append(Branch([*old.tokens, token], logprobs, -negative))
                parents.append(parent)
        self.live = live
        self._ended = sorted(self._ended, key=_rank)[: self._width]
        return parents

    def best(self) -> list[Branch]:
        """What was found, the best first."""
        cut = [Branch(b.tokens, b.logprobs, b.score, "length") for b in self.live]
        return sorted([*self._ended, *cut], key=_rank)[: self._width]


def _rank(branch: Branch) -> tuple[float, list[int]]:
    return -branch.score, branch.tokens
