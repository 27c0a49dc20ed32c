"""An MCP server written with the official package, for tests.

python plain.py                  on stdin and stdout
python plain.py --port-to FILE   over streamable HTTP, on a free port that it writes to FILE
"""

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from mcp.server.mcpserver import Audio, Context, Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import (
    CallToolResult,
    EmbeddedResource,
    ResourceLink,
    TextContent,
    TextResourceContents,
    ToolAnnotations,
)
from pydantic import BaseModel

server = MCPServer("plain")
PIXEL = b"\x89PNG\r\n\x1a\n..."


class Sum(BaseModel):
    total: int
    said: str


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def add(a: int, b: int) -> Sum:
    """Add two numbers."""
    return Sum(total=a + b, said=f"{a}+{b}")


@server.tool(structured_output=False)
def shout(text: str) -> str:
    """Say it louder."""
    return text.upper()


@server.tool(structured_output=False)
def mixed() -> CallToolResult:
    """Give an image, a resource and a link beside a text."""
    image = Image(data=PIXEL, format="png").to_image_content()
    return CallToolResult(
        content=[
            TextContent(text="see"),
            image,
            Audio(data=b"RIFF", format="wav").to_audio_content(),
            EmbeddedResource(
                resource=TextResourceContents(uri="memo://1", text="memo", mime_type="text/plain")
            ),
            ResourceLink(uri="https://example.org/x", name="x"),
        ]
    )


@server.tool()
def fail(why: str) -> str:
    """Fail."""
    raise ToolError(why)


@server.tool()
def environment(name: str) -> dict[str, Any]:
    """Say what a variable is, where this runs and what it sees."""
    return {"value": os.environ.get(name), "cwd": os.getcwd(), "pid": os.getpid()}


@server.tool()
def write(name: str) -> str:
    """Write into the working directory."""
    Path(name).write_text("kept")
    return name


@server.tool()
async def rest(mark: str, seconds: float) -> str:
    """Sleep, after leaving a mark; say whether it was cancelled."""
    Path(mark).write_text("begun")
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        Path(mark).write_text("cancelled")
        raise
    return "rested"


@server.tool()
async def seen(mark: str, text: str) -> str:
    """Return when a mark has a text."""
    while not Path(mark).exists() or Path(mark).read_text() != text:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return text


@server.tool()
async def die(mark: str) -> str:
    """End at once, the first time; then answer."""
    if Path(mark).exists():
        return "alive"
    Path(mark).touch()
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"


@server.tool()
async def grow(ctx: Context[Any, Any]) -> str:
    """Have one more tool from now on."""
    server.add_tool(shout, name="louder", description="New.", structured_output=False)
    await ctx.notify_tools_changed()
    return "grown"


def main() -> None:
    if len(sys.argv) == 1:
        server.run("stdio")
        return
    import uvicorn

    listening = socket.socket(fileno=int(sys.argv[1]))
    config = uvicorn.Config(server.streamable_http_app(), log_level="warning")
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
