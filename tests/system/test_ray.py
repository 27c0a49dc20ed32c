"""A core on a Ray cluster: sixteen agents on a node that dies say what they say alone.

The cluster is real, of two nodes on this machine, and is started once for all of these tests.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aiosd.abi.cores import AddCore, Core, ListCores, RemoveCore
from aiosd.abi.inference import Generation, LlmGenerate
from tests.daemon import Client, Daemon
from tests.daemon import answer as decoded
from tests.system.agents import until
from tests.system.parties import register

pytest.importorskip("ray", reason="the extra ray is not installed")

AGENTS = 16
SLOTS = 4  # so that three of four contexts have left their slots before they go on
PROMPTS = [f"agent {n} goes to sea. " * (2 + n) for n in range(AGENTS - 1)]
LONG = "and then the rain began. " * 300  # its KV goes through the object store in any case
OPTIONS = {"eog": 0.0, "step_ms": 1.0}
PATIENCE = 240.0  # seconds: to lose a node and find another takes five on a quiet machine


class Nodes:
    """The cluster's process."""

    def __init__(self, place: str) -> None:
        with (Path(place) / "stderr").open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.cores.raycluster", place],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
            )
        self.address = self._line()

    def lose_one(self) -> None:
        """Have the node die that the core is on."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self._line() == "dead"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        assert self.process.wait(PATIENCE) == 0


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as place:
        nodes = Nodes(place)
        yield nodes
        nodes.close()


def on_ray(nodes: Nodes, query: str = "") -> AddCore:
    more: dict[str, Any] = {
        "runner": "fake",
        "fake": OPTIONS,
        "num_cpus": 1,
        "resources": {"core": 1},
    }
    more |= {"wait": PATIENCE, "silence": PATIENCE / 4}
    url = f"ray://{nodes.address}{query}"
    return AddCore(url, "far", n_ctx=20000, slots=SLOTS, options=more)


def row(daemon: Daemon, name: str) -> Core:
    with daemon.connect() as client:
        found: list[Core] = client.call(ListCores())
    return next(core for core in found if core.name == name)


def ask(prompt: str, core: str, context: int = 0) -> LlmGenerate:
    return LlmGenerate(prompt, max_tokens=60, core=core, context=context)


def alone(daemon: Daemon) -> list[list[str]]:
    """What each of the agents says in two turns on a core beside the kernel, with no one else."""
    said = []
    client, _ = register(daemon, "alone")
    with client, daemon.connect() as operator:
        operator.call(AddCore("fake", "near", "fake", n_ctx=20000, slots=1, options=OPTIONS))
        for prompt in [*PROMPTS, LONG]:
            one: Generation = client.call(ask(prompt, "near"))
            two: Generation = client.call(ask("And then?", "near", one.context))
            said.append([one.text, two.text])
        operator.call(RemoveCore("near"))
    return said


def read(client: Client) -> Generation:
    reply: Generation = decoded(client.read(), Generation)
    return reply


def test_a_node_dies_under_sixteen_agents(daemon: Daemon, nodes: Nodes) -> None:
    solo = alone(daemon)
    clients = [register(daemon, f"agent-{n}")[0] for n in range(AGENTS)]
    operator = daemon.connect()
    for client in [operator, *clients]:
        client.sock.settimeout(PATIENCE)
    added: Core = operator.call(on_ray(nodes))
    assert (added.driver, added.state, added.exact) == ("ray", "ready", "yes")
    for client, prompt in zip(clients, [*PROMPTS, LONG], strict=True):
        client.send(ask(prompt, "far"))
    first = [read(client) for client in clients]
    for client, one in zip(clients, first, strict=True):
        client.send(ask("And then?", "far", one.context))
    nodes.lose_one()
    second = [read(client) for client in clients]
    assert [[one.text, two.text] for one, two in zip(first, second, strict=True)] == solo
    until(lambda: row(daemon, "far").restarts >= 1, "the core is on the other node")
    until(lambda: row(daemon, "far").state == "ready", "it is ready")
    operator.call(RemoveCore("far"))
    for client in [operator, *clients]:
        client.close()


@pytest.mark.parametrize(
    ("query", "why"),
    [("?num_gpus=4", "no node of the Ray cluster at .* has .*4 GPU"), ("?speed=4", "speed")],
)
def test_what_the_cluster_does_not_have(daemon: Daemon, nodes: Nodes, query: str, why: str) -> None:
    with daemon.connect() as client, pytest.raises(OSError, match=why):
        client.call(on_ray(nodes, query))


def test_no_cluster_is_there(daemon: Daemon) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        address: Any = nobody.getsockname()
        with daemon.connect() as client, pytest.raises(OSError, match="ray start --address="):
            client.call(AddCore(f"ray://127.0.0.1:{address[1]}"))
