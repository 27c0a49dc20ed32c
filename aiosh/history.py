"""The command history: what happened to agents, and what they asked and were answered."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from aiosh import link, offers, tables
from aiosh.arguments import Json
from aiosh.output import data_words
from aiosh.tables import Column

if TYPE_CHECKING:
    from aios import Happening, Interaction

app = typer.Typer()

LONGEST: Final = 200
"""Characters of a text that a row of the table begins with."""

HAPPENINGS: Final[list[Column[Happening]]] = [
    Column("TIME", lambda row: tables.clock(row.t)),
    Column("AID", lambda row: str(row.aid) if row.aid else "", right=True),
    Column("KIND", lambda row: row.kind),
    Column("DATA", lambda row: data_words(row.data), least=20),
]

INTERACTIONS: Final[list[Column[Interaction]]] = [
    Column("TIME", lambda row: tables.clock(row.t)),
    Column("AID", lambda row: str(row.aid), right=True),
    Column("REQUEST", lambda row: str(row.request), right=True),
    Column("CTX", lambda row: str(row.context), right=True),
    Column("CORE", lambda row: row.core),
    Column("FINISH", lambda row: row.finish_reason),
    Column("ASKED", lambda row: _begin(_question(row)), least=16),
    Column("REPLY", lambda row: _begin(row.reply or row.reply_digest), least=16),
]


@app.command()
def history(
    agent: Annotated[
        str, typer.Argument(help="aid or name; default: all", autocompletion=offers.all_agents)
    ] = "",
    kind: Annotated[str, typer.Option("--kind", "-k", help="prefix of the kind: agent.exit")] = "",
    since: Annotated[
        float, typer.Option("--since", "-s", min=0, help="only the last this many seconds; 0: all")
    ] = 0,
    until: Annotated[
        float, typer.Option("--until", "-u", min=0, help="but for the last this many seconds")
    ] = 0,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000)] = 200,
    interactions: Annotated[
        bool, typer.Option("--interactions", "-i", help="requests and replies, with their texts")
    ] = False,
    text: Annotated[
        str, typer.Option("--text", "-t", help="those with all these words in them")
    ] = "",
    context: Annotated[int, typer.Option("--context", "-c", min=0, help="on this context")] = 0,
    core: Annotated[
        str, typer.Option("--core", help="on this core", autocompletion=offers.cores)
    ] = "",
    finish: Annotated[str, typer.Option("--finish", help="stop, length or cancelled")] = "",
    request: Annotated[int, typer.Option("--request", "-r", min=0, help="this one")] = 0,
    full: Annotated[bool, typer.Option("--full", help="whole texts, one after the other")] = False,
    json: Json = False,
) -> None:
    """Show what happened to agents, or (-i, or a filter of theirs) their requests and replies."""
    now = time.time()
    filters = {"text": text, "cid": context, "core": core, "finish": finish, "request": request}
    about = interactions or full or any(filters.values())
    if about and kind not in ("", "interaction"):
        raise link.Misuse("--kind is of events: leave it out where requests and replies are shown")
    with link.kernel() as kernel:
        aid = link.resolve(kernel, [agent], ended=True)[0] if agent else 0
        wanted = {
            "aid": aid,
            "since": now - since if since else 0.0,
            "until": now - until if until else 0.0,
        }
        if about or kind == "interaction":
            _show(_pages(kernel.history, limit, **wanted, **filters), full, json)
        else:
            rows = _pages(kernel.query_history, limit, kind=kind, **wanted)
            tables.show(HAPPENINGS, rows, json)


def _pages(ask: Any, limit: int, **filters: Any) -> list[Any]:
    """Return the newest `limit` rows, oldest first, however many answers they come in."""
    rows = found = ask(limit=limit, **filters)
    while found and len(rows) < limit:
        found = ask(limit=limit - len(rows), before=rows[0].id, **filters)
        rows = found + rows
    return rows  # type: ignore[no-any-return]


def _show(rows: list[Interaction], full: bool, json: bool) -> None:
    if json or not full:
        tables.show(INTERACTIONS, rows, json)
        return
    for row in rows:
        head = f"request {row.request} of agent {row.aid} on {row.core}, context {row.context}"
        print(tables.paint(f"{tables.clock(row.t)} {head}: {row.finish_reason}", "bold"))
        for turn in row.messages or [{"role": "user", "content": row.prompt or row.asked_digest}]:
            _paragraph(turn["role"], turn["content"])
        _paragraph("reply", row.reply or row.reply_digest or row.reason)


def _paragraph(role: str, text: str) -> None:
    print(tables.paint(f"{role}:", "cyan"))
    for line in text.splitlines():
        print(f"    {tables.clean(line)}")


def _question(row: Interaction) -> str:
    """Return what was asked last."""
    return row.messages[-1]["content"] if row.messages else row.prompt or row.asked_digest


def _begin(text: str) -> str:
    """Return the beginning of a text on one line."""
    return " ".join(text[:LONGEST].split())
