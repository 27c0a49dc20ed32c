"""Watermarks: texts that can be recognised as this kernel's by who has its key. Pure.

After Kirchenbauer et al., "A Watermark for Large Language Models" (2023): the token before a
position, hashed with a secret key, seeds the choice of a quarter of the vocabulary, the green list;
green tokens are made likelier by DELTA. Who knows the key counts: without a watermark a quarter of
the tokens is green, with one far more.

What must hold: `green` and `greens` agree; changing either makes old texts unrecognisable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import blake2b
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

GAMMA: Final = 0.25  # share of the vocabulary that is green
DELTA: Final = 2.0  # added to the logits of green tokens
SHOWN: Final = 4.0  # a z-score above which a text counts as marked: by chance, 1 in 30,000

_MASK: Final = (1 << 64) - 1
_LIMIT: Final = int(GAMMA * 2**64)
_STEPS: Final = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


class Count(NamedTuple):
    """What was found in a text: pairs of neighbours, each counted once, and how many are green.

    A pair that returns says nothing new: it is green again, or not.
    """

    pairs: int
    green: int

    @property
    def z(self) -> float:
        """By how many standard deviations there are more green tokens than chance explains."""
        if not self.pairs:
            return 0.0
        expected = GAMMA * self.pairs
        return (self.green - expected) / math.sqrt(expected * (1 - GAMMA))

    @property
    def p(self) -> float:
        """The probability that a text without the mark has as many green tokens."""
        return 0.5 * math.erfc(self.z / math.sqrt(2))


def count(key: bytes, tokens: Sequence[int]) -> Count:
    """Count a text's green tokens."""
    pairs = set(pairwise(tokens))
    return Count(len(pairs), sum(green(seed(key, before), token) for before, token in pairs))


def seed(key: bytes, before: int) -> int:
    """The seed of the green list after a token."""
    digest = blake2b(before.to_bytes(4, "little"), key=key, digest_size=8).digest()
    return int.from_bytes(digest, "little")


def green(seed: int, token: int) -> bool:
    """Whether a token is on the green list of a seed."""
    z = (seed + (token + 1) * _STEPS[0]) & _MASK
    z = ((z ^ (z >> 30)) * _STEPS[1]) & _MASK
    z = ((z ^ (z >> 27)) * _STEPS[2]) & _MASK
    return (z ^ (z >> 31)) < _LIMIT


def greens(seed: int, size: int) -> npt.NDArray[np.bool_]:
    """The green list of a seed, over a vocabulary of this size."""
    import numpy as np

    with np.errstate(over="ignore"):
        z = np.arange(1, size + 1, dtype=np.uint64) * np.uint64(_STEPS[0]) + np.uint64(seed)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(_STEPS[1])
        z = (z ^ (z >> np.uint64(27))) * np.uint64(_STEPS[2])
    found: npt.NDArray[np.bool_] = (z ^ (z >> np.uint64(31))) < np.uint64(_LIMIT)
    return found
