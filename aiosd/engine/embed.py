"""Models that embed: a text in, one vector of unit length out. No slots, no KV that is kept.

A worker whose setup names such a runner answers `Embed` and nothing else. The fake one gives each
text a vector of its own.
"""

from __future__ import annotations

import errno
import hashlib
import math
from array import array
from collections.abc import Sequence
from typing import Any, Final, Protocol

import msgspec

from aiosd.engine.protocol import CoreSetup

SUFFIX: Final = "-embed"
"""How the runner of a setup that embeds ends."""
_DIM: Final = 16


class Embedder(Protocol):
    """An open model. n_ctx: tokens of a text at most; n_vocab: of its vocabulary."""

    name: str
    n_ctx: int
    n_ctx_train: int
    n_vocab: int
    fingerprint: str

    def embed(self, text: str) -> tuple[list[float], int]:
        """Return a text's vector, and its tokens; OSError(EINVAL) for one that is too long."""


def open_embedder(setup: CoreSetup) -> Embedder:
    """Open the model that a setup names; raises OSError that says why it can't be."""
    if setup.runner == f"fake{SUFFIX}":
        return FakeEmbedder(setup)
    from aiosd.engine.llamaembed import LlamaEmbedder

    return LlamaEmbedder(setup)


def unit(vector: Sequence[float]) -> list[float]:
    """Return a vector of length 1 in the same direction."""
    length = math.sqrt(sum(x * x for x in vector)) or 1.0
    return [x / length for x in vector]


class FakeEmbedder:
    """A model that is none: equal texts have equal vectors, others have others."""

    def __init__(self, setup: CoreSetup) -> None:
        """Raises OSError(EINVAL) for options that are no JSON object."""
        try:
            options: dict[str, Any] = msgspec.json.decode(setup.model or "{}", type=dict)
        except msgspec.MsgspecError as error:
            raise OSError(errno.EINVAL, f"model: options of the fake runner: {error}") from None
        self.name = str(options.get("name", "fake"))
        self.n_ctx = self.n_ctx_train = setup.n_ctx
        self.n_vocab = 256
        self.fingerprint = f"fake{SUFFIX}-{self.name}"

    def embed(self, text: str) -> tuple[list[float], int]:
        """Return a vector made of the text's digest."""
        data = text.encode()
        if len(data) > self.n_ctx:
            raise too_long(len(data), self.n_ctx)
        digest = hashlib.sha256(data).digest()
        return unit([x - 127.5 for x in digest[:_DIM]]), len(data)


def too_long(tokens: int, n_ctx: int) -> OSError:
    """Return the error for a text that does not fit."""
    return OSError(errno.EINVAL, f"texts: one has {tokens} tokens, the core takes {n_ctx}; cut it")


def packed(vectors: Sequence[Sequence[float]]) -> bytes:
    """Return vectors as float32, one after the other."""
    return b"".join(array("f", vector).tobytes() for vector in vectors)
