"""Working memory: bounded, an agent's own, gone with it."""

from __future__ import annotations

import errno

import pytest

from aiosd.abi.memory import MemAlloc, MemClear, MemRead, MemWrite
from aiosd.abi.process import Exit, Fork, RegisterAgent
from aiosd.working import RECORD_COST
from tests.daemon import Client, Daemon
from tests.stores.conftest import FAKE, Start

SMALL = FAKE.replace(
    "[memory]", "[memory]\nworking_default = 1000\nworking_limit = 5000\nworking_total = 6000"
)


def code(client: Client, call: object) -> int:
    """Return the errno that a call answers."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what is compared
        client.call(call)  # type: ignore[arg-type]
    return caught.value.errno or 0


def test_records_are_written_read_and_cleared(agent: Client) -> None:
    space = agent.call(MemWrite("a", b"one"))
    assert (space.records, space.used) == (1, 1 + 3 + RECORD_COST)
    agent.call(MemWrite("a", b"three"))
    assert agent.call(MemRead("a")) == b"three"
    assert agent.call(MemWrite("b", b"")).records == 2
    assert agent.call(MemClear("a")).records == 1
    assert code(agent, MemRead("a")) == errno.ENOENT
    assert code(agent, MemClear("a")) == errno.ENOENT
    assert (agent.call(MemClear()).used, agent.call(MemClear()).records) == (0, 0)


def test_limits_hold_and_refusals_change_nothing(start: Start) -> None:
    daemon = start(SMALL)
    with daemon.connect() as one, daemon.connect() as other:
        one.call(RegisterAgent(name="one"))
        other.call(RegisterAgent(name="other"))
        one.call(MemWrite("kept", b"x" * 500))
        assert code(one, MemWrite("kept", b"x" * 1000)) == errno.ENOMEM
        assert one.call(MemRead("kept")) == b"x" * 500
        assert code(one, MemAlloc(5001)) == errno.ENOMEM  # more than one may have
        assert one.call(MemAlloc(5000)).limit == 5000
        one.call(MemWrite("kept", b"x" * 1000))
        assert code(one, MemAlloc(100)) == errno.ENOMEM  # less than it uses
        other.call(MemWrite("a", b""))
        assert code(other, MemAlloc(1001)) == errno.ENOMEM  # all of them together
        one.call(MemAlloc(2000))
        assert other.call(MemAlloc(4000)).limit == 4000


def test_what_an_agent_held_is_free_when_it_ends(start: Start) -> None:
    daemon = start(SMALL)
    for _ in range(3):  # the second would not fit beside the first
        with daemon.connect() as client:
            client.call(RegisterAgent(name="greedy"))
            client.call(MemAlloc(5000))
            client.call(MemWrite("a", b"x" * 4000))
            client.call(Exit())
            assert code(client, MemWrite("a", b"")) == errno.ESRCH


def test_it_is_the_agents_own(daemon: Daemon, agent: Client) -> None:
    agent.call(MemWrite("secret", b"x"))
    with daemon.connect() as other:
        assert code(other, MemRead("secret")) == errno.ESRCH
        other.call(RegisterAgent(name="other"))
        assert code(other, MemRead("secret")) == errno.ENOENT


def test_a_forked_child_has_a_copy(daemon: Daemon) -> None:
    with daemon.connect() as parent:
        aid = parent.call(RegisterAgent(name="parent")).aid
        parent.call(MemWrite("plan", b"first"))
        child = parent.call(Fork(aid))
        parent.call(MemWrite("plan", b"second"))
        with Client(daemon.socket, credential=child.credential) as client:
            assert client.call(MemRead("plan")) == b"first"
            client.call(MemWrite("plan", b"third"))
        assert parent.call(MemRead("plan")) == b"second"
