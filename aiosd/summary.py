"""Summaries: what a model is asked when it is to compress a context's oldest turns, and what stands
in their place afterwards. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aiosd.abi.inference import Turn

TASK: Final = (
    "You compress conversations. Write down what matters for going on with the conversation below: "
    "facts, names, numbers, decisions and open questions. Write nothing else."
)
FRAME: Final = 64  # tokens that stand around a summary, at most
LEFT_OUT: Final = "\n[...]\n"
REPLY: Final = "I have taken note of that."
GO_ON: Final = "Go on."
"""What a user seems to have said before a reply whose beginning, and all before it, has gone."""


def share(size: int) -> int:
    """Return how many tokens a summary may have in a window of this size."""
    return max(8, size // 8)


def question(parts: Sequence[tuple[str, str]]) -> list[Turn]:
    """Return the chat that asks for a summary of these parts: of each its role and its text."""
    text = "\n".join(f"{role}: {text}" for role, text in parts)
    return [Turn("system", TASK), Turn("user", f"{text}\n\nSummary:")]


def excerpt(tokens: list[int], most: int) -> tuple[list[int], list[int]]:
    """Return of tokens that are too many the first and the last, `most` in all; else all of them.

    The first ones may be an earlier summary, so they are as precious as the last.
    """
    if len(tokens) <= most:
        return tokens, []
    return tokens[: most // 2], tokens[len(tokens) - most // 2 :]


def words(text: str) -> str:
    """Return what a user says in place of the turns that went, in a chat; `REPLY` follows."""
    return f"Summary of our conversation so far: {text.strip()}"


def passage(text: str) -> str:
    """Return what stands in place of the turns that went, in a text without turns."""
    return f"[Summary of what came before: {text.strip()}]\n"
