"""Arguments and options that several commands share, so that they look alike everywhere."""

from __future__ import annotations

from typing import Annotated

import typer

from aiosh import offers

Json = Annotated[bool, typer.Option("--json", help="data as JSON on stdout")]
Agent = Annotated[str, typer.Argument(help="aid or name", autocompletion=offers.agents)]
Kept = Annotated[
    str, typer.Argument(help="aid or name, ended or not", autocompletion=offers.all_agents)
]
Agents = Annotated[list[str], typer.Argument(help="aids or names", autocompletion=offers.agents)]
CoreName = Annotated[str, typer.Argument(help="name of the core", autocompletion=offers.cores)]
