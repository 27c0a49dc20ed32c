"""Commands that show what agents say and do: logs, attach, watch."""

from __future__ import annotations

import json as jsonlib
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from aiosh import link, offers, tables
from aiosh.arguments import Agent, Json, Kept

if TYPE_CHECKING:
    from aiosd.abi.process import Watched
    from aiosd.abi.system import Event

app = typer.Typer()


@app.command()
def logs(
    agent: Kept,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on until it ends")] = False,
    tail: Annotated[int, typer.Option("--tail", "-n", min=0, help="only the last N records")] = 0,
    json: Json = False,
) -> None:
    """Show an agent's output: its stdout on stdout, its stderr on stderr."""
    from aiosh.follow import show_record

    with link.kernel() as kernel:
        (aid,) = link.resolve(kernel, [agent], ended=True)
        for record in kernel.read_log(aid=aid, tail=tail, follow=follow):
            show_record(record, json)


@app.command()
def attach(agent: Agent, json: Json = False) -> None:
    """Follow the tokens of an agent's generations as they come, until it ends or Ctrl-C."""
    with link.kernel() as kernel:
        (aid,) = link.resolve(kernel, [agent])
        for piece in kernel.attach(aid=aid):
            if json:
                tables.print_json_line(piece)
            else:
                _show_piece(piece)


def _show_piece(piece: Watched) -> None:
    """Print a piece of text to stdout; where requests begin and end to stderr."""
    if piece.prompt_tokens:
        note = f"[context {piece.cid}: {piece.prompt_tokens} prompt tokens]"
        print(tables.paint(note, "dim"), file=sys.stderr, flush=True)
    sys.stdout.write(piece.text)
    sys.stdout.flush()
    if piece.finish:
        sys.stdout.write("\n")
        sys.stdout.flush()
        note = f"[context {piece.cid}: {piece.finish}]"
        print(tables.paint(note, "dim"), file=sys.stderr, flush=True)


SAID = ("aid", "t_submit", "t_start", "t_end")
"""Data of the kernel's own that a line has said already: who, and when in seconds since 1970."""


def data_words(data: dict[str, object]) -> str:
    """Return an event's data as key=value words, without what is empty or said already."""
    return " ".join(
        f"{key}={_value(value)}"
        for key, value in data.items()
        if key not in SAID and value is not None and value != ""
    )


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value) if isinstance(value, str | int) else jsonlib.dumps(tables.plain(value))


@app.command()
def watch(
    kinds: Annotated[
        list[str] | None, typer.Argument(help="prefixes of kinds, such as agent or core.lost")
    ] = None,
    agent: Annotated[
        str, typer.Option("--agent", "-a", help="only this one's", autocompletion=offers.agents)
    ] = "",
    json: Json = False,
) -> None:
    """Show events as they happen, until Ctrl-C."""
    with link.kernel() as kernel:
        aid = link.resolve(kernel, [agent])[0] if agent else 0
        for event in kernel.watch(kinds=kinds or [], aid=aid):
            if json:
                tables.print_json_line(event)
            else:
                _show_event(event)


def _show_event(event: Event) -> None:
    who = f"{event.aid:5}" if event.aid else "    -"
    kind = tables.paint(event.kind.ljust(16), "cyan")
    print(
        f"{tables.clock(event.t)} {who} {kind} {tables.clean(data_words(event.data))}", flush=True
    )
