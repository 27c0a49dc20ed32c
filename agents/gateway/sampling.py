"""What requests of every kind say about how tokens are chosen, and what llm_generate is told."""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from .refusal import Refusal

STOPS: Final = 16


Tokens = Annotated[int, Meta(ge=1, le=1_000_000)]
_Share = Annotated[float, Meta(ge=0, le=1)]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_Factor = Annotated[float, Meta(gt=0, le=10)]


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that chats, completions and responses share, by OpenAI's names and others'.

    None: the kernel's default, which takes the likeliest token (temperature 0).
    """

    model: str = ""
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: _Share | None = None
    top_k: Annotated[int, Meta(ge=-1, le=1_000_000)] | None = None
    min_p: _Share | None = None
    seed: int | None = None
    frequency_penalty: _Penalty | None = None
    presence_penalty: _Penalty | None = None
    repetition_penalty: _Factor | None = None
    repeat_penalty: _Factor | None = None
    logit_bias: dict[int, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    stream: bool | None = None


def options(asked: Sampling) -> dict[str, Any]:
    """Return the keyword arguments of llm_generate that a request's fields come to."""
    said: dict[str, Any] = {
        "temperature": asked.temperature,
        "top_p": asked.top_p or None,
        "top_k": max(0, asked.top_k) if asked.top_k is not None else None,
        "min_p": asked.min_p,
        "seed": asked.seed,
        "frequency_penalty": asked.frequency_penalty,
        "presence_penalty": asked.presence_penalty,
        "repeat_penalty": asked.repeat_penalty or asked.repetition_penalty,
        "logit_bias": asked.logit_bias,
        "min_tokens": asked.min_tokens,
    }
    if asked.top_p == 0:  # no share at all: the likeliest token
        said["temperature"] = 0.0
    if said["temperature"] and asked.seed is None:  # asked twice, it may say something else
        said["seed"] = secrets.randbits(62)
    elif asked.seed is not None:
        said["seed"] = asked.seed & (2**63 - 1)  # a negative one is one as well
    return {name: value for name, value in said.items() if value is not None}


def stops(given: str | list[str] | None) -> list[str]:
    """Return strings that end the text. Raises Refusal."""
    found = [given] if isinstance(given, str) else list(given or [])
    found = [text for text in found if text]
    if len(found) > STOPS:
        raise Refusal(400, f"stop: {len(found)} strings, at most {STOPS}", param="stop")
    return found


class Ending:
    """Cuts a text off where a stop string begins, as it comes, where the kernel can't.

    hear: of a piece, what is certain not to be part of a stop string. rest: what was held back.
    """

    def __init__(self, stops: list[str]) -> None:
        self._stops = stops
        self._held = ""
        self.over = False

    def hear(self, piece: str) -> str:
        """Return what of the text so far can be given away now."""
        if self.over or not self._stops:
            return "" if self.over else piece
        text = self._held + piece
        ends = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if ends:
            self.over, self._held = True, ""
            return text[: min(ends)]
        keep = max((_begun(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def rest(self) -> str:
        """Return what was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held


def _begun(text: str, stop: str) -> int:
    """Return how many letters at the end of a text could be the beginning of a stop string."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
