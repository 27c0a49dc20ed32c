"""The gateway's process: `python -m agents.gateway --fd N --listen M,...`, started by the kernel.

N is one end of a socketpair: a line of JSON with the settings comes from it, and a line goes back
when this serves and every few seconds after. "leave" or its end of file ends the process, and so
does having had no connection for a while.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import logging
import os
import signal
import socket
import sys
from typing import Final

import msgspec
import uvicorn

from .app import make
from .connection import Connection
from .office import Office
from .setup import Setup

BEAT_S: Final = 5.0
LEAVE_S: Final = 5
SETUP_S: Final = 30.0
PR_SET_PDEATHSIG: Final = 1


def main() -> int:
    """Serve until told to leave; return the exit status."""
    options = _options()
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the kernel's business
    os.nice(options.nice)
    logging.basicConfig(level=logging.WARNING, format="aios gateway: %(message)s")
    link = socket.socket(fileno=options.fd)
    doors = [socket.socket(fileno=number) for number in options.listen]
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve(link, doors))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="agents.gateway")
    parser.add_argument("--fd", type=int, required=True, help="socket to the kernel")
    parser.add_argument("--listen", type=_numbers, required=True, help="listening sockets")
    parser.add_argument("--nice", type=int, default=0)
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _die_with_parent() -> None:
    """Have the kernel's end kill this process; an earlier end shows as another parent."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def _loop_factory() -> type[asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.SelectorEventLoop
    return uvloop.Loop


async def serve(link: socket.socket, doors: list[socket.socket]) -> None:
    """Serve on these sockets until the kernel says so, or nobody comes."""
    link.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=link, limit=1 << 20)
    async with asyncio.timeout(SETUP_S):
        setup = msgspec.json.decode(await reader.readline(), type=Setup)
    office = Office(setup)
    server = Server(office)
    tasks = [
        asyncio.create_task(_beat(writer, server)),
        asyncio.create_task(_listen(reader, server)),
        asyncio.create_task(_rest(server, setup.idle)),
    ]
    try:
        await server.serve(doors)
    finally:
        for task in tasks:
            task.cancel()
        await office.close()
        writer.close()


class Server(uvicorn.Server):
    """uvicorn's server, on sockets that it inherits, without handlers of signals."""

    def __init__(self, office: Office) -> None:
        setup = office.setup
        Connection.request_timeout = setup.request_timeout
        Connection.send_timeout = setup.send_timeout
        config = uvicorn.Config(
            make(office),
            http=Connection,
            ws="none",
            lifespan="on",
            loop="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            limit_concurrency=setup.max_connections,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=LEAVE_S,
        )
        super().__init__(config)
        self.serving = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve, and say so."""
        await super().startup(sockets)
        self.serving.set()

    @property
    def idle(self) -> bool:
        """Whether nobody is connected."""
        return not self.server_state.connections and not self.server_state.tasks


async def _beat(writer: asyncio.StreamWriter, server: Server) -> None:
    """Give signs of life, the first one once it serves."""
    await server.serving.wait()
    while True:
        writer.write(b"beat\n")
        await writer.drain()
        await asyncio.sleep(BEAT_S)


async def _listen(reader: asyncio.StreamReader, server: Server) -> None:
    """Leave when told to, or when the kernel has gone."""
    await reader.readline()
    server.should_exit = True


async def _rest(server: Server, seconds: float) -> None:
    """Leave when nobody was there for a while: the next one is served by a new process."""
    quiet = 0.0
    pause = max(min(seconds / 4, 5.0), 0.05)
    while quiet <= seconds:
        await asyncio.sleep(pause)
        quiet = quiet + pause if server.idle else 0.0
    server.should_exit = True


if __name__ == "__main__":
    sys.exit(main())
