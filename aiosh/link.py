"""The way from a command to the kernel: connecting, naming agents, and what can go wrong.

    with link.kernel() as kernel:
        kernel.list_agents()

Every command opens a connection of its own and closes it: a daemon that went away and came back
is then never noticed. What must hold: whatever fails here says in one sentence what to do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aios import Kernel
    from aiosd.abi.cores import Core
    from aiosd.abi.process import Agent

ENDED = frozenset("ZX")
"""States of agents whose process is over."""


RECONNECT = 10.0
"""Seconds for which a command waits for a daemon that went away: somebody sits before it."""

door = "aiosctl"
"""Whose name messages begin with: aiosctl's or aiosh's."""


class Failure(Exception):
    """A command that could not do what it was asked; its text is shown, `status` is passed on."""

    def __init__(self, sentence: str, status: int = 1) -> None:
        super().__init__(sentence)
        self.status = status


class Misuse(Failure):
    """A command line that makes no sense; its text says what would."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, 2)


class Unreachable(Failure):
    """The daemon could not be reached, or went away in the middle of the command."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, 125)


def trouble(core: Core) -> str:
    """Return what is wrong with a core, for a line that names it; "" for nothing."""
    return core.error.removeprefix(f"core {core.name}: ")


@contextmanager
def kernel() -> Iterator[Kernel]:
    """Connect to the daemon for the length of a `with` block.

    Raises Unreachable when it can't be reached or the connection breaks; errors of the calls
    themselves pass through as the OSError that they are.
    """
    import aios

    try:
        connection = aios.connect(reconnect=RECONNECT)
    except OSError as error:
        raise Unreachable(sentence(error)) from error
    try:
        with connection:
            yield connection
    except (ConnectionResetError, ConnectionAbortedError, ConnectionRefusedError) as error:
        raise Unreachable(sentence(error)) from error


def complain(sentence: str) -> None:
    """Print a message to stderr after the name of the door that the command came through."""
    print(f"{door}: {sentence}", file=sys.stderr)


def below_the_key() -> None:
    """Begin a new line where a terminal has just shown ^C; fit for a signal handler."""
    with suppress(OSError):
        if os.isatty(2):
            os.write(2, b"\n")


def sentence(error: OSError) -> str:
    """Return what an OSError says, without its number."""
    text = error.strerror or str(error) or type(error).__name__
    return f"{text}: {error.filename}" if error.filename else text


def resolve(kernel: Kernel, words: Iterable[str], *, ended: bool = False) -> list[int]:
    """Turn aids and names into aids; a name counts when exactly one agent bears it.

    ended: look among ended agents too. Raises Failure for a name that none or several bear.
    """
    agents: list[Agent] | None = None
    found = []
    for word in words:
        if word.isdecimal():
            found.append(int(word))
            continue
        if agents is None:
            agents = kernel.list_agents(all=ended)
        found.append(_by_name(agents, word, ended))
    return found


def _by_name(agents: list[Agent], name: str, ended: bool) -> int:
    same = [agent for agent in agents if agent.name == name]
    alive = [agent for agent in same if agent.state not in ENDED]
    # A name is meant for the living; only where there are none does it mean the last that ended.
    if ended and not alive:
        same = same[-1:]
    else:
        same = alive
    if len(same) == 1:
        return same[0].aid
    if not same:
        raise Failure(f"no agent is named {name!r}; `ps` lists them")
    aids = " ".join(str(agent.aid) for agent in same)
    raise Failure(f"{len(same)} agents are named {name!r}: give one of the aids {aids}")


def agent(kernel: Kernel, aid: int) -> Agent:
    """Return one row of the process table. Raises Failure when there is none."""
    rows = kernel.list_agents(all=True, aid=aid)
    for row in rows:
        if row.aid == aid:
            return row
    raise Failure(f"there is no agent {aid}; `ps -a` lists those that were")


def state_dir() -> str:
    """Return the user's own directory for what the shell keeps, made when it is missing."""
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    path = os.path.join(base, "aios")
    os.makedirs(path, mode=0o700, exist_ok=True)
    return path
