"""What a nice is worth: each step is a factor of 1.25, as in Linux, and nice 0 has weight 1."""

from __future__ import annotations

from typing import Final

from .policy import NICE_MAX, NICE_MIN

STEP: Final = 1.25

_SHARES: Final = tuple(STEP**nice for nice in range(NICE_MIN, NICE_MAX + 1))


def weight(nice: int) -> float:
    """The weight of a nice: 86.7 at -20, 1 at 0, 0.0144 at 19."""
    return 1.0 / _SHARES[nice - NICE_MIN]


def share(nice: int) -> float:
    """What one token counts at a nice: 1 / weight."""
    return _SHARES[nice - NICE_MIN]
