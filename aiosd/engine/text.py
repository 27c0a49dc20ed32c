"""From sampled tokens to text that is final: incremental UTF-8 and stop strings.

A generation's bytes come in pieces that may cut a character in two, and a stop string may begin in
one token and end three tokens later. `TextStream.feed` takes the next piece and returns the text
that nothing later can change; `finish` returns what is left when the generation ends.

What must hold: the joined output is the same however the bytes are cut into pieces, and it never
contains a stop string. A stream is rebuilt after a move by feeding it the old pieces again and
dropping what it returns.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """One generation's text. `stopped` is True once a stop string was completed."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        """stop: strings that end the text before them; empty ones are ignored."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = tuple(s for s in stop if s)
        self._held = ""
        self.stopped = False

    def feed(self, piece: bytes, armed: bool = True) -> str:
        """Take the next bytes and return the text that became final with them (may be empty).

        armed False: no stop string is looked for yet; one that begins in here is never seen.
        """
        if self.stopped:
            return ""
        fresh = self._decoder.decode(piece)
        return self._release(fresh) if self._stop and armed else fresh

    def finish(self) -> str:
        """Return the text still held; an incomplete character becomes U+FFFD."""
        if self.stopped:
            return ""
        rest = self._release(self._decoder.decode(b"", True))
        rest, self._held = rest + self._held, ""
        return rest

    def _release(self, fresh: str) -> str:
        pending = self._held + fresh
        match = self._first_match(pending)
        if match is not None:
            self.stopped, self._held = True, ""
            return pending[:match]
        keep = max((_overlap(pending, s) for s in self._stop), default=0)
        cut = len(pending) - keep
        self._held = pending[cut:]
        return pending[:cut]

    def _first_match(self, pending: str) -> int | None:
        """Where the stop string that is completed first begins; of several, the longest."""
        best: tuple[int, int] | None = None
        for stop in self._stop:
            start = pending.find(stop)
            if start >= 0 and (best is None or (start + len(stop), start) < best):
                best = (start + len(stop), start)
        return None if best is None else best[1]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    for n in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0
