"""The command about the gateway: where programs that know nothing of AIOS are served over HTTP."""

from __future__ import annotations

import typer

from aiosh import link, tables
from aiosh.arguments import Json

app = typer.Typer()


@app.command()
def gateway(json: Json = False) -> None:
    """Say where the OpenAI-compatible endpoint listens, and how it is.

    Programs that `run` starts find it in OPENAI_BASE_URL, and their key in OPENAI_API_KEY.
    """
    with link.kernel() as kernel:
        found = kernel.get_gateway()
    if json:
        tables.print_json(found)
        return
    tables.facts(
        [
            ("state", f"{found.state} ({found.reason})" if found.reason else found.state),
            ("http", found.http or "none"),
            ("socket", found.socket or "none"),
            ("pid", str(found.pid or "none")),
            ("restarts", str(found.restarts)),
        ]
    )
