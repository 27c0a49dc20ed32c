"""`top`: the process table live, in the terminal's alternate screen, with keys that act on it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from aiosh import link, tables
from aiosh.arguments import Json

if TYPE_CHECKING:
    from aiosh.topview import Picture

app = typer.Typer()


@app.command()
def top(
    delay: Annotated[
        float, typer.Option("--delay", "-d", min=0.1, help="seconds between refreshes")
    ] = 1.0,
    batch: Annotated[
        bool, typer.Option("--batch", "-b", help="print, don't take the screen over")
    ] = False,
    times: Annotated[
        int, typer.Option("--times", "-n", min=0, help="with --batch: so often; 0: for ever")
    ] = 1,
    json: Json = False,
) -> None:
    """Watch agents live: sort, kill, renice, suspend and resume by key (h shows the keys).

    Without a terminal, or with --batch or --json, it prints the same instead.
    """
    import sys

    if not (batch or json) and sys.stdin.isatty() and sys.stdout.isatty():
        from aiosh.toplive import live

        live(delay)
        return
    shown = 0
    while True:
        _print(take(everyone=False), json)
        shown += 1
        if shown == times:
            return
        time.sleep(delay)


def take(*, everyone: bool) -> Picture:
    """Ask the kernel for all that top shows. Raises Failure, OSError."""
    from aiosh.topview import Picture

    with link.kernel() as kernel:
        return Picture(
            agents=kernel.list_agents(all=everyone),
            cores=kernel.list_cores(),
            sched=kernel.get_sched(),
            info=kernel.sysinfo(),
        )


def _print(picture: Picture, json: bool) -> None:
    from aiosh.topview import columns, header, ordered

    if json:
        tables.print_json_line(
            {"agents": picture.agents, "cores": picture.cores, "policy": picture.sched.policy}
        )
        return
    for line in header(picture):
        print(line)
    tables.show(columns(), ordered(picture.agents, "P"), json=False)
