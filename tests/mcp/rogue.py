"""MCP servers that misbehave: `python rogue.py WAY`. Plain JSON-RPC, so that they may lie.

silent: never answers. mute: answers until a tool is called, then nothing at all. dies: at once,
with a word on stderr. garbage: no JSON. floods: endless notifications. wide: one endless line.
liar: lies in its list of tools, and in its results.
"""

import json
import sys
import time
from typing import Any


def say(message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "inputSchema": {"type": "object"}, **more}


def nested(depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(depth):
        found = {"items": found}
    return found


LIES = [
    tool("good", description="Answers."),
    tool("number", outputSchema={"type": "object", "properties": {"n": {"type": "integer"}}}),
    tool("odd"),
    tool("deep"),
    tool("huge"),
    tool("twin", description="one"),
    tool("twin", description="the other"),
    tool("../../etc/passwd"),
    tool("bad name\n\x1b[31m"),
    tool("n" * 100),
    tool("wordy", description="w" * (3 << 20)),
    tool("nested", outputSchema={"type": "object", **nested(100)}),
    tool("large", outputSchema={"type": "object", "x": "y" * 100_000}),
    tool("schema", inputSchema={"type": "object", "properties": {"a": {"type": "nonsense"}}}),
    *(tool(f"more{i}") for i in range(400)),
]

CONTENT: dict[str, dict[str, Any]] = {
    "good": {"content": [{"type": "text", "text": "good"}]},
    "number": {"content": [], "structuredContent": {"n": "no number"}},
    "odd": {"content": [{"type": "image", "mimeType": "image/png", "data": "no base64!"}]},
    "deep": {"content": [], "structuredContent": nested(60)},
    "huge": {"content": [{"type": "text", "text": "h" * (2 << 20)}]},
}


def answer(request: dict[str, Any], way: str) -> None:
    method = request.get("method")
    result: dict[str, Any]
    if method == "initialize":
        version = request["params"]["protocolVersion"]
        result = {
            "protocolVersion": version,
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "rogue", "version": "1"},
        }
    elif method == "tools/list":
        result = {"tools": LIES if way == "liar" else [tool("good")]}
    elif method == "tools/call" and way == "liar":
        result = dict(CONTENT[request["params"]["name"]])
    elif method == "tools/call":
        time.sleep(600)
        return
    else:
        say({"jsonrpc": "2.0", "id": request["id"], "error": {"code": -32601, "message": "no"}})
        return
    say({"jsonrpc": "2.0", "id": request["id"], "result": result})


def main() -> None:
    way = sys.argv[1]
    if way == "dies":
        sys.exit("no licence found")
    if way == "silent":
        time.sleep(600)
    while way == "garbage":
        sys.stdout.write("no message\n")
    while way == "floods":
        say({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})
    while way == "wide":
        sys.stdout.write("w" * 65536)
    for line in sys.stdin:
        request = json.loads(line)
        if "id" in request:
            answer(request, way)


if __name__ == "__main__":
    main()
