"""How aiosh reads a line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosh.line import BadLine, Redirection, parse


def words(line: str) -> list[list[str]]:
    return [step.words for step in parse(line)]


def test_words_are_split_as_a_shell_does() -> None:
    assert words('run \'two words\' "and \\"more\\"" plain\\ space') == [
        ["run", "two words", 'and "more"', "plain space"]
    ]


def test_comments_and_blank_lines_are_nothing() -> None:
    assert parse("") == parse("   # only this") == []
    assert words("ps -a # all of them") == [["ps", "-a"]]
    assert words("run a#b '# not one'") == [["run", "a#b", "# not one"]]


def test_joints_and_background() -> None:
    steps = parse("run a & run b && ps || jobs; exit")
    assert [(step.joint, step.words, step.background) for step in steps] == [
        ("", ["run", "a"], True),
        ("", ["run", "b"], False),
        ("&&", ["ps"], False),
        ("||", ["jobs"], False),
        (";", ["exit"], False),
    ]
    assert steps[0].text == "run a"


def test_all_after_a_pipe_is_the_systems() -> None:
    (step,) = parse("ps -a | grep 'a|b' | wc -l")
    assert step.words == ["ps", "-a"]
    assert step.filter == "grep 'a|b' | wc -l"


def test_redirections() -> None:
    (step,) = parse("ps > 'a file' -a 2>> errors")
    assert step.words == ["ps", "-a"]
    assert step.redirections == [Redirection(1, "a file"), Redirection(2, "errors", append=True)]
    assert parse("ps 2>&1 | cat")[0].redirections == [Redirection(2, "&1")]
    assert words("run p2>x") == [["run", "p2"]]


def test_the_systems_shell_gets_a_line_as_it_is() -> None:
    (step,) = parse("  !ls | wc -l; echo 'x' &")
    assert step.system == "ls | wc -l; echo 'x' &"


@pytest.mark.parametrize(
    "line", ["run 'open", "| cat", "ps |", "ps >", "&& ps", "ps &&", "ps || && jobs", "ps < file"]
)
def test_a_line_that_cannot_be_read_says_so(line: str) -> None:
    with pytest.raises(BadLine, match=r"\w+ \w+"):
        parse(line)


@given(st.text(alphabet="ab '\"\\|&;<>2#!\n", max_size=30))
def test_no_line_breaks_the_reader(line: str) -> None:
    try:
        steps = parse(line)
    except BadLine:
        return
    assert all(step.words or step.system or line.strip().startswith("!") for step in steps)
