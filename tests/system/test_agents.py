"""Agents as processes, through the daemon's socket: programs, signals, rights, output."""

from __future__ import annotations

import errno
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from aiosd.abi.process import (
    AuthenticateAgent,
    Exit,
    Fork,
    GetAid,
    Kill,
    ListAgents,
    LogEvent,
    QueryHistory,
    RegisterAgent,
    ResumeAgent,
    SetAid,
    Spawn,
    SuspendAgent,
    Wait,
)
from tests.daemon import PATIENCE, Client, Daemon
from tests.system.agents import (
    FAMILY,
    SLEEPER,
    agent,
    await_end,
    group,
    hello,
    log,
    spawn,
    states,
    until,
    wait,
)

STOPPED = {psutil.STATUS_STOPPED}
SECRET = "import os; print(os.read(int(os.environ['AIOS_CREDENTIAL_FD']), 999).decode())"
PATIENT = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: exit(42)); "


def test_a_program_runs_and_its_status_is_reaped(daemon: Daemon) -> None:
    with daemon.connect() as client:
        aid = spawn(client, ["sh", "-c", "echo out; echo err >&2; exit 7"], name="short")
        assert wait(client, aid).code == 7
        row = agent(client, aid)
        assert (row.name, row.state, row.exit_code, row.exit_reason) == ("short", "X", 7, "exited")
        assert row.started >= row.created
        assert row.ended >= row.started
        assert sorted(log(client, aid).split()) == ["err", "out"]


def test_where_and_with_what_it_runs(daemon: Daemon, tmp_path: Path) -> None:
    script = tmp_path / "where.py"
    script.write_text(
        "import os, resource, sys\n"
        "print(os.getcwd(), os.environ['EXTRA'], os.environ['AIOS_AID'])\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], sys.argv[1:], sys.stdin.read())\n"
        "print(os.getsid(0) == os.getppid(), os.getpgid(0) == os.getpid())\n"
        "print(sorted(map(int, os.listdir('/proc/self/fd')))[:4])\n"
    )
    with daemon.connect() as client:
        more = {"cwd": str(tmp_path), "env": {"EXTRA": "1"}, "limits": {"nofile": 64}}
        aid = spawn(client, ["./where.py", "a", "b c"], **more)
        assert wait(client, aid).code == 0, log(client, aid)
        assert log(client, aid).splitlines() == [
            f"{tmp_path} 1 {aid}",
            "64 ['a', 'b c'] ",
            "True True",
            "[0, 1, 2, 3]",
        ]


def test_an_agent_can_import_aios(daemon: Daemon, tmp_path: Path) -> None:
    script = tmp_path / "me.py"
    script.write_text(
        "import aios\nwith aios.connect() as kernel:\n    print('I am', kernel.get_aid().aid)\n"
    )
    with daemon.connect() as client:
        aid = spawn(client, [str(script)])
        assert wait(client, aid).code == 0, log(client, aid)
        assert log(client, aid) == f"I am {aid}\n"


@pytest.mark.parametrize(
    ("argv", "number"),
    [
        (["no-such-program"], errno.ENOENT),
        (["/no/such/file"], errno.ENOENT),
        (["/etc/passwd"], errno.EACCES),
        (["{tmp}/wrong"], errno.ENOEXEC),
        (["{tmp}/orphan"], errno.ENOENT),
    ],
)
def test_what_cannot_run_is_said_and_leaves_nothing(
    daemon: Daemon, tmp_path: Path, argv: list[str], number: int
) -> None:
    for name, content in (("wrong", b"\x00not a program"), ("orphan", b"#!/no/interpreter\n")):
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o755)
    with daemon.connect() as client:
        with pytest.raises(OSError, match=r"\w") as caught:
            client.call(Spawn([word.format(tmp=tmp_path) for word in argv]))
        assert caught.value.errno == number
        assert client.call(ListAgents(all=True)) == []
        assert not list((daemon.state_dir / "agents").iterdir())


@pytest.mark.parametrize("name", ["HUP", "INT", "TERM", "KILL"])
def test_signals_that_end_it_show_in_its_status(daemon: Daemon, name: str) -> None:
    with daemon.connect() as client:
        aid = spawn(client, SLEEPER)
        client.call(Kill(aid, name.lower()))
        assert wait(client, aid).signal == getattr(signal, f"SIG{name}")
        kinds = [h.kind for h in client.call(QueryHistory(aid))]
        assert kinds == ["agent.spawn", "agent.start", "agent.signal", "agent.exit"]


@pytest.mark.parametrize("name", ["STOP", "TSTP"])
def test_stop_and_cont_act_on_the_whole_group(daemon: Daemon, name: str) -> None:
    with daemon.connect() as client:
        aid = spawn(client, FAMILY)
        log(daemon.connect(), aid, until="ready")
        pid = agent(client, aid).pid
        assert len(group(pid)) == 2
        client.call(Kill(aid, name))
        assert agent(client, aid).state == "T"
        until(lambda: states(pid) == STOPPED, "the group stops")
        client.call(Kill(aid, "CONT"))
        assert agent(client, aid).state == "S"
        until(lambda: not states(pid) & STOPPED, "the group goes on")


def test_a_stopped_agent_ends_when_it_is_continued(daemon: Daemon) -> None:
    with daemon.connect() as client:
        aid = spawn(client, SLEEPER)
        client.call(SuspendAgent(aid))
        pid = agent(client, aid).pid
        until(lambda: states(pid) == STOPPED, "it stops")
        client.call(Kill(aid, "TERM"))
        assert client.call(Wait(aid, timeout=0.0)) is None
        client.call(ResumeAgent(aid))
        assert wait(client, aid).signal == signal.SIGTERM


def test_kill_leaves_nothing_of_the_tree(daemon: Daemon) -> None:
    with daemon.connect() as client:
        aid = spawn(client, ["sh", "-c", "setsid sleep 600 & echo pid $!; wait"])
        text = log(daemon.connect(), aid, until="\n")
        client.call(SuspendAgent(aid))
        client.call(Kill(aid, "KILL"))
        assert wait(client, aid).signal == signal.SIGKILL
        await_end(int(text.split()[1]))


def test_a_program_that_handles_term_has_its_say(daemon: Daemon) -> None:
    with daemon.connect() as client:
        aid = spawn(client, [sys.executable, "-uc", PATIENT + "print('up'); time.sleep(600)"])
        log(daemon.connect(), aid, until="up")
        client.call(Kill(aid, "TERM"))
        status = wait(client, aid)
        assert (status.code, status.signal) == (42, None)


def credential(daemon: Daemon, client: Client, parent: bool = False) -> tuple[int, str]:
    """Spawn an agent that gives its one-time credential away and lives on."""
    aid = spawn(client, [sys.executable, "-uc", SECRET + "; import time; time.sleep(600)"])
    return aid, log(daemon.connect(), aid, until="\n").strip()


def test_a_one_time_credential_cannot_be_replayed(daemon: Daemon) -> None:
    with daemon.connect() as client:
        aid, ticket = credential(daemon, client)
        with hello(daemon, ticket) as me:
            assert me.welcome.aid == aid
            again = me.welcome.credential
        with pytest.raises(PermissionError) as caught:
            hello(daemon, ticket)
        assert caught.value.errno == errno.EACCES
        with hello(daemon, again) as me:
            assert me.call(GetAid()).aid == aid


def test_parents_and_owners_signal_and_strangers_get_eperm(daemon: Daemon) -> None:
    with daemon.connect() as client:
        aid, ticket = credential(daemon, client)
        sibling = spawn(client, SLEEPER)
        with hello(daemon, ticket) as me:
            child = spawn(me, SLEEPER)
            assert agent(client, child).parent == aid
            for stranger in (Kill(sibling), SuspendAgent(sibling), Wait(sibling), Fork(sibling)):
                with pytest.raises(PermissionError) as caught:
                    me.call(stranger)
                assert caught.value.errno == errno.EPERM
            me.call(Kill(child, "TERM"))
            assert wait(me, child).signal == signal.SIGTERM
            with pytest.raises(ChildProcessError):
                me.call(Wait(child))
        assert agent(client, sibling).state == "S"
        client.call(Kill(sibling, "KILL"))
        assert wait(client, sibling).signal == signal.SIGKILL


def test_a_forked_child_is_whoever_holds_its_credential(daemon: Daemon) -> None:
    with daemon.connect() as client:
        aid, ticket = credential(daemon, client)
        with hello(daemon, ticket) as me, daemon.connect() as other:
            child = me.call(Fork(aid, name="twin"))
            assert other.call(AuthenticateAgent(child.credential)).aid == child.aid
            assert other.call(SetAid(child.aid, child.credential)).name == "twin"
            other.call(LogEvent("hello", {"from": "twin"}))
            other.call(Exit(3))
            assert wait(me, child.aid).code == 3
        assert log(client, child.aid) == 'hello {"from":"twin"}\n'


def test_a_foreign_agent_that_is_killed_is_hung_up_on(daemon: Daemon) -> None:
    with daemon.connect() as client, daemon.connect() as guest:
        started = guest.call(RegisterAgent("guest"))
        assert started.pid == os.getpid()
        client.call(Kill(started.aid, "KILL"))
        assert wait(client, started.aid).signal == signal.SIGKILL
        assert guest.read().errno == errno.ESRCH
        with pytest.raises(EOFError):
            guest.read()
        with pytest.raises(PermissionError):
            hello(daemon, started.credential)


def test_a_foreign_agent_ends_after_its_connection(daemon: Daemon) -> None:
    with daemon.connect() as client:
        with daemon.connect() as guest:
            started = guest.call(RegisterAgent("guest"))
        with hello(daemon, started.credential) as back:
            assert back.welcome.aid == started.aid
        status = wait(client, started.aid)
        assert (status.code, status.reason) == (None, "disconnected")


def test_the_same_key_spawns_once(daemon: Daemon) -> None:
    with daemon.connect() as client:
        call = Spawn(SLEEPER, key="once")
        assert client.call(call) == client.call(call)
        assert len(client.call(ListAgents())) == 1


def test_many_agents_at_once(daemon: Daemon) -> None:
    with daemon.connect() as client:
        ids = [client.send(Spawn(["sh", "-c", f"exit {code}"])) for code in range(20)]
        assert sorted(client.read().id for _ in ids) == ids
        codes = [client.call(Wait(timeout=PATIENCE)).code for _ in ids]
        assert sorted(codes) == list(range(20))
