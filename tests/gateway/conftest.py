"""A daemon with a fake core and its gateway, and plain HTTP to ask it with."""

from __future__ import annotations

import http.client
import json
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from aiosd.abi.process import RegisterAgent
from aiosd.abi.system import Event, Gateway, GetGateway, Watch
from tests.conftest import World
from tests.daemon import PATIENCE, Client, Daemon, answer

CORE = """
[[cores]]
name = "fake"
driver = "fake"
slots = 8
n_ctx = 8192
options = {step_ms = 1}

[memory]
embedder = "fake"
"""


@dataclass
class Answer:
    """What came over HTTP."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error that the body is."""
        told: dict[str, Any] = self.json["error"]
        return told


class Host:
    """A daemon, and its gateway's address."""

    def __init__(self, world: World, config: str = CORE) -> None:
        self.daemon = Daemon(
            world.make(must_end_empty=False),
            world.make(must_end_empty=True),
            world.make(must_end_empty=True),
            config=config,
        )

    @property
    def gateway(self) -> Gateway:
        """What the kernel says of it."""
        with self.daemon.connect() as client:
            found: Gateway = client.call(GetGateway())
        return found

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.gateway.http.rpartition(":")[2])

    def ask(
        self, path: str, key: str = "", body: Any = None, /, method: str = "", **headers: str
    ) -> Answer:
        """Ask over HTTP; underscores in names of headers stand for dashes."""
        head = {name.replace("_", "-"): value for name, value in headers.items()}
        if key:
            head["Authorization"] = f"Bearer {key}"
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method or ("GET" if data is None else "POST"), path, data, head)
            response = connection.getresponse()
            told = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, told, response.read())
        finally:
            connection.close()

    def reload(self, text: str) -> None:
        """Have the daemon take on other settings of the gateway, and wait until they hold."""
        with self.daemon.connect() as watcher:
            watcher.send(Watch(kinds=["gateway.state"]))
            self.ask("/health")  # its process runs: it has to leave
            self.daemon.configure(f"{CORE}\n[gateway]\n{text}")
            self.daemon.send_signal(signal.SIGHUP)
            while answer(watcher.read(), Event).data["state"] != "listening":
                pass

    def raw(self) -> socket.socket:
        """Return a connection without any HTTP on it yet."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)


@pytest.fixture(scope="module")
def host(world: World) -> Iterator[Host]:
    """Give a daemon with a gateway."""
    host = Host(world)
    with host.daemon:
        yield host


@dataclass
class Registered:
    """An agent, its connection and its key."""

    client: Client
    aid: int
    key: str


@pytest.fixture(scope="module")
def agent(host: Host) -> Iterator[Registered]:
    """Give a registered agent."""
    with host.daemon.connect() as client:
        started = client.call(RegisterAgent(name="caller"))
        yield Registered(client, started.aid, started.credential)
