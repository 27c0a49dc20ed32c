"""Passages: a text cut into pieces that a search can find, each with its place in the bytes.

Pure. A passage ends where the text does best: after a paragraph, a sentence, a word; and begins a
little before the last one's end, so that what stands on a border is found as well.
"""

from __future__ import annotations

from typing import Final

SIZE: Final = 800
"""Characters of a passage, at most."""
OVERLAP: Final = 100
"""Characters that two passages share, at most."""
_BREAKS: Final = ("\n\n", "\n", ". ", "! ", "? ", "; ", ", ", " ")
_TEXTS: Final = frozenset(
    f"application/{kind}"
    for kind in ("json", "xml", "yaml", "x-yaml", "toml", "javascript", "sql", "x-sh", "x-ndjson")
)


def readable(content_type: str) -> bool:
    """Whether bytes of this type are text."""
    kind = content_type.partition(";")[0].strip().lower()
    return kind.startswith("text/") or kind in _TEXTS or kind.endswith(("+json", "+xml"))


def cut(data: bytes) -> list[tuple[int, str]]:
    """Return the passages of a UTF-8 text: at which byte each begins, and its text."""
    text = data.decode("utf-8", errors="replace")
    plain = len(text) == len(data)
    found: list[tuple[int, str]] = []
    start = at = 0  # the character, and its byte
    while start < len(text):
        end = _end(text, start)
        piece = text[start:end]
        if piece.strip():
            found.append((at, piece))
        if end == len(text):
            break
        following = max(start + 1, _begin(text, end))
        at += following - start if plain else len(text[start:following].encode())
        start = following
    return found


def _end(text: str, start: int) -> int:
    """Return where the passage that begins at `start` ends."""
    most = start + SIZE
    if most >= len(text):
        return len(text)
    for mark in _BREAKS:
        place = text.rfind(mark, start + SIZE // 2, most)
        if place >= 0:
            return place + len(mark)
    return most


def _begin(text: str, end: int) -> int:
    """Return where the next passage begins: at a word, not long before the last one's end."""
    place = text.find(" ", end - OVERLAP, end)
    return place + 1 if 0 <= place < end - 1 else end
