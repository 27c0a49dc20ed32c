"""Watermarks, without a model: the two ways to the green list agree, and the score is a z-score."""

from __future__ import annotations

import importlib.util
import math
from random import Random

import pytest

from aiosd.engine import watermark

KEY = b"k" * 32


def test_a_quarter_is_green_and_another_key_or_token_has_another_quarter() -> None:
    lists = [
        {t for t in range(4000) if watermark.green(watermark.seed(key, before), t)}
        for key, before in ((KEY, 5), (KEY, 6), (b"q" * 32, 5))
    ]
    for one in lists:
        assert 900 < len(one) < 1100
    assert len(lists[0] & lists[1]) < 330 and len(lists[0] & lists[2]) < 330


@pytest.mark.skipif(importlib.util.find_spec("numpy") is None, reason="needs numpy")
def test_the_list_is_the_same_all_at_once() -> None:
    for before in (0, 77, 49151):
        seed = watermark.seed(KEY, before)
        at_once = watermark.greens(seed, 2000).tolist()
        assert at_once == [watermark.green(seed, t) for t in range(2000)]


def test_the_score_is_by_chance_what_chance_gives() -> None:
    random = Random(1)
    scores = [
        watermark.count(KEY, [random.randrange(50_000) for _ in range(201)]).z for _ in range(300)
    ]
    mean = sum(scores) / len(scores)
    spread = math.sqrt(sum((z - mean) ** 2 for z in scores) / len(scores))
    assert abs(mean) < 0.25 and 0.85 < spread < 1.15
    assert max(scores) < watermark.SHOWN


def test_what_returns_is_counted_once() -> None:
    assert watermark.count(KEY, [1, 2] * 100).pairs == 2
    empty = watermark.count(KEY, [])
    assert (empty.pairs, empty.z, empty.p) == (0, 0.0, 0.5)
    assert watermark.Count(200, 200).z == pytest.approx(24.49, abs=0.01)
    assert watermark.Count(200, 200).p < 1e-100
