"""The command mcp: our tools, memory and storage for a client of the Model Context Protocol."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

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
    if find_spec("mcp") is None:
        raise link.Failure("the package mcp is missing: install it with `pip install 'aios[mcp]'`")
    module, places = _program()
    known = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([*places, *filter(None, [known])])
    words = [sys.executable, "-P", "-m", module, *(["--name", name] if name else [])]
    os.execv(sys.executable, words)


def _program() -> tuple[str, list[str]]:
    """Return the program's module and where Python must look: in an installation, or a checkout."""
    root = Path(__file__).resolve().parents[1]
    if (root / "aiosd" / "agents" / "gateway").is_dir():
        return "aiosd.agents.gateway.mcpstdio", [str(root)]
    return "agents.gateway.mcpstdio", [str(root), str(root / "sdk")]
