"""Programs that come with AIOS as commands, each in a process of its own: mcp, spans."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from aiosh import link

app = typer.Typer()


@app.command()
def mcp(
    name: Annotated[
        str, typer.Option("--name", "-n", metavar="NAME", help="be an agent of this name")
    ] = "",
) -> None:
    """Serve the Model Context Protocol on standard input and output, for a client's configuration.

    The client gets the kernel's tools, memory and storage, under the rights of whoever runs this.
    """
    _become("gateway.mcpstdio", "mcp", "mcp", *(["--name", name] if name else []))


@app.command()
def spans(
    endpoint: Annotated[
        str,
        typer.Option("--endpoint", "-e", metavar="URL", help="the collector, by OTLP over HTTP"),
    ] = "http://127.0.0.1:4318",
) -> None:
    """Send spans of what agents do to a collector of OpenTelemetry, until interrupted."""
    _become("tracing", "opentelemetry.sdk", "otel", "--endpoint", endpoint)


def _become(program: str, needs: str, extra: str, *words: str) -> NoReturn:
    """Run a program in our place. Raises Failure when the package that it needs is missing."""
    try:
        found = find_spec(needs)
    except ModuleNotFoundError:
        found = None
    if found is None:
        cure = f"install it with `pip install 'aios[{extra}]'`"
        raise link.Failure(f"the package {needs} is missing: {cure}")
    module, places = _place(program)
    known = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([*places, *filter(None, [known])])
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *words])


def _place(program: str) -> tuple[str, list[str]]:
    """Return a program's module and where Python must look: in an installation, or a checkout."""
    root = Path(__file__).resolve().parents[1]
    if (root / "aiosd" / "agents").is_dir():
        return f"aiosd.agents.{program}", [str(root)]
    return f"agents.{program}", [str(root), str(root / "sdk")]
