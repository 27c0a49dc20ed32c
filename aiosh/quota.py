"""Commands about limits and what was used: quota, quota set, quota remove, quota usage."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Annotated, Final

import typer

from aiosh import link, offers, tables
from aiosh.arguments import Json
from aiosh.tables import Column

if TYPE_CHECKING:
    from aios import Kernel
    from aiosd.abi.accounts import Quota, UsageRow

app = typer.Typer()
quota_app = typer.Typer(invoke_without_command=True)
app.add_typer(quota_app, name="quota", help="Show limits, set them, and what was used.")

SPANS: Final = {"": 1, "s": 1, "min": 60, "h": 3600, "d": 86400}
SIZES: Final = {"": 1, "k": 1000, "M": 10**6, "G": 10**9, "KiB": 1 << 10, "MiB": 1 << 20,
                "GiB": 1 << 30, "TiB": 1 << 40}  # fmt: skip
KINDS: Final = ("agent:", "group:", "uid:")


def _amount(row: Quota, amount: float) -> str:
    if row.resource == "dollars":
        return f"${amount:.6f}".rstrip("0").rstrip(".")
    return tables.size(amount) if row.resource.endswith("_bytes") else tables.count(amount)


def _left(row: Quota) -> float:
    return row.limit - row.used - row.reserved


QUOTAS: Final[list[Column[Quota]]] = [
    Column("SUBJECT", lambda row: row.subject),
    Column("RESOURCE", lambda row: row.resource),
    Column("LIMIT", lambda row: _amount(row, row.limit), right=True),
    Column("USED", lambda row: _amount(row, row.used), right=True),
    Column("RESERVED", lambda row: _amount(row, row.reserved), right=True),
    Column(
        "LEFT",
        lambda row: _amount(row, max(0.0, _left(row))),
        right=True,
        colour=lambda row: "red" if _left(row) <= 0 else "",
    ),
    Column(
        "RESETS",
        lambda row: f"in {tables.span(row.resets - time.time())}" if row.resets else "never",
    ),
    Column("KIND", lambda row: "hard" if row.hard else "soft"),
    Column("BY", lambda row: row.by),
]

USAGE: Final[list[Column[UsageRow]]] = [
    Column("SUBJECT", lambda row: row.subject),
    Column("FROM", lambda row: _day(row.since)),
    Column("TO", lambda row: _day(row.until - 1)),
    Column("CORE", lambda row: row.core),
    Column("TOOL", lambda row: row.tool),
    Column("REQUESTS", lambda row: str(row.requests), right=True),
    Column("TOKENS IN", lambda row: str(row.tokens_in), right=True),
    Column("OUT", lambda row: str(row.tokens_out), right=True),
    Column("DOLLARS", lambda row: f"{row.dollars:.6f}", right=True),
]

Subject = Annotated[
    str,
    typer.Argument(
        metavar="[SUBJECT]",
        help="aid, agent's name, agent:AID, group:NAME or uid:UID; alone: you",
        autocompletion=offers.all_agents,
    ),
]
Resource = Annotated[str, typer.Argument(help="tokens, dollars, requests, tool_calls, ...")]


@quota_app.callback()
def quota(ctx: typer.Context, json: Json = False) -> None:
    """Show the limits that bind you: limit, used, reserved, left, and when each resets."""
    if ctx.invoked_subcommand is None:
        _show("", json)


@quota_app.command()
def show(subject: Subject = "", json: Json = False) -> None:
    """Show the limits that bind a subject; of an agent also those of its forebears and its uid."""
    _show(subject, json)


def _show(subject: str, json: bool) -> None:
    with link.kernel() as kernel:
        rows = kernel.get_quota(subject=_subject(kernel, subject) if subject else "")
    tables.show(QUOTAS, rows, json)


@quota_app.command("set")
def set_(
    subject: Annotated[
        str, typer.Argument(help="as in show", autocompletion=offers.agents, metavar="SUBJECT")
    ],
    resource: Resource,
    limit: Annotated[str, typer.Argument(help="50000, 50k, 2.5 (dollars), 64MiB")],
    every: Annotated[
        str, typer.Option("--every", metavar="TIME", help="resets so often: 60, 1h, 1d")
    ] = "",
    soft: Annotated[
        bool, typer.Option("--soft", help="tell when exceeded, refuse nothing")
    ] = False,
    json: Json = False,
) -> None:
    """Set a limit: `quota set 5 tokens 50k --every 1h`, `quota set uid:1000 dollars 2.50`."""
    amount, period = _scaled(limit, SIZES, "LIMIT"), _scaled(every or "0", SPANS, "--every")
    with link.kernel() as kernel:
        row = kernel.set_quota(
            subject=_subject(kernel, subject, ended=False),
            resource=resource,
            limit=amount,
            hard=not soft,
            period=period,
        )
    tables.show(QUOTAS, [row], json)


@quota_app.command()
def remove(
    subject: Annotated[
        str, typer.Argument(help="as in show", autocompletion=offers.agents, metavar="SUBJECT")
    ],
    resource: Resource,
) -> None:
    """Take away the limit that you set; as root, those that anybody did."""
    with link.kernel() as kernel:
        kernel.set_quota(subject=_subject(kernel, subject), resource=resource, limit=0, remove=True)


@quota_app.command()
def usage(
    subject: Subject = "",
    by: Annotated[str, typer.Option("--by", help="core, tool, day, agent, uid or group")] = "core",
    last: Annotated[
        str, typer.Option("--last", metavar="TIME", help="only the last 1d, 7d, ...; whole days")
    ] = "",
    json: Json = False,
) -> None:
    """Show what was used and what it cost; of an agent with all that descends from it."""
    since = max(0.0, time.time() - _scaled(last, SPANS, "--last")) if last else 0.0
    with link.kernel() as kernel:
        rows = kernel.get_usage(
            subject=_subject(kernel, subject) if subject else "", since=since, by=by
        )
    tables.show(USAGE, rows, json)


def _subject(kernel: Kernel, word: str, *, ended: bool = True) -> str:
    """Return a subject as the kernel names it; a bare word is an agent, which may have ended."""
    if word.startswith(KINDS) or word == "kernel":
        return word
    return f"agent:{link.resolve(kernel, [word], ended=ended)[0]}"


def _scaled(text: str, units: dict[str, int], what: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([A-Za-z]*)", text)
    if match is None or match[2] not in units:
        known = ", ".join(unit for unit in units if unit)
        raise link.Misuse(f"{what} {text}: a number and one of {known}")
    return float(match[1]) * units[match[2]]


def _day(t: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(t))
