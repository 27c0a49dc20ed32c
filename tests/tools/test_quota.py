"""Quotas of calls of tools: whom they stop, and what a kill leaves of them."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator

import pytest

from aiosd.abi.accounts import GetQuota, SetQuota
from aiosd.abi.tools import ExecuteTool
from tests.conftest import World
from tests.daemon import Client
from tests.tools.conftest import Bench


@pytest.fixture
def bench(world: World) -> Iterator[Bench]:
    """Give a daemon with one tool."""
    bench = Bench(world)
    bench.add("text", "cat >/dev/null; echo words", kind="text")
    with bench.daemon:
        yield bench


def _limit(bench: Bench, subject: str, most: int, period: float = 0.0) -> None:
    with bench.daemon.connect() as person:
        person.call(SetQuota(subject, "tool_calls", most, period=period))


def _refused(client: Client) -> str:
    with pytest.raises(OSError, match="tool_calls") as no:
        client.call(ExecuteTool(name="text"))
    assert no.value.errno == errno.EDQUOT
    return str(no.value)


def test_calls_are_counted_for_the_agent_its_uid_and_after_a_kill(bench: Bench) -> None:
    with bench.agent("one") as one, bench.agent("other") as other:
        aid = bench.aid(one)
        _limit(bench, f"agent:{aid}", 3, period=86400.0)
        assert one.call(ExecuteTool(name="text")).value == "words"
        with pytest.raises(FileNotFoundError):
            one.call(ExecuteTool(name="nothing"))
        [row] = one.call(GetQuota())
        assert (row.resource, row.used, row.limit) == ("tool_calls", 2.0, 3.0)
        one.call(ExecuteTool(name="text"))
        told = _refused(one)
        assert "the quota of agent:" in told and "it resets at" in told
        other.call(ExecuteTool(name="text"))

        bench.daemon.stop(signal.SIGKILL)
    bench.daemon.start()
    with bench.daemon.connect() as person:
        [row] = person.call(GetQuota(f"agent:{aid}"))
        assert row.used == 3.0
        uid = f"uid:{os.geteuid()}"
        person.call(SetQuota(uid, "tool_calls", 1))
        person.call(ExecuteTool(name="text"))
        _refused(person)
        person.call(SetQuota(uid, "tool_calls", 0, remove=True))
        person.call(ExecuteTool(name="text"))
