"""Signals by name or number, as `kill` takes them: 9, KILL, SIGKILL, kill."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Final

from aiosh import link

MEANINGS: Final = {
    "HUP": "reaches the agent's process: reread what it reads at its start",
    "INT": "end the generation keeping its text, then the process, as Ctrl-C does",
    "KILL": "end it at once",
    "TERM": "end the generation keeping its text, then the process",
    "CONT": "go on after STOP or TSTP",
    "STOP": "suspend: generation freezes between two tokens",
    "TSTP": "suspend, as Ctrl-Z does",
}
"""The signals that agents understand, and what each does."""


def number(name: str) -> int:
    """Return a signal's number on this machine."""
    return int(signal.Signals["SIG" + name])


def parse(word: str) -> str:
    """Return the name (without SIG) of a signal given by name or number.

    Raises Misuse, naming the nearest, when agents have no such signal.
    """
    name = word.upper().removeprefix("SIG")
    if name in MEANINGS:
        return name
    if word.isdecimal():
        for known in MEANINGS:
            if number(known) == int(word):
                return known
    near = get_close_matches(name, MEANINGS, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {' '.join(MEANINGS)}"
    raise link.Misuse(f"agents know no signal {word!r}; {hint}")


def split(words: Sequence[str]) -> tuple[str, list[str]]:
    """Split the arguments of `kill` into a signal's name and the agents.

    Takes -TERM, -15, -sTERM, -s TERM, -n 15 and --; TERM where none is given. Raises
    Misuse for a signal that is unknown or given twice.
    """
    chosen, agents, rest = "", [], list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            agents += rest
            break
        if not word.startswith("-") or word == "-":
            agents.append(word)
            continue
        if chosen:
            raise link.Misuse(f"one signal at a time: {chosen} and {word}")
        if word in ("-s", "-n"):
            if not rest:
                raise link.Misuse(f"{word} needs a signal")
            chosen = parse(rest.pop(0))
        else:
            chosen = parse(word[2:] if word.startswith("-s") else word[1:])
    return chosen or "TERM", agents


def ending(code: int | None, signal_number: int | None) -> int:
    """Return the exit status that passes on how an agent ended: its own, or 128+n."""
    if signal_number:
        return 128 + signal_number
    return 1 if code is None else code


def described(code: int | None, signal_number: int | None) -> str:
    """Return how an agent ended as one word: exit:0, sig:KILL, or lost."""
    if signal_number:
        try:
            return "sig:" + signal.Signals(signal_number).name.removeprefix("SIG")
        except ValueError:
            return f"sig:{signal_number}"
    return "lost" if code is None else f"exit:{code}"
