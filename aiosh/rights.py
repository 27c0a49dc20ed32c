"""Commands about who may do what: grant, revoke, grants, approve, audit."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Annotated, Final

import typer

from aiosh import link, offers, tables
from aiosh.arguments import Json
from aiosh.output import data_words
from aiosh.tables import Column

if TYPE_CHECKING:
    from aios import Kernel
    from aiosd.abi.accounts import AuditRecord, GrantRecord, Pending

app = typer.Typer()
audit_app = typer.Typer(invoke_without_command=True)
app.add_typer(audit_app, name="audit", help="Show the audit log, or prove that it is whole.")

KINDS: Final = ("agent:", "group:", "uid:", "kernel")
SPANS: Final = {"": 1, "s": 1, "min": 60, "h": 3600, "d": 86400}

GRANTS: Final[list[Column[GrantRecord]]] = [
    Column("ID", lambda row: str(row.id), right=True),
    Column("SUBJECT", lambda row: row.subject),
    Column("CAPABILITY", lambda row: row.capability),
    Column("OBJECT", lambda row: row.object),
    Column("MODE", lambda row: row.mode, colour=lambda row: "yellow" if row.mode == "ask" else ""),
    Column("BY", lambda row: row.by),
    Column("EXPIRES", lambda row: tables.clock(row.expires) if row.expires else "never"),
]

PENDING: Final[list[Column[Pending]]] = [
    Column("ID", lambda row: str(row.id), right=True),
    Column("WHO", lambda row: f"agent:{row.aid}" if row.aid else f"uid:{row.uid}"),
    Column("CALL", lambda row: row.call),
    Column("CAPABILITY", lambda row: row.capability),
    Column("OBJECT", lambda row: row.object),
    Column("LEFT", lambda row: tables.span(row.expires - time.time()), right=True),
]

Party = Annotated[
    str,
    typer.Argument(
        help="aid, agent's name, agent:AID, group:NAME or uid:UID", autocompletion=offers.agents
    ),
]


@app.command()
def grant(
    subject: Party,
    capability: Annotated[str, typer.Argument(help="signal, observe, context, member, ...")],
    object: Annotated[
        str,
        typer.Argument(
            metavar="OBJECT", help="as the subject, or kernel", autocompletion=offers.agents
        ),
    ],
    ask: Annotated[bool, typer.Option("--ask", help="each use waits for approval")] = False,
    span: Annotated[
        str, typer.Option("--for", metavar="TIME", help="for so long: 90, 10min, 2h, 7d")
    ] = "",
    json: Json = False,
) -> None:
    """Give a right: `grant 5 observe 7`, `grant 5 member group:team`."""
    expires = time.time() + _seconds(span) if span else 0.0
    with link.kernel() as kernel:
        given = kernel.grant(
            subject=_party(kernel, subject),
            capability=capability,
            object=_party(kernel, object),
            mode="ask" if ask else "allow",
            expires=expires,
        )
    if json:
        tables.print_json(given)
    else:
        print(given.id)


@app.command()
def revoke(
    ids: Annotated[list[int], typer.Argument(metavar="ID...", help="as `grants` shows them")],
) -> None:
    """Take grants back."""
    with link.kernel() as kernel:
        for id in ids:
            kernel.revoke(id=id)


@app.command()
def grants(
    subject: Annotated[
        str, typer.Argument(help="only what this subject has", autocompletion=offers.agents)
    ] = "",
    json: Json = False,
) -> None:
    """List the grants that you gave, have, or may take back."""
    with link.kernel() as kernel:
        rows = kernel.list_grants(subject=_party(kernel, subject) if subject else "")
    tables.show(GRANTS, rows, json)


@app.command()
def approve(
    id: Annotated[int, typer.Argument(help="as `approve` alone shows them")] = 0,
    deny: Annotated[bool, typer.Option("--deny", help="refuse it")] = False,
    json: Json = False,
) -> None:
    """Answer a request that waits for approval; alone, list those that you may answer."""
    with link.kernel() as kernel:
        if id:
            kernel.approve(id=id, allow=not deny)
        else:
            tables.show(PENDING, kernel.list_pending(), json)


@audit_app.callback()
def audit(
    ctx: typer.Context,
    agent: Annotated[
        str,
        typer.Option("--agent", "-a", help="by or about it", autocompletion=offers.all_agents),
    ] = "",
    kind: Annotated[str, typer.Option("--kind", "-k", help="prefix of the kind: access.deny")] = "",
    after: Annotated[int, typer.Option("--after", min=0, help="only after this record")] = 0,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on until Ctrl-C")] = False,
    json: Json = False,
) -> None:
    """Show the audit log: decisions, refusals, grants, approvals and the lives of agents."""
    if ctx.invoked_subcommand is not None:
        return
    with link.kernel() as kernel:
        aid = link.resolve(kernel, [agent], ended=True)[0] if agent else 0
        for record in kernel.read_audit(since=after, kind=kind, aid=aid, follow=follow):
            if json:
                tables.print_json_line(record)
            else:
                _show(record)


@audit_app.command()
def verify(json: Json = False) -> None:
    """Prove that no record was changed, left out or put in; name the first that was."""
    from aiosd.abi.chain import Verifier

    verifier = Verifier()
    with link.kernel() as kernel:
        for r in kernel.read_audit():
            if not verifier.feed(r.id, r.t, r.uid, r.aid, r.kind, r.data, r.digest):
                break
    found = {"records": verifier.records, "first": verifier.first, "last": verifier.last,
             "broken": verifier.broken}  # fmt: skip
    if json:
        tables.print_json(found)
    if verifier.broken:
        raise link.Failure(f"the audit log is broken: {verifier.broken}")
    if not json:
        print(
            f"{verifier.records} records, {verifier.first} to {verifier.last}: the chain is whole"
        )


def notices(kernel: Kernel, told: set[int]) -> list[str]:
    """Return a line for each request that waits for approval and is not in `told`; add it there."""
    lines = []
    for row in kernel.list_pending():
        if row.id not in told:
            told.add(row.id)
            who = f"agent {row.aid}" if row.aid else f"uid {row.uid}"
            lines.append(
                f"{who} asks for {row.capability} on {row.object} ({row.call}): "
                f"approve {row.id}, or approve --deny {row.id}"
            )
    return lines


def _show(record: AuditRecord) -> None:
    who = f"agent:{record.aid}" if record.aid else f"uid:{record.uid}"
    kind = tables.paint(record.kind.ljust(16), "red" if record.kind == "access.deny" else "cyan")
    words = tables.clean(data_words(record.data))
    print(f"{record.id:7} {tables.clock(record.t)} {who:<10} {kind} {words}".rstrip(), flush=True)


def _party(kernel: Kernel, word: str) -> str:
    """Return a subject or object as the kernel names it; a bare word is an agent."""
    if word.startswith(KINDS):
        return word
    return f"agent:{link.resolve(kernel, [word])[0]}"


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([a-z]*)", text)
    if match is None or match[2] not in SPANS:
        raise link.Misuse(f"--for {text}: a number and one of s, min, h, d")
    return float(match[1]) * SPANS[match[2]]
