"""What aiosh's prompt colours and completes, without a terminal or a daemon."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from aiosh import offers
from aiosh.prompt import Colours, Words, split
from aiosh.shell import Shell


@given(st.text(alphabet="ps run-9 '\"|&;<>#%!", max_size=30))
def test_colours_leave_the_line_as_it_is(line: str) -> None:
    assert "".join(piece[1] for piece in Colours(Shell()).pieces(line)) == line


def test_colours_say_what_a_word_is() -> None:
    pieces = Colours(Shell()).pieces("ps -a | grpe 'x' # so")
    styles = {piece[1]: piece[0] for piece in pieces}
    assert styles["ps"] == "class:command"
    assert styles["-a"] == "class:option"
    assert styles["|"] == "class:operator"
    assert styles["grpe"] == "class:unknown"
    assert styles["# so"] == "class:comment"


def completions(shell: Shell, text: str) -> list[str]:
    found = Words(shell).get_completions(Document(text), CompleteEvent())
    return [completion.text for completion in found]


@pytest.mark.parametrize(
    ("text", "offered"),
    [
        ("ren", ["renice"]),
        ("ps; susp", ["suspend"]),
        ("cores re", ["remove"]),
        ("kill -ST", ["-STOP"]),
        ("help fg", ["fg"]),
        ("history --ki", ["--kind"]),
    ],
)
def test_words_are_completed(text: str, offered: list[str]) -> None:
    assert completions(Shell(), text) == offered


def test_jobs_are_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offers, "agents", lambda incomplete: [])
    shell = Shell()
    shell.jobs.add(5, "run math")
    assert completions(shell, "fg ") == ["%1"]
    assert completions(shell, "kill %") == ["%1"]


def test_the_word_begun_is_the_last_of_its_command() -> None:
    assert split("ps -a; kill -9 ma") == (["kill", "-9"], "ma")
    assert split("ps ") == (["ps"], "")
