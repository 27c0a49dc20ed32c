"""The probe's choice among the widths that agree."""

from __future__ import annotations

import pytest

from aiosd.engine.probe import Bits, choose


def bits(letters: str) -> dict[int, Bits]:
    """Bits by width from 1 on: equal letters are equal bits, a dot says that rows disagree."""
    return {w: {} if c == "." else {40: c.encode()} for w, c in enumerate(letters, 1)}


@pytest.mark.parametrize(
    ("found", "chosen"),
    [
        ("aaaaaaaa", (1, 8)),
        ("abbbbbbb", (2, 8)),  # padding one row is cheaper than decoding one by one
        ("aaaaaaab", (1, 7)),  # two calls now and then are cheaper than eight rows always
        ("aaabbbbb", (1, 3)),
        ("abcdefgh", (1, 1)),
        ("a.......", (1, 1)),
        (".aa.....", (2, 3)),
        ("..aa....", None),  # five sequences can't be split into threes and fours
        (".aaa....", (2, 4)),
        ("........", None),
    ],
)
def test_the_cheapest_range_is_chosen(found: str, chosen: tuple[int, int] | None) -> None:
    assert choose(bits(found), len(found)) == chosen
