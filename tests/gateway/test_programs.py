"""Programs that know nothing of AIOS, as its processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from aiosd.abi.process import ResumeAgent, SuspendAgent
from tests.gateway.conftest import Host, Registered
from tests.system.agents import agent as row
from tests.system.agents import log, spawn, until, wait

HERE = Path(__file__).parent / "programs"


def start(agent: Registered, name: str, *arguments: str) -> int:
    """Start a program as an agent."""
    return spawn(agent.client, [sys.executable, str(HERE / name), *arguments])


def output(host: Host, aid: int, until: str = "") -> str:
    """Return what a program has printed, all of it or up to a text."""
    with host.daemon.connect() as client:
        return log(client, aid, until)


def test_suspended_in_mid_stream_it_gets_the_same_text(
    host: Host, agent: Registered, tmp_path: Path
) -> None:
    (tmp_path / "open").touch()
    first = start(agent, "tools.py", str(tmp_path / "open"))
    text = output(host, first)
    assert wait(agent.client, first).code == 0
    assert text.count("add {") >= 1 and "HALFWAY" in text

    os.mkfifo(tmp_path / "gate")
    with open(tmp_path / "gate", "r+b", buffering=0) as gate:  # which waits for no reader
        second = start(agent, "tools.py", str(tmp_path / "gate"))
        output(host, second, "HALFWAY")  # it has begun to read its stream, and waits
        agent.client.call(SuspendAgent(second))
        gate.write(b"go on\n")
        until(lambda: row(agent.client, second).state == "T", "it is stopped")
        agent.client.call(ResumeAgent(second))
        assert output(host, second) == text
        ended = wait(agent.client, second)
        assert ended.code == 0
        assert ended.usage.tokens_out > 0 and ended.usage.requests == 2


@pytest.fixture(scope="module")
def frameworks(agent: Registered) -> dict[str, int]:
    """Start a program of each framework, all at once; return their aids."""
    names = ("langchain", "smolagents", "pydantic_ai")
    return {name: start(agent, f"with_{name}.py") for name in names}


@pytest.mark.parametrize("name", ["langchain", "smolagents", "pydantic_ai"])
def test_frameworks_find_their_way(
    host: Host, agent: Registered, frameworks: dict[str, int], name: str
) -> None:
    aid = frameworks[name]
    said = output(host, aid)
    ended = wait(agent.client, aid)
    assert ended.code == 0, said
    assert ended.usage.requests >= 1 and ended.usage.tokens_out > 0
