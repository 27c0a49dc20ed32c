"""Messages through the daemon's door: who may send, order, limits, topics, SIGKILL."""

from __future__ import annotations

import errno
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiosd.abi import LEVEL
from aiosd.abi.call import Call
from aiosd.abi.messages import Message, Publish, RecvMessage, SendMessage, Subscribe
from aiosd.abi.process import Fork, GetStatus, Kill, RegisterAgent
from aiosd.abi.system import Cancel, Hello
from tests.daemon import Client, Daemon, answer
from tests.system.agents import hello, until, wait
from tests.system.parties import audit, child, grant, register


def refused(client: Client, args: Call, number: int) -> None:
    with pytest.raises(OSError, match=": ") as caught:
        client.call(args)
    assert caught.value.errno == number, caught.value


def received(client: Client, limit: int = 100) -> list[object]:
    return [message.body for message in client.call(RecvMessage(limit, timeout=0.0))]


def test_messages_come_in_order_and_once(daemon: Daemon) -> None:
    owner, (one, a) = daemon.connect(), register(daemon, "one")
    young, y = child(daemon, one, a)
    for n in range(5):
        young.call(SendMessage(a, {"n": n}))  # a child may write to its parent
    owner.call(SendMessage(a, "from a person"))
    first = one.call(RecvMessage(2))
    assert [(m.sender, m.topic, m.body["n"]) for m in first] == [(y, "", 0), (y, "", 1)]
    (person,) = one.call(RecvMessage(100))[3:]
    assert (person.sender, person.uid, person.body) == (0, owner.welcome.uid, "from a person")
    assert received(one) == []
    refused(one, RecvMessage(timeout=0.05), errno.ETIMEDOUT)
    waiting = one.send(RecvMessage())
    until(lambda: owner.call(GetStatus(a)).waiting == "message", "it waits")
    young.call(SendMessage(a, b"at last"))
    reply = one.read()
    assert reply.id == waiting
    assert answer(reply, list[Message])[0].body == b"at last"
    refused(owner, RecvMessage(), errno.ESRCH)
    for client in (owner, one, young):
        client.close()


def test_strangers_are_not_written_to(daemon: Daemon) -> None:
    owner, (one, a), (two, b) = daemon.connect(), register(daemon, "one"), register(daemon, "two")
    young, y = child(daemon, two, b)
    for aid in (b, y):
        refused(one, SendMessage(aid, "spam"), errno.EPERM)
    grant(owner, f"agent:{a}", "message", f"agent:{b}")
    one.call(SendMessage(b, "hello"))
    assert received(two) == ["hello"]
    refused(two, SendMessage(a, "not back"), errno.EPERM)
    refused(one, SendMessage(99999, "nobody"), errno.ESRCH)
    refused(one, SendMessage(b, b"x" * (64 << 10)), errno.EINVAL)
    denied = audit(owner, kind="access.deny")
    assert [(r.aid, r.data["target"]) for r in denied] == [(a, b), (a, y), (b, a)]
    for client in (owner, one, two, young):
        client.close()


@pytest.fixture
def small(state_dir: Path, runtime_dir: Path, kv_dir: Path) -> Iterator[Daemon]:
    settings = "[messages]\nmax_messages = 8\n"
    with Daemon(state_dir, runtime_dir, kv_dir, config=settings) as daemon:
        yield daemon


def test_a_mailbox_is_bounded(small: Daemon) -> None:
    owner, (one, a) = small.connect(), register(small, "one")
    young, _ = child(small, one, a)
    for n in range(4):
        young.call(SendMessage(a, n))
    refused(young, SendMessage(a, "more than half"), errno.ENOBUFS)
    for n in range(4):
        owner.call(SendMessage(a, n))
    refused(owner, SendMessage(a, "full"), errno.ENOBUFS)
    assert len(received(one, 1)) == 1
    young.call(SendMessage(a, "room again"))
    for client in (owner, one, young):
        client.close()


def test_a_topic_reaches_those_who_may_be_written_to(daemon: Daemon) -> None:
    owner, (one, a) = daemon.connect(), register(daemon, "one")
    young, _ = child(daemon, one, a)
    out, o = register(daemon, "out")
    streams = [(client, client.send(Subscribe("news/now"))) for client in (young, out)]
    until(lambda: one.call(Publish("news/now", "x")).receivers == 1, "the child subscribes")
    one.call(Publish("other", "not this"))
    sent = one.call(Publish("news/now", {"last": True}))
    assert sent.receivers == 1
    young_client, id = streams[0]
    bodies: list[object] = []
    while {"last": True} not in bodies:
        reply = young_client.read()
        assert (reply.id, reply.more) == (id, True)
        message = answer(reply, Message)
        assert (message.sender, message.topic) == (a, "news/now")
        bodies.append(message.body)
    assert owner.call(Publish("news/now", "to all")).receivers == 2
    assert answer(out.read(), Message).body == "to all"  # the stranger got only this
    out.send(Cancel(streams[1][1]))
    assert {out.read().errno, out.read().errno} == {0, errno.ECANCELED}
    until(lambda: owner.call(Publish("news/now", "y")).receivers == 1, "it is no subscriber")
    assert [r.data["target"] for r in audit(owner, kind="access.deny") if r.aid == a] == [o]
    for client in (owner, one, young, out):
        client.close()


def test_what_was_acknowledged_survives_kills(daemon: Daemon) -> None:
    """Senders and a receiver at work while the kernel is killed, again and again."""
    owner = daemon.connect()
    first, a = register(daemon, "one")
    started = [first.call(Fork(a)) for _ in range(3)]
    receiver, senders = started[0], started[1:]
    for each in senders:
        grant(owner, f"agent:{each.aid}", "message", f"agent:{receiver.aid}")
    acknowledged: set[str] = set()
    tried: set[str] = set()
    got: list[str] = []
    owner.close()
    for round in range(4):
        with hello(daemon, receiver.credential) as mine:
            got += [str(body) for body in received(mine)]
        threads = []
        for i, each in enumerate(senders):
            args = (daemon, each.credential, f"{round}.{i}", tried, acknowledged)
            threads.append(threading.Thread(target=_send, args=args))
        for thread in threads:
            thread.start()
        until(lambda round=round: len(acknowledged) >= 12 * (round + 1), "messages flow")  # type: ignore[misc]
        daemon.stop(signal.SIGKILL)
        for thread in threads:
            thread.join()
        daemon.start()
    with hello(daemon, receiver.credential) as mine, daemon.connect() as owner:
        while more := received(mine):
            got += [str(body) for body in more]
        assert len(got) == len(set(got))
        assert acknowledged <= set(got) <= tried
        verify(owner)
    first.close()


def _send(
    daemon: Daemon, credential: str, prefix: str, tried: set[str], acknowledged: set[str]
) -> None:
    try:
        with Client(daemon.socket, hello=False) as client:
            aid = client.call(Hello(level=LEVEL, credential=credential)).aid
            for n in range(60):
                tried.add(f"{prefix}.{n}")
                client.call(SendMessage(aid - 1 - int(prefix[-1]), f"{prefix}.{n}"))
                acknowledged.add(f"{prefix}.{n}")
    except (OSError, EOFError):
        return  # the kernel was killed


def verify(owner: Client) -> None:
    """Prove the audit chain."""
    from aiosd.abi.chain import Verifier

    verifier = Verifier()
    for r in audit(owner):
        assert verifier.feed(r.id, r.t, r.uid, r.aid, r.kind, r.data, r.digest), verifier.broken


def test_one_key_one_message(daemon: Daemon) -> None:
    parent = daemon.connect()
    a = parent.call(RegisterAgent("one")).aid
    born = parent.call(Fork(a))
    with hello(daemon, born.credential) as young:
        sent = young.call(SendMessage(born.aid, "once", key="k"))
        assert young.call(SendMessage(born.aid, "once", key="k")) == sent
        taken = young.call(RecvMessage(10, key="r"))
    daemon.stop(signal.SIGKILL)
    parent.close()
    daemon.start()
    with hello(daemon, born.credential) as young, daemon.connect() as owner:
        assert young.call(SendMessage(born.aid, "once", key="k")) == sent
        assert young.call(RecvMessage(10, key="r")) == taken
        assert received(young) == []
        young.call(SendMessage(born.aid, "unread"))
        owner.call(Kill(born.aid, "KILL"))
        wait(owner, born.aid)
        refused(owner, SendMessage(born.aid, "late"), errno.ESRCH)


def test_a_subscription_outlives_its_stream(daemon: Daemon) -> None:
    parent = daemon.connect()
    a = parent.call(RegisterAgent("one")).aid
    born = parent.call(Fork(a))
    with hello(daemon, born.credential) as young:
        young.send(Subscribe("t"))
        until(lambda: parent.call(Publish("t", 0)).receivers == 1, "it subscribes")
    assert parent.call(Publish("t", 1)).receivers == 1
    daemon.stop(signal.SIGKILL)
    parent.close()
    daemon.start()
    with hello(daemon, born.credential) as young, daemon.connect() as owner:
        owner.call(Publish("t", 2))
        young.send(Subscribe("t"))
        bodies: list[object] = []
        while 2 not in bodies:
            bodies.append(answer(young.read(), Message).body)
        assert bodies[-2:] == [1, 2]
        with hello(daemon, born.credential) as other:
            other.send(Subscribe("t"))  # the last one takes over
            assert young.read().errno == errno.ECANCELED
            owner.call(Publish("t", 3))
            while answer(other.read(), Message).body != 3:
                pass
