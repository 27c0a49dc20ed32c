"""Tools of the kernel's own: they see what the caller may see."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

import pytest

from aiosd.abi.process import RegisterAgent
from aiosd.abi.storage import StoWrite
from aiosd.abi.tools import DescribeTool, ExecuteTool
from tests.conftest import World
from tests.daemon import Client, Daemon

CONFIG = """
[memory]
embedder = "none"

[tools]
packages = []
"""


@pytest.fixture(scope="module")
def daemon(world: World) -> Iterator[Daemon]:
    state = world.make(must_end_empty=False)
    world.state_dirs.append(state)
    places = state, world.make(must_end_empty=True), world.make(must_end_empty=True)
    with Daemon(*places, config=CONFIG) as daemon:
        yield daemon


def agent(daemon: Daemon, **texts: str) -> Client:
    client = daemon.connect()
    client.call(RegisterAgent(name="keeper"))
    for name, text in texts.items():
        client.call(StoWrite(f"notes/{name}", text.encode(), content_type="text/plain"))
    return client


def search(client: Client, **arguments: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.call(ExecuteTool("storage_search", arguments)).value
    return found


def test_an_agent_finds_what_it_has_stored_and_nothing_else(daemon: Daemon) -> None:
    with (
        agent(daemon, sea="A whale swims.", sky="A lark sings.") as one,
        agent(daemon, sea="Another whale.") as other,
        daemon.connect() as person,
    ):
        [found] = search(one, query="whale")
        assert (found["name"], found["text"]) == ("notes/sea", "A whale swims.")
        assert [each["text"] for each in search(other, query="whale")] == ["Another whale."]
        assert search(one, query="whale", prefix="notes/sky") == search(person, query="whale") == []
        one.call(StoWrite("notes/sky", b"A whale flies.", content_type="text/plain"))
        assert len(search(one, query="whale")) == 2
        assert len(search(one, query="whale", count=1)) == 1
        with pytest.raises(OSError, match="pool") as refused:
            search(one, query="whale", pool="theirs")
        assert refused.value.errno == errno.EINVAL
        tool = one.call(DescribeTool("storage_search"))
    assert (tool.source, tool.idempotent) == ("kernel", True)
