"""What was said in responses, for requests that go on from one by its id; in memory, bounded."""

from __future__ import annotations

from typing import Final

from aios import Turn

from .refusal import Refusal

MOST: Final = 1024
"""Responses that are kept, of all keys together."""
LETTERS: Final = 16 << 20
"""Letters, and bytes of pictures, in all of them; the longest unused go first."""


class Past:
    """The responses by key and id, the longest unused first."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], list[Turn]] = {}
        self._letters = 0

    def keep(self, key: str, id: str, turns: list[Turn]) -> None:
        """Keep a response; one that is too long for all room is not."""
        size = _size(turns)
        if size > LETTERS // 16:
            return
        self._kept[key, id] = turns
        self._letters += size
        while len(self._kept) > MOST or self._letters > LETTERS:
            oldest = next(iter(self._kept))
            self._letters -= _size(self._kept.pop(oldest))

    def of(self, key: str, id: str) -> list[Turn]:
        """Return what was said up to a response, to whose key it was. Raises Refusal."""
        turns = self._kept.pop((key, id), None)
        if turns is None:
            sentence = f"previous_response_id: {id[:80]!r} is not kept any more; send its turns"
            param = "previous_response_id"
            raise Refusal(404, sentence, param=param, code="previous_response_not_found")
        self._kept[key, id] = turns
        return turns


def _size(turns: list[Turn]) -> int:
    return sum(
        len(turn.content)
        + sum(len(str(call.arguments)) for call in turn.calls)
        + sum(len(image.data) for image in turn.images)
        for turn in turns
    )
