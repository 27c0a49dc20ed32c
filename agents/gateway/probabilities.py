"""Log-probabilities as OpenAI's clients read them, of chats and of completions."""

from __future__ import annotations

from typing import Any

import aios


def of_chat(chunk: aios.Chunk) -> list[dict[str, Any]]:
    """Return those of a chunk's tokens."""
    rows = []
    texts = _texts(chunk)
    for at, logprob in enumerate(chunk.logprobs):
        text = texts[at]
        likely = chunk.top_logprobs[at] if chunk.top_logprobs else []
        top = [_row(_text(each), each.data, each.logprob) for each in likely]
        rows.append({**_row(text, text.encode(), logprob), "top_logprobs": top})
    return rows


class OfCompletion:
    """Those of one text, gathered chunk by chunk."""

    def __init__(self) -> None:
        self._offset = 0

    def of(self, chunk: aios.Chunk) -> dict[str, Any]:
        """Return those of the next chunk."""
        texts = _texts(chunk)
        offsets = [self._offset + sum(map(len, texts[:at])) for at in range(len(texts))]
        self._offset += len(chunk.text)
        likely = [
            {_text(each): each.logprob for each in reversed(row)} for row in chunk.top_logprobs
        ]
        return {
            "tokens": texts,
            "token_logprobs": chunk.logprobs,
            "text_offset": offsets,
            "top_logprobs": likely or None,
        }


def joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return those of a whole text, of its chunks in order."""
    names = ("tokens", "token_logprobs", "text_offset", "top_logprobs")
    found = {name: [each for part in parts for each in part[name] or []] for name in names}
    return {**found, "top_logprobs": found["top_logprobs"] or None}


def _texts(chunk: aios.Chunk) -> list[str]:
    """Return the text of each token; where they are not told apart, all of it is the first's."""
    count = len(chunk.logprobs)
    return [*(chunk.texts or [chunk.text]), *[""] * count][:count]


def _text(likely: aios.Likely) -> str:
    return likely.data.decode("utf-8", "replace")


def _row(token: str, data: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(data)}
