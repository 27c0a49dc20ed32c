"""How aiosh reads a line: commands, quoting, pipes, redirections, `&`, `;`, `&&`, `||`, comments.

    for step in parse("ps -a | grep math > found; run narrative &"): ...

Pure. Words are split by shlex's rules. Everything after the first `|` goes to the system's shell
as it was typed: only the first command of a pipe is one of ours.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

OPERATORS: Final = ("&&", "||", "2>&1", "2>>", ">>", "2>", "|", "&", ";", ">", "<")
"""Longest first where one begins like another."""

JOINTS: Final = ("&&", "||", ";", "&")
REDIRECTIONS: Final = ("2>&1", "2>>", ">>", "2>", ">")


class BadLine(ValueError):
    """A line that can't be read; its text says where it goes wrong."""


@dataclass
class Redirection:
    """Where a stream goes: 1 or 2, a file to begin or to append to; "&1": where 1 goes."""

    stream: int
    target: str
    append: bool = False


@dataclass
class Step:
    """One command of a line.

    words: as split. joint: the operator before it ("" for the first): after "&&" it runs when the
    last step succeeded, after "||" when not. system: a line for the system's shell (`!...`).
    filter: what its output is piped through. background: it ended in "&". text: as typed.
    """

    joint: str = ""
    words: list[str] = field(default_factory=list)
    system: str = ""
    filter: str = ""
    redirections: list[Redirection] = field(default_factory=list)
    background: bool = False
    text: str = ""


def parse(line: str) -> list[Step]:
    """Return the steps of a line. Raises BadLine."""
    bare = line.strip()
    if bare.startswith("!"):
        return [Step(system=bare[1:].strip(), text=bare)]
    steps: list[Step] = []
    joint, start = "", 0
    pieces = list(_pieces(line))
    end = _comment(line)
    for operator, at in [*pieces, (";", end)]:
        if operator not in JOINTS:
            continue
        text = line[start:at].strip()
        if text:
            inner = [(op, place - start) for op, place in pieces if start <= place < at]
            steps.append(_step(joint, line[start:at], inner, background=operator == "&"))
        elif operator in ("&&", "||", "&") or joint in ("&&", "||"):
            raise BadLine(f"there is no command beside {operator if at < end else joint!r}")
        joint, start = operator, at + len(operator)
    return steps


def _step(joint: str, text: str, pieces: list[tuple[str, int]], *, background: bool) -> Step:
    """Read one command: its words, its redirections, the filter after its first pipe."""
    step = Step(joint="" if joint == "&" else joint, background=background, text=text.strip())
    for operator, at in pieces:
        if operator == "|":
            step.filter = text[at + 1 :].strip()
            if not step.filter:
                raise BadLine("there is no command after |")
            text, pieces = text[:at], [piece for piece in pieces if piece[1] < at]
            break
    cuts = [*pieces, ("", len(text))]
    step.words = _words(text[: cuts[0][1]])
    for (operator, at), (_, until) in pairwise(cuts):
        step.words += _redirect(step, operator, _words(text[at + len(operator) : until]))
    if not step.words:
        raise BadLine("there is no command before | or >")
    return step


def _redirect(step: Step, operator: str, words: list[str]) -> list[str]:
    """Enter a redirection; return the words that stand after its file."""
    if operator == "2>&1":
        step.redirections.append(Redirection(2, "&1"))
        return words
    if operator not in REDIRECTIONS:
        raise BadLine(f"commands of AIOS take no {operator}; use !COMMAND for the system's shell")
    if not words:
        raise BadLine(f"{operator} needs a file")
    stream = 2 if operator.startswith("2") else 1
    step.redirections.append(Redirection(stream, words[0], append=operator.endswith(">>")))
    return words[1:]


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise BadLine(str(error).lower()) from None


def _pieces(line: str) -> Iterator[tuple[str, int]]:
    """Yield the operators outside of quotes, with their places."""
    i, quote, end = 0, "", _comment(line)
    while i < end:
        char = line[i]
        if quote:
            i += 2 if char == "\\" and quote == '"' else 1
            quote = "" if char == quote else quote
            continue
        if char == "\\":
            i += 2
            continue
        if char in "'\"":
            quote = char
        operator = _operator(line, i)
        if operator:
            yield operator, i
        i += len(operator) or 1


def _operator(line: str, i: int) -> str:
    for operator in OPERATORS:
        # "2>" is an operator only where the 2 is a word of its own.
        alone = not operator.startswith("2") or i == 0 or line[i - 1].isspace()
        if line.startswith(operator, i) and alone:
            return operator
    return ""


def _comment(line: str) -> int:
    """Return where a comment begins: a # outside of quotes at the start of a word."""
    quote, i = "", 0
    while i < len(line):
        char = line[i]
        if char == "\\" and quote != "'":
            i += 2
            continue
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char == "#" and (i == 0 or line[i - 1].isspace()):
            return i
        i += 1
    return len(line)
