"""Commands about tools: tools, tools show, run, register, remove, doctor."""

from __future__ import annotations

import json as jsonlib
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from aiosh import link, offers, tables, workspaces
from aiosh.arguments import Json
from aiosh.tables import Column

if TYPE_CHECKING:
    from aiosd.abi.tools import Layer, Tool

app = typer.Typer()
tools_app = typer.Typer(invoke_without_command=True)
app.add_typer(tools_app, name="tools", help="Show tools, call and declare them, see their sandbox.")

TOOLS: Final[list[Column[Tool]]] = [
    Column("NAME", lambda row: row.name),
    Column("VERSION", lambda row: row.version),
    Column("SOURCE", lambda row: row.source.partition(":")[0]),
    Column("RUNNING", lambda row: str(row.running), right=True),
    Column("QUEUED", lambda row: str(row.queued), right=True),
    Column("WARM", lambda row: str(row.warm), right=True),
    Column("NEEDS", lambda row: " ".join(row.needs), least=12),
    Column("DESCRIPTION", lambda row: row.description.partition("\n")[0], least=20),
]


def _state(layer: Layer) -> str:
    return "yes" if layer.available else "MISSING" if layer.needed else "no"


LAYERS: Final[list[Column[Layer]]] = [
    Column("LAYER", lambda row: row.name),
    Column("HERE", _state, colour=lambda row: "" if row.available else "red"),
    Column("BY", lambda row: row.reason, least=12),
    Column("STOPS", lambda row: row.stops, least=12),
]
"""What `tools doctor` shows. BY: what provides the layer, or why it is missing."""

Name = Annotated[
    str, typer.Argument(help="tool's name", metavar="NAME", autocompletion=offers.tools)
]


@tools_app.callback()
def tools(context: typer.Context, json: Json = False) -> None:
    """Show all tools."""
    if context.invoked_subcommand is None:
        ls(json)


@tools_app.command()
def ls(json: Json = False) -> None:
    """List all tools; what keeps others away is said on standard error."""
    with link.kernel() as kernel:
        rows = kernel.list_tools()
        sources, servers = kernel.list_tool_sources(), kernel.list_tool_servers()
    tables.show(TOOLS, rows, json)
    for source in sources:
        if source.problem:
            typer.echo(f"{source.name}: {source.problem}", err=True)
    for server in servers:
        if server.state != "ready":
            why = f": {server.reason}" if server.reason else ""
            typer.echo(f"MCP server {server.name} is {server.state}{why}", err=True)


@tools_app.command()
def show(name: Name) -> None:
    """Print a tool's declaration, as JSON."""
    with link.kernel() as kernel:
        tool = kernel.describe_tool(name)
    tables.print_json(tool)


@tools_app.command()
def run(
    name: Name,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="NAME=VALUE (VALUE as JSON, else text), or one JSON table"),
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=0, help="seconds; 0: its own")] = 0.0,
    files: Annotated[
        list[Path] | None,
        typer.Option("--file", "-f", metavar="FILE", help="copy it to the workspace; repeatable"),
    ] = None,
    json: Json = False,
) -> None:
    """Call a tool: its result goes to stdout, what it printed beside that to stderr.

    Files that it leaves in the workspace are named on stderr.
    """
    with link.kernel() as kernel:
        for file in files or []:
            workspaces.put(kernel, file)
        result = kernel.execute_tool(
            name, arguments=_arguments(arguments or []), timeout=timeout or None
        )
    if json:
        tables.print_json(result)
        return
    typer.echo(result.stdout + result.stderr, err=True, nl=False)
    for name in result.artefacts:
        typer.echo(f"left {result.workspace}/{name}", err=True)
    value = result.value
    print(value if isinstance(value, str) else jsonlib.dumps(value, ensure_ascii=False, indent=1))


@tools_app.command()
def put(
    file: Annotated[Path, typer.Argument(help="file of this machine", dir_okay=False)],
    name: Annotated[str, typer.Argument(help="path in the workspace; default: its own name")] = "",
) -> None:
    """Put a file into the workspace, where your tools find it, in place of what has its name."""
    with link.kernel() as kernel:
        print(workspaces.put(kernel, file, name))


@tools_app.command()
def get(
    name: Annotated[str, typer.Argument(help="path in the workspace")],
    file: Annotated[
        Path | None, typer.Argument(help="where to; default: stdout", dir_okay=False)
    ] = None,
) -> None:
    """Get a file out of the workspace, such as one that a tool left."""
    with link.kernel() as kernel:
        workspaces.get(kernel, name, file)


@tools_app.command()
def register(
    manifest: Annotated[Path, typer.Argument(help="TOML file", exists=True, dir_okay=False)],
    replace: Annotated[bool, typer.Option("--replace", help="in place of the one there")] = False,
    json: Json = False,
) -> None:
    """Declare a tool for good, from a manifest."""
    try:
        declaration = tomllib.loads(manifest.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise link.Misuse(f"{manifest}: no valid TOML: {error}") from None
    with link.kernel() as kernel:
        tool = kernel.register_tool(declaration, replace=replace)
    if json:
        tables.print_json(tool)


@tools_app.command()
def remove(name: Name) -> None:
    """Take away a tool that was registered."""
    with link.kernel() as kernel:
        kernel.register_tool({"name": name}, remove=True)


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


def _arguments(words: list[str]) -> dict[str, Any]:
    """Return the arguments of a call, from words or from one JSON table."""
    if len(words) == 1 and words[0].lstrip().startswith("{"):
        try:
            found = jsonlib.loads(words[0])
        except ValueError as error:
            raise link.Misuse(f"arguments: no valid JSON: {error}") from None
        assert isinstance(found, dict)
        return found
    return dict(map(_argument, words))


def _argument(word: str) -> tuple[str, Any]:
    name, equals, text = word.partition("=")
    if not (name and equals):
        raise link.Misuse(f"{word}: write it as name=value")
    try:
        return name, jsonlib.loads(text)
    except ValueError:
        return name, text
