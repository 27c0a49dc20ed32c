"""Redaction: what of a text may be kept. Patterns are struck out, and what is too long is cut.

    redaction = Redaction(["sk-[A-Za-z0-9]{20,}"])
    kept = redaction.kept(text, 64 << 10)

Pure but for the clock that bounds it: patterns are somebody's, texts anybody's, and together they
may take for ever. So they get TIME, in a thread that lets others run meanwhile, and a text that is
not done by then is withheld.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import regex

TIME: Final = 0.5
"""Seconds that one pattern may take on one text."""
BEYOND: Final = 16 << 10
"""Characters beyond a cut that the patterns see: what begins before it is struck out whole."""
STRUCK: Final = "[redacted]"
WITHHELD: Final = "[withheld: the patterns of [history] redact took too long on it]"


class Redaction:
    """What is done to texts. patterns: regular expressions; ValueError for one that is none."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = [compiled(pattern) for pattern in patterns]

    def kept(self, text: str, most: int) -> str:
        """Return what is kept of a text; it says itself what was struck out, cut or withheld.

        most: bytes, beside what says so.
        """
        seen = text[: most + BEYOND]
        try:
            for pattern in self._patterns:
                seen = pattern.sub(STRUCK, seen, timeout=TIME, concurrent=True)
        except TimeoutError:
            return WITHHELD
        if len(text) > most + BEYOND:
            seen = seen[:-BEYOND]  # what the end of what was seen would have been part of
        data = seen.encode()
        if len(text) <= most + BEYOND and len(data) <= most:
            return seen
        some = data[:most].decode(errors="ignore")
        return f"{some}\n[cut: {len(some)} of {len(text)} characters are kept]"


def compiled(pattern: str) -> regex.Pattern[str]:
    """Return a regular expression. Raises ValueError for what is none."""
    import regex  # takes long to import, and most kernels have no patterns

    try:
        return regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
