"""The process table as `ps` and `top` show it."""

from __future__ import annotations

import os
import shlex
import time
from typing import TYPE_CHECKING, Annotated, Final

import typer

from aiosh import link, offers, signals, tables
from aiosh.arguments import Json
from aiosh.tables import Column

if TYPE_CHECKING:
    from aiosd.abi.process import Agent as Row

app = typer.Typer()

STATE_COLOURS: Final = {
    "R": "green", "Q": "yellow", "S": "", "T": "magenta", "Z": "red", "X": "dim",
}  # fmt: skip


def place(row: Row) -> str:
    """Return the core and the slot that an agent runs in."""
    if not row.core:
        return ""
    return f"{row.core}/{row.slot}" if row.slot >= 0 else row.core


def waiting(row: Row) -> str:
    """Return what an agent waits for, or how it ended."""
    if row.state in link.ENDED:
        return signals.described(row.exit_code, row.exit_signal)
    return row.waiting.replace(" ", "-")


def elapsed(row: Row) -> float:
    """Return the seconds that an agent has lived, or did live."""
    return (row.ended or time.time()) - (row.created or row.started)


def command(row: Row) -> str:
    """Return an agent's name with what it runs, once where they say the same."""
    if not row.argv:
        return row.name
    program = os.path.basename(row.argv[0])
    words = shlex.join([program, *row.argv[1:]])
    if program.removesuffix(".py") == row.name:
        return shlex.join([row.name, *row.argv[1:]])
    return f"{row.name}: {words}"


COLUMNS: Final[list[Column[Row]]] = [
    Column("AID", lambda row: str(row.aid), right=True),
    Column("PPID", lambda row: str(row.parent), right=True),
    Column("S", lambda row: row.state, colour=lambda row: STATE_COLOURS.get(row.state, "")),
    Column("NI", lambda row: str(row.nice), right=True),
    Column("CORE/SLOT", place, least=9),
    Column(
        "IN/OUT",
        lambda row: f"{tables.count(row.usage.tokens_in)}/{tables.count(row.usage.tokens_out)}",
        right=True,
    ),
    Column("TOK/S", lambda row: f"{row.tokens_per_s:.1f}", right=True),
    Column(
        "RAM/DISK",
        lambda row: f"{tables.size(row.usage.kv_ram)}/{tables.size(row.usage.kv_disk)}",
        right=True,
    ),
    Column("WAITING", waiting, least=7),
    Column("Q", lambda row: str(row.queue) if row.queue >= 0 else "", right=True),
    Column("ELAPSED", lambda row: tables.span(elapsed(row)), right=True),
    Column("COMMAND", command, least=8),
]
"""What `ps` shows of an agent. RAM/DISK is KV; Q is the place in the queue, 0 is next."""


@app.command()
def ps(
    everyone: Annotated[bool, typer.Option("--all", "-a", help="ended agents too")] = False,
    agents: Annotated[
        list[str] | None,
        typer.Argument(help="only these, by aid or name", autocompletion=offers.agents),
    ] = None,
    wide: Annotated[bool, typer.Option("--wide", "-w", help="cut nothing")] = False,
    json: Json = False,
) -> None:
    """List agents: state, core and slot, tokens, KV, what they wait for.

    States: R running on a core, Q queued, S sleeping, T stopped, Z zombie, X dead.
    """
    with link.kernel() as kernel:
        if agents:
            aids = link.resolve(kernel, agents, ended=True)
            rows = [link.agent(kernel, aid) for aid in aids]
        else:
            rows = kernel.list_agents(all=everyone)
    tables.show(COLUMNS, rows, json, wide=wide)
