"""Signals as `kill` takes them."""

from __future__ import annotations

import pytest

from aiosh import link, signals


@pytest.mark.parametrize("word", ["TERM", "term", "SIGTERM", "15"])
def test_a_signal_has_several_names(word: str) -> None:
    assert signals.parse(word) == "TERM"


@pytest.mark.parametrize(("word", "hint"), [("TREM", "did you mean TERM"), ("64", "there are HUP")])
def test_an_unknown_signal_brings_a_hint(word: str, hint: str) -> None:
    with pytest.raises(link.Misuse, match=hint):
        signals.parse(word)


@pytest.mark.parametrize(
    ("words", "signal"),
    [
        (["5"], "TERM"),
        (["-9", "5"], "KILL"),
        (["-KILL", "5"], "KILL"),
        (["-s", "INT", "5"], "INT"),
        (["-sINT", "5"], "INT"),
        (["-n", "2", "5"], "INT"),
        (["5", "-STOP"], "STOP"),
        (["-CONT", "--", "5"], "CONT"),
    ],
)
def test_kill_takes_signals_as_unix_does(words: list[str], signal: str) -> None:
    assert signals.split(words) == (signal, ["5"])


def test_one_signal_at_a_time() -> None:
    with pytest.raises(link.Misuse, match="one signal at a time"):
        signals.split(["-9", "-15", "5"])


def test_an_end_becomes_an_exit_status_and_a_word() -> None:
    assert signals.ending(3, None) == 3
    assert signals.ending(None, 9) == 137
    assert signals.ending(None, None) == 1
    assert [signals.described(*end) for end in ((3, None), (None, 9), (None, None))] == [
        "exit:3",
        "sig:KILL",
        "lost",
    ]
