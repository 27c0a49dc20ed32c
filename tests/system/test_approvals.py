"""Capabilities that are asked for: the request waits, somebody answers, silence denies."""

from __future__ import annotations

import errno
import signal
from pathlib import Path

import pytest

from aiosd.abi.accounts import Approve, ListPending, Pending, Revoke
from aiosd.abi.call import Call
from aiosd.abi.process import Fork, GetStatus, Kill, RegisterAgent, Spawn, SuspendAgent, Wait
from aiosd.abi.system import Cancel, Ping
from tests.daemon import Client, Daemon, answer
from tests.system.agents import hello, until
from tests.system.parties import audit, child, grant, register


def asked(approver: Client, count: int = 1) -> list[Pending]:
    """Return the open questions, once there are so many."""
    found: list[Pending] = []

    def look() -> bool:
        found[:] = approver.call(ListPending())
        return len(found) == count

    until(look, f"{count} requests wait")
    return found


def outcome(client: Client, id: int) -> int:
    reply = client.read()
    assert reply.id == id
    return reply.errno


def test_a_request_waits_until_it_is_answered(daemon: Daemon) -> None:
    owner, (one, a), (two, b) = daemon.connect(), register(daemon, "one"), register(daemon, "two")
    given = grant(owner, f"agent:{a}", "signal", f"agent:{b}", "ask")
    waiting = one.send(SuspendAgent(b))
    [question] = asked(owner)
    assert (question.aid, question.capability, question.object) == (a, "signal", f"agent:{b}")
    assert question.call == "suspend_agent"
    assert owner.call(GetStatus(a)).waiting == "approval"
    assert owner.call(GetStatus(b)).state == "S"
    for nobody in (one, two):
        with pytest.raises(PermissionError):
            daemon_call(daemon, nobody, Approve(question.id, True))
    owner.call(Approve(question.id, True))
    assert outcome(one, waiting) == 0
    assert owner.call(GetStatus(b)).state == "T"
    waiting = one.send(Kill(b, "CONT"))  # one approval, one request
    owner.call(Approve(asked(owner)[0].id, False))
    assert outcome(one, waiting) == errno.EPERM
    assert owner.call(GetStatus(b)).state == "T"
    with pytest.raises(FileNotFoundError):
        owner.call(Approve(question.id, True))
    waiting = one.send(Kill(b, "CONT"))
    owner_sees = asked(owner)
    owner.call(Revoke(given.id))
    owner.call(Approve(owner_sees[0].id, True))
    assert outcome(one, waiting) == errno.EPERM  # what was approved must still be permitted
    kinds = [record.kind for record in audit(owner, kind="approval.")]
    assert kinds == ["approval.ask", "approval.allowed", "approval.ask", "approval.denied",
                     "approval.ask", "approval.allowed"]  # fmt: skip
    for client in (owner, one, two):
        client.close()


def daemon_call(daemon: Daemon, client: Client, args: Call) -> None:
    """Make a call on a connection on which an answer may come in between."""
    wanted = client.send(args)
    while (reply := client.read()).id != wanted:
        pass
    answer(reply)


def test_silence_denies(state_dir: Path, runtime_dir: Path, kv_dir: Path) -> None:
    config = '[access]\nask = ["spawn"]\nask_timeout = 2.0\nmax_pending = 8\n'
    with Daemon(state_dir, runtime_dir, kv_dir, config=config) as daemon:
        owner, (one, a) = daemon.connect(), register(daemon, "one")
        young, y = child(daemon, one, a)
        waiting = one.send(Spawn(["true"]))
        again = one.send(Spawn(["true"]))  # an eighth of 8 is one
        reply = one.read()
        assert (reply.id, reply.errno) == (again, errno.EAGAIN)
        assert asked(owner)[0].capability == "spawn"
        one.send(Ping())
        one.read()  # nothing else is held up
        assert outcome(one, waiting) == errno.EPERM
        assert owner.call(ListPending()) == []
        assert audit(owner, kind="approval.timeout")
        allowed = grant(owner, f"agent:{a}", "spawn", f"agent:{a}")
        one.call(Wait(one.call(Spawn(["true"])).aid))  # a grant needs no approval
        assert outcome(young, young.send(Spawn(["true"]))) == errno.EPERM  # it is not the child's
        grant(owner, f"agent:{y}", "spawn", f"agent:{y}")
        young.call(Wait(young.call(Spawn(["true"])).aid))
        owner.call(Revoke(allowed.id))
        assert outcome(young, young.send(Spawn(["true"]))) == errno.EPERM
        owner.call(Wait(owner.call(Spawn(["true"])).aid))  # a person is never asked about his own
        for client in (owner, one, young):
            client.close()


def test_a_question_outlives_its_kernel(daemon: Daemon) -> None:
    owner = daemon.connect()
    parent = daemon.connect()
    a = parent.call(RegisterAgent("one")).aid
    born = parent.call(Fork(a))
    two, b = register(daemon, "two")
    for aid in (a, born.aid):
        grant(owner, f"agent:{aid}", "signal", f"agent:{b}", "ask")
    young = hello(daemon, born.credential)
    young.send(SuspendAgent(b))
    [before] = asked(owner)
    daemon.stop(signal.SIGKILL)
    for client in (owner, parent, two, young):
        client.close()
    daemon.start()
    with daemon.connect() as owner, hello(daemon, born.credential) as young:
        assert asked(owner) == [before]
        owner.call(Approve(before.id, True))
        daemon.stop(signal.SIGKILL)
        daemon.start()
    with daemon.connect() as owner, hello(daemon, born.credential) as young:
        assert owner.call(ListPending()) == []
        young.call(SuspendAgent(b))  # the answer was waiting for it
        waiting = young.send(Kill(b, "CONT"))
        [question] = asked(owner)
        young.send(Cancel(waiting))
        assert {young.read().errno, young.read().errno} == {0, errno.ECANCELED}
        assert owner.call(ListPending()) == []
        with pytest.raises(FileNotFoundError):
            owner.call(Approve(question.id, True))
