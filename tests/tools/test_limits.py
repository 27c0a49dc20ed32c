"""When calls may run: rates, numbers, exclusive resources, turns, cancelling, and what shows it."""

from __future__ import annotations

import contextlib
import errno
import time

import psutil

from aiosd.abi.accounts import GetUsage
from aiosd.abi.process import GetStatus, ResumeAgent, SetPriority, Status, SuspendAgent
from aiosd.abi.system import Cancel, Ping
from aiosd.abi.tools import DescribeTool, ExecuteTool
from tests.daemon import PATIENCE, Client, answer
from tests.system.parties import audit
from tests.tools.conftest import Bench

CALLERS = 64


def test_a_rate_holds_whoever_asks_how_often(bench: Bench) -> None:
    clients = [bench.daemon.connect() for _ in range(CALLERS)]
    for client in clients:
        for _ in range(2):
            client.send(ExecuteTool("rated"))
    numbers = [client.read().errno for client in clients for _ in range(2)]
    for client in clients:
        client.close()
    assert (numbers.count(0), numbers.count(errno.EAGAIN)) == (5, 2 * CALLERS - 5)


def test_a_refusal_says_when_to_come_back(bench: Bench, agent: Client) -> None:
    for _ in range(5):
        agent.call(ExecuteTool("rated"))  # another agent has a rate of its own
    agent.send(ExecuteTool("rated"))
    reply = agent.read()
    assert reply.errno == errno.EAGAIN
    assert b"0.001 calls per second are its limit (limits.rate); ask again in" in bytes(reply.body)


def status(client: Client, aid: int) -> Status:
    found = client.call(GetStatus(aid))
    assert isinstance(found, Status)
    return found


def queued(client: Client, name: str, wanted: int) -> None:
    """Return when so many calls of a tool wait."""
    until = time.monotonic() + PATIENCE
    while client.call(DescribeTool(name)).queued != wanted:
        assert time.monotonic() < until


def test_while_it_runs_its_agent_sleeps_on_it(bench: Bench, agent: Client) -> None:
    with bench.daemon.connect() as person:
        agent.send(ExecuteTool("gated", {"a": 1}))
        bench.begun()
        found = status(person, bench.aid(agent))
        assert (found.state, found.waiting) == ("S", "tool:gated")
        assert person.call(DescribeTool("gated")).running == 1
        bench.release()
        assert answer(agent.read())["value"] == {"a": 1}
        assert status(person, bench.aid(agent)).waiting == "program"


def test_what_is_exclusive_goes_to_the_most_urgent(bench: Bench) -> None:
    nices = {"first": 0, "patient": 10, "usual": 0, "urgent": -5}
    with bench.daemon.connect() as person:
        clients = {name: bench.agent(name) for name in nices}
        for number, (name, nice) in enumerate(nices.items()):
            person.call(SetPriority(bench.aid(clients[name]), nice))
            clients[name].send(ExecuteTool("lone", {"a": number}))
            if number:
                queued(person, "lone", number)
            else:
                bench.begun()
        bench.release()
        for name in ("urgent", "usual", "patient"):
            bench.begun()
            last = {"urgent": "first", "usual": "urgent", "patient": "usual"}[name]
            assert answer(clients[last].read())["value"]["a"] == list(nices).index(last)
            bench.release()
        assert answer(clients["patient"].read())["waiting_s"] > 0
        for client in clients.values():
            client.close()


def test_a_call_that_waits_can_give_up_and_be_cancelled(bench: Bench, agent: Client) -> None:
    with bench.daemon.connect() as person:
        first = agent.send(ExecuteTool("single", {"a": 1}))
        pid = bench.begun()
        agent.send(ExecuteTool("single", {"a": 2}, timeout=0.05))
        late = agent.read()
        assert late.errno == errno.ETIMEDOUT and b"it did not run" in bytes(late.body)
        second = agent.send(ExecuteTool("single", {"a": 3}))
        queued(person, "single", 1)
        process = psutil.Process(pid)
        for wanted in (second, first):
            agent.send(Cancel(wanted))
            replies = {reply.id: reply.errno for reply in (agent.read(), agent.read())}
            assert replies[wanted] == errno.ECANCELED
        process.wait(PATIENCE)
        assert person.call(DescribeTool("single")).running == 0
        assert agent.call(Ping(b"x")).payload == b"x"


def test_the_time_of_a_suspended_agent_does_not_count(bench: Bench, agent: Client) -> None:
    with bench.daemon.connect() as person:
        aid = bench.aid(agent)
        person.call(SuspendAgent(aid))
        agent.send(ExecuteTool("gated", {"a": 1}, timeout=0.001))
        pid = bench.begun()  # it waits now, and took longer than that to start
        assert status(person, aid).state == "T"
        assert person.call(DescribeTool("gated")).running == 1
        person.call(ResumeAgent(aid))
        late = agent.read()
        assert late.errno == errno.ETIMEDOUT and b"no result within 0.001 s" in bytes(late.body)
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).wait(PATIENCE)


def test_calls_are_on_record_and_counted(bench: Bench) -> None:
    with bench.daemon.connect() as person, bench.agent("recorded") as client:
        aid = bench.aid(client)
        client.call(ExecuteTool("echo", {"a": 1, "password": "open sesame", "b": "hush-hush"}))
        client.call(ExecuteTool("secret", {"x": "hush-hush"}))
        client.send(ExecuteTool("fail"))
        assert client.read().errno == errno.EREMOTEIO
        begun = audit(person, kind="tool.call", aid=aid)
        assert [record.data["tool"] for record in begun] == ["echo", "secret", "fail"]
        assert begun[0].data["arguments"] == ('{"a":1,"b":"hush-hush","password":"[redacted]"}')
        assert begun[1].data["arguments"] == '{"x":"[secret]"}'
        ended = audit(person, kind="tool.end", aid=aid)
        assert [record.data["call"] for record in ended] == [r.data["call"] for r in begun]
        assert len(ended[0].data["digest"]) == 64 and ended[0].data["exit"] == 0
        assert ended[2].data["errno"] == "EREMOTEIO" and ended[2].data["seconds"] > 0
        rows = {row.tool: row.requests for row in client.call(GetUsage(by="tool"))}
        assert rows == {"echo": 1, "secret": 1, "fail": 1}
