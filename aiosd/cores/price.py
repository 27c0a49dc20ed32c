"""Prices: what tokens cost on a core. Amounts are whole billionths of a dollar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

NANO_PER_TOKEN: Final = 1000
"""Billionths of a dollar per token, for each dollar per million tokens."""


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars per million tokens: of a prompt those that must be computed, and of the output.

    cached: of a prompt those that a provider had read before; local ones cost nothing.
    """

    prompt: float = 0.0
    output: float = 0.0
    cached: float = 0.0

    def nano(self, prompt: int, output: int, cached: int = 0) -> int:
        """Return what so many tokens cost; more tokens never cost less."""
        dollars = prompt * self.prompt + output * self.output + cached * self.cached
        return round(dollars * NANO_PER_TOKEN)
