"""A daemon with MCP servers: the plain one in a sandbox where there can be one, and over HTTP."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from aiosd.abi.process import RegisterAgent
from aiosd.abi.system import Event, Watch
from aiosd.abi.tools import ListToolServers, ToolServer
from aiosd.box import Box
from tests.conftest import World
from tests.daemon import Client, Daemon, answer

HERE = Path(__file__).parent


def can_box(workspace: Path) -> str:
    """Return why this machine can't run a tool in a full sandbox, "" when it can."""
    from aiosd import sandbox

    try:
        sandbox.check(Box(argv=("true",), workspace=str(workspace)))
    except OSError as error:
        return str(error.strerror)
    return ""


class Bench:
    """A daemon with MCP servers, whose tables can be changed while it runs."""

    def __init__(self, world: World) -> None:
        state_dir = world.make(must_end_empty=False)
        world.state_dirs.append(state_dir)
        self.unboxable = can_box(state_dir)
        self.isolation = "none" if self.unboxable else "full"
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.tables = {"plain": self.stdio("plain", isolation=self.isolation), "web": self.http()}
        places = [world.make(must_end_empty=True) for _ in range(2)]
        self.daemon = Daemon(state_dir, *places, config=self._text())
        secrets = state_dir / "secrets.toml"
        secrets.write_text('KEY = "hush-hush"\n')
        secrets.chmod(0o600)

    def stdio(self, program: str, *arguments: str, **more: Any) -> dict[str, Any]:
        """Return the table of a server of this directory."""
        script = str(HERE / f"{program}.py")
        table = {"command": [sys.executable, script, *arguments], "read": [script]}
        return table | {"secrets": ["KEY"], "isolation": "none"} | more

    def http(self) -> dict[str, Any]:
        """Return the table of the server over HTTP."""
        port = self.listening.getsockname()[1]
        url = f"http://127.0.0.1:{port}/mcp"
        return {"url": url, "headers": {"X-Key": "{KEY}"}, "secrets": ["KEY"]}

    def serve_http(self) -> subprocess.Popen[bytes]:
        """Start the server over HTTP."""
        return self.serve_on(self.listening)

    def serve_on(self, listening: socket.socket) -> subprocess.Popen[bytes]:
        """Start the server over HTTP on a socket of its own."""
        fd = listening.fileno()
        return subprocess.Popen(
            [sys.executable, HERE / "plain.py", str(fd)], pass_fds=[fd], cwd=self.daemon.state_dir
        )

    @contextmanager
    def also(self, **tables: dict[str, Any]) -> Iterator[None]:
        """Have these servers too, for a while."""
        mine, self.tables = self.tables, self.tables | tables
        try:
            self.reload()
            yield
        finally:
            self.tables = mine
            self.reload()

    def reload(self) -> None:
        """Write the configuration and have it read again."""
        self.daemon.configure(self._text())
        self.daemon.send_signal(signal.SIGHUP)
        self.daemon.await_notice("READY=1")

    def _text(self) -> str:
        tables = "".join(
            f"[tools.mcp.{name}]\n"
            + "".join(f"{key} = {_toml(value)}\n" for key, value in table.items())
            for name, table in self.tables.items()
        )
        return f"[tools]\npackages = []\n{tables}"


class Place:
    """A port that is kept while no server is there: who connects then is refused."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._kept = self._bound(0)
        self.port: int = self._kept.getsockname()[1]
        self.table = {"url": f"http://127.0.0.1:{self.port}/mcp"}
        self.server = self._serve()

    def kill(self) -> None:
        """Kill the server."""
        self.server.kill()
        self.server.wait()

    def again(self) -> None:
        """Start another server."""
        self.server = self._serve()

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._kept.close()

    def _serve(self) -> subprocess.Popen[bytes]:
        with self._bound(self.port) as listening:
            listening.listen()
            return self._bench.serve_on(listening)

    def _bound(self, port: int) -> socket.socket:
        found = socket.socket()
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        found.bind(("127.0.0.1", port))
        return found


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        inner = ", ".join(f"{json.dumps(key)} = {_toml(each)}" for key, each in value.items())
        return f"{{{inner}}}"
    return json.dumps(value)


class Watcher:
    """A connection that hears what becomes of servers."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._client = daemon.connect()
        self._client.send(Watch(kinds=["tools.server"]))
        self._asker = daemon.connect()

    def until(self, name: str, state: str) -> ToolServer:
        """Return a server's status once it has a state; fails after a silent minute."""
        while (found := self.status(name)) is None or found.state != state:
            self.next()
        return found

    def next(self) -> Event:
        """Return the next event."""
        event: Event = answer(self._client.read(), Event)
        return event

    def status(self, name: str) -> ToolServer | None:
        """Return a server's status, None when there is no such."""
        return self.all().get(name)

    def all(self) -> dict[str, ToolServer]:
        """Return the status of all."""
        return {server.name: server for server in self._asker.call(ListToolServers())}

    def close(self) -> None:
        """Hear no more."""
        self._client.close()
        self._asker.close()


@pytest.fixture(scope="module")
def bench(world: World) -> Iterator[Bench]:
    """Give a daemon with the servers `plain` and `web`, both ready."""
    bench = Bench(world)
    web = bench.serve_http()
    try:
        with bench.daemon:
            watcher = Watcher(bench.daemon)
            watcher.until("plain", "ready")
            watcher.until("web", "ready")
            watcher.close()
            yield bench
    finally:
        web.kill()
        web.wait()
        bench.listening.close()


@pytest.fixture
def watcher(bench: Bench) -> Iterator[Watcher]:
    """Give one who watches servers."""
    watcher = Watcher(bench.daemon)
    yield watcher
    watcher.close()


@pytest.fixture
def agent(bench: Bench) -> Iterator[Client]:
    """Give a registered agent."""
    with bench.daemon.connect() as client:
        client.call(RegisterAgent(name="caller"))
        yield client
