"""Commands about tools: tools doctor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import typer

from aiosh import link, tables
from aiosh.arguments import Json
from aiosh.tables import Column

if TYPE_CHECKING:
    from aiosd.abi.tools import Layer

app = typer.Typer()
tools_app = typer.Typer(no_args_is_help=True)
app.add_typer(tools_app, name="tools", help="See what tools there are, and what holds them.")


def _state(layer: Layer) -> str:
    return "yes" if layer.available else "MISSING" if layer.needed else "no"


LAYERS: Final[list[Column[Layer]]] = [
    Column("LAYER", lambda row: row.name),
    Column("HERE", _state, colour=lambda row: "" if row.available else "red"),
    Column("BY", lambda row: row.reason, least=12),
    Column("STOPS", lambda row: row.stops, least=12),
]
"""What `tools doctor` shows. BY: what provides the layer, or why it is missing."""


@tools_app.command()
def doctor(json: Json = False) -> None:
    """Show which layers of the sandbox this machine can enforce, and how to get the others.

    Status 1 when one is missing without which isolated tools don't run.
    """
    with link.kernel() as kernel:
        layers = kernel.list_layers()
    tables.show(LAYERS, layers, json=json)
    for layer in layers:
        if not layer.available and not json:
            lost = "isolated tools don't run without it" if layer.needed else "tools run without it"
            typer.echo(f"{layer.name}: {lost}. {layer.cure}", err=True)
    if any(layer.needed and not layer.available for layer in layers):
        raise typer.Exit(1)
