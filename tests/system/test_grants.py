"""Grants through the daemon's door: what they give, to whom, until when, and who may give them."""

from __future__ import annotations

import errno
import signal
import time
from collections.abc import Iterator

import pytest

from aiosd.abi.accounts import Grant, ListGrants, Revoke
from aiosd.abi.call import Call
from aiosd.abi.inference import ListContexts
from aiosd.abi.process import Fork, GetStatus, Kill, ListAgents, QueryHistory, SuspendAgent
from tests.daemon import Client, Daemon
from tests.system.agents import hello
from tests.system.parties import audit, child, grant, register, until_refused


@pytest.fixture
def owner(daemon: Daemon) -> Iterator[Client]:
    with daemon.connect() as client:
        yield client


def refused(client: Client, args: Call, number: int = errno.EPERM) -> str:
    with pytest.raises(OSError, match=": ") as caught:
        client.call(args)
    assert caught.value.errno == number, caught.value
    return str(caught.value)


def test_nothing_between_agents_until_it_is_granted(daemon: Daemon, owner: Client) -> None:
    one, a = register(daemon, "one")
    two, b = register(daemon, "two")
    for deed in (Kill(b, "0"), SuspendAgent(b), GetStatus(b), QueryHistory(b), Fork(b)):
        assert f"agent {b}" in refused(one, deed)
    assert [row.aid for row in one.call(ListAgents())] == [a]
    given = grant(owner, f"agent:{a}", "observe", f"agent:{b}")
    one.call(GetStatus(b))
    assert [row.aid for row in one.call(ListAgents())] == [a, b]
    refused(one, SuspendAgent(b))  # only what was granted
    refused(two, GetStatus(a))  # and only in that direction
    owner.call(Revoke(given.id))
    refused(one, GetStatus(b))
    for client in (one, two):
        client.close()


def test_a_grant_expires(daemon: Daemon, owner: Client) -> None:
    one, a = register(daemon, "one")
    _two, b = register(daemon, "two")
    expires = time.time() + 1.5
    grant(owner, f"agent:{a}", "observe", f"agent:{b}", expires=expires)
    assert until_refused(one, GetStatus(b), expires) == errno.EPERM
    assert owner.call(ListGrants()) == []
    assert audit(owner, kind="grant.expire")[0].data["grant"]["capability"] == "observe"
    refused(owner, Grant(f"agent:{a}", "observe", f"agent:{b}", expires=1.0), errno.EINVAL)
    for client in (one, _two):
        client.close()


def test_agents_of_a_group_have_access_to_each_other(daemon: Daemon, owner: Client) -> None:
    (one, a), (two, b), (out, c) = (register(daemon, name) for name in ("one", "two", "out"))
    young, y = child(daemon, two, b)
    for aid in (a, b):
        grant(owner, f"agent:{aid}", "member", "group:team")
    one.call(SuspendAgent(b))
    one.call(Kill(b, "CONT"))
    one.call(QueryHistory(b))
    one.call(ListContexts(b))
    young.call(GetStatus(a))  # a child belongs to its parent's groups
    one.call(GetStatus(y))
    refused(one, Fork(b))  # an identity is not shared
    for deed in (GetStatus(a), QueryHistory(b), SuspendAgent(y)):
        refused(out, deed)
    refused(one, GetStatus(c))
    grant(owner, f"agent:{c}", "observe", "group:team")
    out.call(GetStatus(y))
    refused(out, SuspendAgent(y))
    for client in (one, two, out, young):
        client.close()


def test_a_child_never_has_more_than_its_parent(daemon: Daemon, owner: Client) -> None:
    (one, a), (two, b) = register(daemon, "one"), register(daemon, "two")
    young, y = child(daemon, one, a)
    assert "never has more" in refused(owner, Grant(f"agent:{y}", "signal", f"agent:{b}"))
    assert "never has more" in refused(owner, Grant(f"agent:{y}", "member", "group:team"))
    mine = grant(owner, f"agent:{a}", "signal", f"agent:{b}")
    refused(young, SuspendAgent(b))  # its parent's grants are not its own
    grant(owner, f"agent:{y}", "signal", f"agent:{b}")
    young.call(SuspendAgent(b))
    owner.call(Revoke(mine.id))
    refused(young, SuspendAgent(b))  # nor does it keep what its parent has lost
    for client in (one, two, young):
        client.close()


def test_agents_grant_nothing(daemon: Daemon, owner: Client) -> None:
    one, a = register(daemon, "one")
    two, b = register(daemon, "two")
    refused(one, Grant(f"agent:{b}", "observe", f"agent:{a}"))
    refused(one, Grant(f"agent:{a}", "observe", f"agent:{b}"))
    refused(one, Grant(f"agent:{a}", "admin", "kernel"))
    grant(owner, f"agent:{a}", "grant", f"agent:{b}")  # unless that is granted
    given = grant(one, f"agent:{a}", "observe", f"agent:{b}")
    assert given.by == f"agent:{a}"
    refused(two, Revoke(given.id), errno.ENOENT)
    assert [g.id for g in two.call(ListGrants())] == []
    one.call(Revoke(given.id))
    refused(one, Revoke(given.id), errno.ENOENT)
    for client in (one, two):
        client.close()


@pytest.mark.parametrize(
    ("args", "number"),
    [
        (Grant("agent:99999", "observe", "uid:0"), errno.ESRCH),
        (Grant("uid:1", "fly", "uid:0"), errno.EINVAL),
        (Grant("uid:1", "observe", "kernel"), errno.EINVAL),
        (Grant("uid:1", "admin", "uid:0"), errno.EINVAL),
        (Grant("kernel", "observe", "uid:0"), errno.EINVAL),
        (Grant("user:1", "observe", "uid:0"), errno.EINVAL),
        (Grant("uid:01", "observe", "uid:0"), errno.EINVAL),
        (Grant("uid:1", "observe", "uid:0", "deny"), errno.EINVAL),
        (Grant("uid:1", "observe", "group:nobody"), errno.ENOENT),
        (Grant("uid:1", "pool.read", "uid:0"), errno.EINVAL),
        (Grant("group:a", "member", "group:b"), errno.EINVAL),
        (Grant("uid:1", "member", "group:a/../b"), errno.EINVAL),
    ],
)
def test_grants_that_mean_nothing(owner: Client, args: Grant, number: int) -> None:
    refused(owner, args, number)
    assert owner.call(ListGrants()) == []


def test_what_was_granted_is_there_after_a_kill(daemon: Daemon, owner: Client) -> None:
    old, a = register(daemon, "one")
    one = owner.call(Fork(a))
    two, b = register(daemon, "two")
    grant(owner, f"agent:{a}", "observe", f"agent:{b}")
    kept = grant(owner, f"agent:{one.aid}", "observe", f"agent:{b}")
    refused(owner, Grant(kept.subject, kept.capability, kept.object, "ask"), errno.EEXIST)
    daemon.stop(signal.SIGKILL)
    daemon.start()
    for gone in (old, two):
        gone.close()
    with daemon.connect() as client, hello(daemon, one.credential) as again:
        assert kept in client.call(ListGrants())
        again.call(GetStatus(b))
        client.call(Revoke(kept.id))
    daemon.stop(signal.SIGKILL)
    daemon.start()
    with daemon.connect() as client:
        assert kept not in client.call(ListGrants())
