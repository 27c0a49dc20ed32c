"""Commands about contexts and where they are kept: mem, ctx, snapshot, restore."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from aiosh import link, offers, tables
from aiosh.arguments import Json
from aiosh.tables import Column

if TYPE_CHECKING:
    from aios import Kernel
    from aiosd.abi.inference import Context, Snapshot
    from aiosd.abi.system import SystemInfo

app = typer.Typer()
ctx_app = typer.Typer(invoke_without_command=True)
app.add_typer(ctx_app, name="ctx", help="List contexts; describe or forget one.")

Row = dict[str, Any]

MEMORY: Final[list[Column[Row]]] = [
    Column("OF", lambda row: row["of"]),
    Column("NAME", lambda row: row["name"], least=12),
    Column("CTX", lambda row: str(row["contexts"]), right=True),
    Column("TOKENS", lambda row: tables.count(row["tokens"]), right=True),
    Column("KV", lambda row: tables.size(row["kv"]), right=True),
    Column("RAM", lambda row: tables.size(row["ram"]), right=True),
    Column("DISK", lambda row: tables.size(row["disk"]), right=True),
]
"""What `mem` shows: KV in slots, KV in slots and RAM together (for a core: its worker's memory),
KV on disk. A file that several contexts share counts for each."""

CONTEXTS: Final[list[Column[Context]]] = [
    Column("CTX", lambda row: str(row.cid), right=True),
    Column("AID", lambda row: str(row.aid), right=True),
    Column("CORE", lambda row: row.core, least=8),
    Column("TIER", lambda row: row.tier),
    Column("SLOT", lambda row: str(row.slot) if row.slot >= 0 else "", right=True),
    Column("TOKENS", lambda row: str(row.tokens), right=True),
    Column("KV", lambda row: str(row.kv), right=True),
    Column("SHARED", lambda row: str(row.shared or ""), right=True),
    Column("LIMIT", lambda row: str(row.limit), right=True),
    Column("RAM", lambda row: tables.size(row.ram), right=True),
    Column("DISK", lambda row: tables.size(row.disk), right=True),
    Column("SNAPS", lambda row: str(row.snapshots or ""), right=True),
    Column("AGE", lambda row: tables.span(time.time() - row.created), right=True),
    Column("IDLE", lambda row: "" if row.busy else tables.span(time.time() - row.used), right=True),
    Column("EXACT", lambda row: "yes" if row.exact else "no"),
    Column("POLICY", lambda row: row.policy),
    Column("NOTE", lambda row: row.note, least=8),
]
"""What `ctx` shows. KV: tokens whose KV is held; SHARED: tokens at its beginning that others have
too; SNAPS: named snapshots; IDLE is empty while a request works on it."""

SNAPSHOTS: Final[list[Column[Snapshot]]] = [
    Column("ID", lambda row: str(row.id), right=True),
    Column("CTX", lambda row: str(row.cid), right=True),
    Column("NAME", lambda row: row.name, least=8),
    Column("TOKENS", lambda row: str(row.tokens), right=True),
    Column("DISK", lambda row: tables.size(row.bytes), right=True),
    Column("AGE", lambda row: tables.span(time.time() - row.created), right=True),
]

Number = Annotated[int, typer.Argument(metavar="CTX", min=1, help="number of the context")]


@app.command()
def mem(json: Json = False) -> None:
    """Show KV in slots, in RAM and on disk, by core and by agent."""
    with link.kernel() as kernel:
        rows, info = _memory(kernel), kernel.sysinfo()
    if json:
        limits = ("kv_ram", "kv_ram_limit", "kv_disk", "kv_disk_limit")
        tables.print_json({name: getattr(info, name) for name in limits} | {"rows": rows})
        return
    print(_totals(info))
    tables.show(MEMORY, rows, json=False)


def _totals(info: SystemInfo) -> str:
    limits = [tables.size(n) if n else "no limit" for n in (info.kv_ram_limit, info.kv_disk_limit)]
    return (
        f"RAM {tables.size(info.kv_ram)} of {limits[0]}, disk {tables.size(info.kv_disk)} of "
        f"{limits[1]}, kernel {tables.size(info.rss)}"
    )


def _memory(kernel: Kernel) -> list[Row]:
    mine: dict[str, list[Context]] = {}
    for context in kernel.list_contexts():
        for owner in (f"agent:{context.aid}", f"core {context.core}"):
            mine.setdefault(owner, []).append(context)
    rows: list[Row] = []
    for core in kernel.list_cores():
        held = mine.get(f"core {core.name}", [])
        rows.append(_row("core", core.name, held) | {"kv": core.kv_bytes, "ram": core.rss})
    for agent in kernel.list_agents():
        held = mine.get(f"agent:{agent.aid}", [])
        rows.append(_row(f"agent:{agent.aid}", agent.name, held))
    return rows


def _row(of: str, name: str, held: list[Context]) -> Row:
    return {
        "of": of,
        "name": name,
        "contexts": len(held),
        "tokens": sum(context.tokens for context in held),
        "kv": sum(context.ram for context in held if context.tier == "slot"),
        "ram": sum(context.ram for context in held),
        "disk": sum(context.disk for context in held),
    }


@ctx_app.callback()
def ctx(ctx: typer.Context, json: Json = False) -> None:
    """List contexts: their tokens, where their KV is, whether it is exact."""
    if ctx.invoked_subcommand is None:
        _list("", json)


@ctx_app.command("ls")
def list_(
    agent: Annotated[
        str, typer.Argument(help="aid or name; default: all", autocompletion=offers.agents)
    ] = "",
    json: Json = False,
) -> None:
    """List contexts, all or an agent's."""
    _list(agent, json)


def _list(agent: str, json: bool) -> None:
    with link.kernel() as kernel:
        aid = link.resolve(kernel, [agent], ended=True)[0] if agent else 0
        rows = kernel.list_contexts(aid=aid)
    tables.show(CONTEXTS, rows, json)


def _past(row: Context) -> list[tuple[str, str]]:
    """What has happened to a context's window, and how much has passed through it."""
    counts = ("slid", "truncated", "summarized", "expanded")
    happened = [f"{name} {n}" for name in counts if (n := getattr(row, name))]
    return [("length", str(row.length)), ("window", ", ".join(happened) or "-")]


@ctx_app.command()
def show(context: Number, json: Json = False) -> None:
    """Describe one context and list its snapshots."""
    with link.kernel() as kernel:
        row = kernel.get_context(context=context)
        marks = kernel.list_snapshots(context=context)
    if json:
        tables.print_json({"context": row, "snapshots": marks})
        return
    facts = [(column.head.lower(), column.cell(row) or "-") for column in CONTEXTS]
    tables.facts([*facts, *_past(row)])
    if marks:
        print()
        tables.show(SNAPSHOTS, marks, json=False)


@ctx_app.command()
def policy(
    context: Number,
    policy: Annotated[
        str, typer.Argument(help="what a full window does", autocompletion=offers.windows)
    ],
) -> None:
    """Choose what a context does when its window is full."""
    with link.kernel() as kernel:
        row = kernel.set_context(context=context, policy=policy)
    print(f"context {row.cid}: {row.tokens} of {row.limit} tokens, then {row.policy}")


@ctx_app.command()
def move(
    context: Number,
    core: Annotated[str, typer.Argument(help="of the same model", autocompletion=offers.cores)],
) -> None:
    """Put an idle context on another core of its model, with its KV where that fits."""
    with link.kernel() as kernel:
        row = kernel.move_context(context=context, core=core)
    kept = f"{row.kv} of {row.tokens} tokens kept their KV"
    print(f"context {row.cid} is on core {row.core}; {kept}")


@ctx_app.command()
def expand(
    context: Number,
    tokens: Annotated[int, typer.Argument(min=1, help="that its window is to hold")],
    yarn: Annotated[
        bool, typer.Option("--yarn", help="beyond the length that the model was trained for")
    ] = False,
) -> None:
    """Move a context to a larger window."""
    with link.kernel() as kernel:
        row = kernel.exp_context(context=context, tokens=tokens, yarn=yarn)
    print(f"context {row.cid}: {row.tokens} of {row.limit} tokens, on core {row.core}")


@ctx_app.command()
def turns(
    context: Number,
    first: Annotated[int, typer.Argument(min=1, help="number of the first turn")] = 1,
    last: Annotated[int, typer.Argument(min=0, help="of the last; 0: up to 100")] = 0,
    json: Json = False,
) -> None:
    """Show what a context has read and said, summarized turns as they were."""
    with link.kernel() as kernel:
        found = kernel.get_context(
            context=context, first_turn=first, last_turn=last or first + 99
        ).turns
    if json:
        tables.print_json(found)
        return
    for turn in found:
        note = ", summarized" if turn.summarized else ""
        print(f"{turn.number} {turn.role}{note}: {tables.clean(turn.text)}")


@ctx_app.command()
def rm(contexts: Annotated[list[int], typer.Argument(metavar="CTX...", min=1)]) -> None:
    """Forget contexts and free what they hold."""
    with link.kernel() as kernel:
        for context in contexts:
            kernel.clr_context(context=context)


@app.command()
def snapshot(
    context: Annotated[str, typer.Argument(metavar="CTX|ls", help="number of the context, or ls")],
    name: Annotated[
        str, typer.Argument(help="the snapshot's name; with ls: only of this context")
    ] = "",
    json: Json = False,
) -> None:
    """Mark a point that a context can go back to: `snapshot 5 before`, `snapshot ls`."""
    with link.kernel() as kernel:
        if context == "ls":
            rows = kernel.list_snapshots(context=_number(name) if name else 0)
            tables.show(SNAPSHOTS, rows, json)
            return
        made = kernel.gen_snapshot(context=_number(context), name=name)
    if json:
        tables.print_json(made)
    else:
        print(made.id)


@app.command()
def restore(
    context: Number,
    id: Annotated[int, typer.Argument(help="of the snapshot; default: the newest")] = 0,
    json: Json = False,
) -> None:
    """Take a context back to a snapshot."""
    with link.kernel() as kernel:
        row = kernel.gen_restore(context=context, snapshot=id)
    if json:
        tables.print_json(row)
    else:
        print(f"context {row.cid}: {row.tokens} tokens, {row.tier}")


def _number(text: str) -> int:
    if not text.isdecimal():
        raise link.Failure(f"{text!r} is no number of a context; `ctx` shows them", 2)
    return int(text)
