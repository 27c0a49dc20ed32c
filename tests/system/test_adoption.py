"""Kernels come and go, agents stay: SIGKILL and SIGTERM of aiosd with agents below it."""

from __future__ import annotations

import os
import random
import signal
import sys
from contextlib import suppress

import pytest

from aiosd.abi.process import (
    Kill,
    ListAgents,
    LogEvent,
    QueryHistory,
    RegisterAgent,
    Spawn,
    Started,
    SuspendAgent,
)
from tests.daemon import Daemon, answer
from tests.system.agents import (
    FAMILY,
    SLEEPER,
    agent,
    await_end,
    await_starts,
    hello,
    log,
    processes_below,
    spawn,
    states,
    until,
    wait,
)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_agents_outlive_their_kernel(daemon: Daemon, number: int) -> None:
    with daemon.connect() as client:
        alive = spawn(client, FAMILY, name="alive", nice=4)
        stopped = spawn(client, SLEEPER)
        client.call(SuspendAgent(stopped))
        short = spawn(client, ["sh", "-c", "read line < $0; exit 5", str(pipe(daemon))])
        done = spawn(client, ["true"])
        wait(client, done)
        pids = {aid: agent(client, aid).pid for aid in (alive, stopped, short)}
        until(lambda: states(pids[stopped]) == {"stopped"}, "it stops")
    daemon.stop(number)
    with open(pipe(daemon), "w") as gate:  # now it ends, and no kernel hears of it
        gate.write("go\n")
    await_end(pids[short])
    daemon.start()
    with daemon.connect() as client:
        row = agent(client, alive)
        assert (row.pid, row.name, row.nice, row.state) == (pids[alive], "alive", 4, "S")
        status = wait(client, short)
        assert (status.code, status.reason) == (5, "exited")
        assert agent(client, done).exit_code == 0
        assert agent(client, stopped).state == "T"
        assert states(pids[stopped]) == {"stopped"}
        kinds = [h.kind for h in client.call(QueryHistory(alive))]
        assert kinds == ["agent.spawn", "agent.start", "agent.adopted"]
        assert log(daemon.connect(), alive, until="ready") == "ready\n"
        client.call(Kill(stopped, "CONT"))
        client.call(Kill(stopped, "TERM"))
        assert wait(client, stopped).signal == signal.SIGTERM
        client.call(Kill(alive, "KILL"))
        assert wait(client, alive).signal == signal.SIGKILL
        await_end(pids[alive])


def pipe(daemon: Daemon) -> str:
    """Return the path of a named pipe on which a test says go."""
    path = str(daemon.state_dir / "gate")
    with suppress(FileExistsError):
        os.mkfifo(path)
    return path


def test_credentials_and_keys_of_the_last_kernel(daemon: Daemon) -> None:
    script = (
        "import os, time; print(os.read(int(os.environ['AIOS_CREDENTIAL_FD']), 999).decode());"
        "time.sleep(600)"
    )
    with daemon.connect() as client:
        aid = spawn(client, [sys.executable, "-uc", script])
        ticket = log(daemon.connect(), aid, until="\n").strip()
        with hello(daemon, ticket) as me:
            credential = me.welcome.credential
        hello(daemon, credential).close()
        guest = daemon.connect()
        registered = guest.call(RegisterAgent("guest"))
        guest.call(LogEvent("was", {"here": True}))
    daemon.stop(signal.SIGKILL)
    guest.close()
    daemon.start()
    with pytest.raises(PermissionError):
        hello(daemon, ticket)
    with hello(daemon, credential) as me, hello(daemon, registered.credential) as guest:
        assert me.welcome.aid == aid
        assert guest.welcome.aid == registered.aid
        assert guest.call(QueryHistory(kind="agent.event"))[0].data == {"here": True}


def test_without_a_kernel_no_process_is_left(impatient: Daemon) -> None:
    daemon = impatient
    with daemon.connect() as client:
        polite = spawn(client, FAMILY)
        deaf = spawn(client, ["sh", "-c", "trap '' TERM INT HUP; setsid sleep 600 & sleep 600"])
        guest = daemon.connect()
        registered = guest.call(RegisterAgent("guest"))
    daemon.stop(signal.SIGKILL)
    guest.close()
    until(lambda: processes_below(daemon.state_dir) == [], "every agent ends")
    daemon.start()
    with daemon.connect() as client:
        assert wait(client, polite).reason == "orphaned"
        assert wait(client, deaf).reason == "orphaned"
        assert wait(client, registered.aid).reason == "lost"
        assert client.call(ListAgents()) == []


def test_every_agent_that_was_acknowledged_is_there_again(daemon: Daemon) -> None:
    random.seed(4)
    known: dict[int, int] = {}
    for _ in range(3):
        client = daemon.connect()
        for _ in range(12):
            client.send(Spawn(SLEEPER))
        for _ in range(random.randrange(10)):
            started = answer(client.read(), Started)
            known[started.aid] = started.pid
        daemon.stop(signal.SIGKILL)
        client.close()
        daemon.start()
        with daemon.connect() as client:
            await_starts(client)
            rows = {row.aid: row for row in client.call(ListAgents(all=True))}
        assert known.keys() <= rows.keys()
        assert {aid: rows[aid].pid for aid in known} == known
        assert {rows[aid].state for aid in known} <= {"S"}
