"""The server of the Model Context Protocol on standard input and output: `aiosctl mcp` runs it.

It asks the kernel as whoever started it: as the agent whose credential it inherited, as a new agent
where --name says so, else as the person.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mcp.server.stdio import stdio_server

import aios

from .mcpserver import Asked, make

UNREACHABLE = 125


def main() -> int:
    """Serve until the client closes standard input; return the exit status."""
    parser = argparse.ArgumentParser(prog="aiosctl mcp")
    parser.add_argument("--name", default=None)
    options = parser.parse_args()
    try:
        asyncio.run(serve(options.name))
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        print(f"aiosctl: mcp: {error.strerror or error}", file=sys.stderr)
        return UNREACHABLE
    return 0


async def serve(name: str | None) -> None:
    """Connect to the kernel and serve the client. Raises OSError when there is no kernel."""
    async with aios.connect_async(name=name) as kernel:

        @asynccontextmanager
        async def connected(asked: Asked) -> AsyncIterator[aios.AsyncKernel]:
            yield kernel

        server = make(connected)
        async with stdio_server() as (incoming, outgoing):
            await server.run(incoming, outgoing, server.create_initialization_options())


if __name__ == "__main__":
    sys.exit(main())
