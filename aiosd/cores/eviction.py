"""Which KV is given up first when a tier is full: the choice, and nothing else. Pure.

What a holding is worth is the time that it saves, by how soon it will save it, for each byte that
it takes: seconds to get it back from where it would be without it (the disk, or a computation, as
measured on its core), weighted by its agent's nice, over its size and the seconds until its agent
will probably want it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

SOONEST: Final = 0.05  # seconds: what waits for a slot is wanted as soon as one is free
STOPPED: Final = 60.0  # seconds: one that was suspended is not expected back before
UNKNOWN: Final = 1.0  # seconds between two requests of an agent that has made one only


@dataclass(frozen=True, slots=True)
class Holding:
    """KV in a tier. key: its file; back: seconds to get it back without; soon: until it is wanted.

    weight: what its agent's nice is worth, 1 at nice 0.
    """

    key: str
    size: int
    back: float
    soon: float
    weight: float = 1.0

    @property
    def worth(self) -> float:
        """Seconds saved for each byte and second that it is held."""
        return self.back * self.weight / (max(self.size, 1) * max(self.soon, SOONEST))


def victims(
    holdings: Iterable[Holding], wanted: int, below: float = float("inf")
) -> list[Holding] | None:
    """Return those to give up for `wanted` bytes, worth least first; None when that can't be.

    below: only what is worth less than this is given up.
    """
    chosen: list[Holding] = []
    for holding in sorted(holdings, key=lambda h: h.worth):
        if wanted <= 0:
            break
        if holding.worth >= below:
            return None
        chosen.append(holding)
        wanted -= holding.size
    return chosen if wanted <= 0 else None


def wanted_in(queued: bool, stopped: bool, idle: float, gap: float) -> float:
    """Estimate the seconds until a context is wanted again.

    queued: it has work to do. stopped: its agent is suspended, or reads too slowly. idle: seconds
    since it was last used. gap: seconds that its agent usually lets pass between requests, 0 when
    that is not known. An agent that is late is expected to take as long again as it has taken.
    """
    if stopped:
        return STOPPED + idle
    if queued:
        return SOONEST
    usual = gap or UNKNOWN
    return max(usual - idle, usual / 4) if idle <= 2 * usual else idle
