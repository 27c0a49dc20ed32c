"""Words of a query, as an FTS5 expression. Pure.

Whatever stands in a query is data: only its words are taken, each quoted, so that nothing of
FTS5's syntax (operators, columns, quotes) is left of it.
"""

from __future__ import annotations

import re
from typing import Final

MAX_WORDS: Final = 64
"""Words of a query that count."""


def some(query: str) -> str:
    """Return an expression for texts that have any of a query's words; "" for none."""
    return " OR ".join(_quoted(query))


def every(query: str) -> str:
    """Return an expression for texts that have all of a query's words; "" for none."""
    return " AND ".join(_quoted(query))


def _quoted(query: str) -> list[str]:
    words = dict.fromkeys(re.findall(r"\w+", query.lower()))
    return [f'"{word}"' for word in list(words)[:MAX_WORDS]]
