"""The way out of a box with declared hosts, and that there is no other."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from aiosd.sandbox import Box
from tests.sandbox.boxes import needs_layers, outcome, run

pytestmark = needs_layers

CLIENT = """
import json, os, socket, sys, urllib.error, urllib.request
def ask(url):
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return [answer.status, answer.read().decode()]
    except urllib.error.HTTPError as error:
        return [error.code, error.read().decode()]
def connect(target):
    host, _, port = os.environ["HTTP_PROXY"].removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), 60) as sock:
        sock.sendall(f"CONNECT {target} HTTP/1.1\\r\\n\\r\\n".encode())
        file = sock.makefile("rb")
        status = int(file.readline().split()[1])
        while file.readline().strip():
            pass
        if status == 200:
            sock.sendall(b"GET /through HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
        return [status, file.read().decode()]
def directly(target):
    host, _, port = target.partition(":")
    try:
        socket.create_connection((host, int(port)), 60)
    except OSError as error:
        return [0, error.strerror]
    return [200, ""]
found = [{"ask": ask, "connect": connect, "directly": directly}[how](what)
         for how, what in json.loads(sys.argv[1])]
print(json.dumps(found))
"""


@contextlib.asynccontextmanager
async def web() -> AsyncIterator[str]:
    """Serve, at the address given, each request's path and the headers that came."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        body = head.split(b"\r\n\r\n")[0]
        length = b"Content-Length: %d\r\n" % len(body)
        writer.write(b"HTTP/1.1 200 OK\r\n" + length + b"Connection: close\r\n\r\n" + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def asked(
    workspace: Path, network: list[str], questions: list[tuple[str, str]]
) -> list[tuple[int, str]]:
    """Ask from within a box that has declared `network`."""
    (workspace / "client.py").write_text(CLIENT)
    argv = (sys.executable, "-I", "client.py", json.dumps(questions))
    box = Box(argv=argv, workspace=str(workspace), network=tuple(network))
    status, data = await outcome(box)
    assert status == 0, data.decode()
    return [(status, text) for status, text in json.loads(data)]


def test_declared_host_is_reached_and_nothing_else(tmp_path: Path) -> None:
    async def main() -> None:
        async with web() as declared, web() as other:
            answers = await asked(
                tmp_path,
                [declared],
                [
                    ("ask", f"http://{declared}/path?query=1"),
                    ("connect", declared),
                    ("ask", f"http://{other}/"),
                    ("connect", other),
                    ("directly", declared),
                    ("directly", other),
                ],
            )
        (plain, text), (tunnel, through), *refused = answers
        assert (plain, text.splitlines()[0]) == (200, "GET /path?query=1 HTTP/1.1")
        assert f"Host: {declared}" in text and "Proxy" not in text
        assert tunnel == 200 and "GET /through" in through
        assert [status for status, _ in refused] == [403, 403, 0, 0]
        assert f"{other} is not among the tool's declared hosts" in refused[0][1]

    run(main())


def test_name_that_leads_to_this_machine_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with web() as here:
            port = here.partition(":")[2]
            loop = asyncio.get_running_loop()
            resolve = loop.getaddrinfo

            async def liar(host: str, *args: int, **named: int) -> object:
                return await resolve("127.0.0.1" if host == "example.org" else host, *args, **named)

            loop.getaddrinfo = liar  # type: ignore[method-assign, assignment]
            target = f"example.org:{port}"
            [(status, text), (local, _)] = await asked(
                tmp_path,
                [target, f"localhost:{port}"],
                [("ask", f"http://{target}/"), ("connect", f"localhost:{port}")],
            )
        assert status == 403 and "leads to an address of this machine" in text
        assert local == 200

    run(main())


def test_unreadable_request_is_answered(tmp_path: Path) -> None:
    async def main() -> None:
        [(status, text)] = await asked(tmp_path, ["example.org"], [("connect", "a:b:c d")])
        assert status == 400 and "request line" in text

    run(main())
