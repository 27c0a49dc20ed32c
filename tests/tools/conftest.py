"""A real daemon with tools of this directory: a manifest and a small program each."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aiosd.abi.process import RegisterAgent
from tests.conftest import World
from tests.daemon import ROOT, Client, Daemon

CONFIG = """
[tools]
path = ["{path}"]
packages = []
kill_timeout = "500ms"
workspace_limit = "1MiB"
settings = {{settled = {{PLACE = "here"}}}}
{more}
"""


class Bench:
    """A daemon and the directory of its manifests. add: makes a tool of a shell script."""

    def __init__(self, world: World, more: str = "") -> None:
        self._aids: dict[Client, int] = {}
        self.path = world.make(must_end_empty=False)
        state_dir = world.make(must_end_empty=False)
        world.state_dirs.append(state_dir)
        self.daemon = Daemon(
            state_dir,
            world.make(must_end_empty=True),
            world.make(must_end_empty=True),
            config=CONFIG.format(path=self.path, more=more),
        )

        self.daemon.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'sdk'}"

    def add(self, name: str, script: str, **fields: Any) -> None:
        """Declare a tool whose program is a script; without sandbox unless told otherwise."""
        program = self.path / f"{name}.sh"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        known = {"name": name, "command": [f"./{name}.sh"], "isolation": "none", **fields}
        (self.path / f"{name}.toml").write_text(toml(known))

    def pipes(self) -> None:
        """Make what gated tools say that they have begun with, and wait for."""
        for name in ("begun", "gate"):
            os.mkfifo(self.path / name)

    @property
    def gated(self) -> str:
        """The script of a tool that waits for `release`."""
        return f"read a; echo $$ > {self.path}/begun; read x < {self.path}/gate; echo $a"

    def begun(self) -> int:
        """Return the pid of the gated tool that begins next."""
        return int((self.path / "begun").read_text())

    def release(self) -> None:
        """Let a gated tool that has begun end."""
        (self.path / "gate").write_text("go\n")

    def agent(self, name: str = "caller") -> Client:
        """Return a connection that is a new agent."""
        client = self.daemon.connect()
        self._aids[client] = client.call(RegisterAgent(name=name)).aid
        return client

    def aid(self, client: Client) -> int:
        """Return which agent a connection is."""
        return self._aids[client]


def toml(fields: dict[str, Any]) -> str:
    """Return fields as TOML, tables inline."""
    return "".join(f"{name} = {_inline(value)}\n" for name, value in fields.items())


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        inner = ", ".join(f"{json.dumps(name)} = {_inline(each)}" for name, each in value.items())
        return f"{{{inner}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_inline, value))}]"
    return json.dumps(value)


@pytest.fixture(scope="module")
def bench(world: World) -> Iterator[Bench]:
    """Give a daemon with the tools that most tests call."""
    bench = Bench(world)
    numbers = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    bench.add("echo", "cat", input=numbers, output=numbers, description="Say it again.")
    bench.add("text", "cat >/dev/null; echo words; echo aside >&2", kind="text")
    bench.add("liar", 'cat >/dev/null; echo \'{"a": "x"}\'', output=numbers)
    bench.add("broken", "cat >/dev/null; echo nonsense")
    bench.add("crash", "kill -SEGV $$")
    bench.add("fail", "echo why >&2; exit 3")
    bench.add("hang", "trap '' TERM; sleep 600 & sleep 600", limits={"time": 0.3})
    bench.add("flood", "exec yes", limits={"output": 65536})
    bench.add("deaf", "exec 0<&-; echo true")
    bench.add("file", "cat >/dev/null; echo x > left; ln -s /etc link; echo null")
    bench.add("fill", "while :; do i=$((i+1)); echo x > many$i; mkdir in$i; done")
    bench.add("settled", 'echo "\\"$PLACE\\""')
    bench.add(
        "secret", 'echo "\\"$API_KEY\\""; echo "$API_KEY" >&2', needs={"secrets": ["API_KEY"]}
    )
    bench.add("needy", "echo 1", needs={"secrets": ["NOWHERE"]})
    bench.add("rated", "echo 1", limits={"rate": 0.001, "burst": 5})
    bench.pipes()
    for name, fields in {"gated": {}, "lone": {"exclusive": "printer"}}.items():
        bench.add(name, bench.gated, limits={"time": 120}, **fields)
    bench.add("single", bench.gated, limits={"time": 120, "concurrent": 1})
    (bench.path / "wrong.toml").write_text('name = "wrong"\nlimits = {tim = 3}\n')
    secrets = bench.daemon.state_dir / "secrets.toml"
    secrets.write_text('API_KEY = "hush-hush"\n')
    secrets.chmod(0o600)
    assert os.path.isdir(bench.path)
    with bench.daemon:
        yield bench


@pytest.fixture
def agent(bench: Bench) -> Iterator[Client]:
    """Give a registered agent."""
    with bench.agent() as client:
        yield client


@pytest.fixture
def manifests(bench: Bench) -> Path:
    """Give the directory of manifests."""
    return bench.path
