"""What each signal does to an agent's requests, its process and its row."""

from __future__ import annotations

import errno
import signal
from pathlib import Path

import pytest

from aiosd.abi.process import (
    GetPriority,
    GetStatus,
    Kill,
    ListAgents,
    RegisterAgent,
    ResumeAgent,
    SetPriority,
    SetStatus,
    Spawn,
    SuspendAgent,
    UpdateAgentConfig,
    Wait,
)
from aiosd.access import Caller
from aiosd.process import Activity
from aiosd.signals import parse_signal
from tests.proc.world import OWNER, STRANGER, World


async def spawn(world: World, parent: int = 0) -> int:
    aid = (await world.call(Caller(OWNER, 0, 0, parent), Spawn(["/bin/true"]))).aid
    assert isinstance(aid, int)
    return aid


@pytest.mark.parametrize("text", ["TERM", "term", "SIGTERM", "sigterm", "15", " Term "])
def test_a_signals_name_or_number(text: str) -> None:
    assert parse_signal(text) == signal.SIGTERM


@pytest.mark.parametrize("text", ["USR1", "99", "-9", "SIG", "", "²"])
def test_an_unknown_signal_lists_those_there_are(text: str) -> None:
    with pytest.raises(OSError, match=r"HUP \(1\), INT \(2\), KILL \(9\)") as caught:
        parse_signal(text)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("name", ["INT", "TERM"])
async def test_int_and_term_end_the_generation_then_reach_the_process(
    world: World, name: str
) -> None:
    aid = await spawn(world)
    await world.call(world.person(), Kill(aid, name))
    assert world.listener.heard == [("interrupted", aid)]
    assert world.shim(aid).signals == [getattr(signal, f"SIG{name}")]


async def test_int_can_end_the_generation_alone(world: World) -> None:
    aid = await spawn(world)
    await world.call(world.person(), Kill(aid, "INT", generation=True))
    assert world.listener.heard == [("interrupted", aid)]
    assert world.shim(aid).signals == []
    with pytest.raises(OSError, match="only INT"):
        await world.call(world.person(), Kill(aid, "TERM", generation=True))


async def test_hup_reaches_the_process_and_0_only_looks(world: World) -> None:
    aid = await spawn(world)
    await world.call(world.person(), Kill(aid, "HUP"))
    await world.call(world.person(), Kill(aid, "0"))
    assert world.listener.heard == []
    assert world.shim(aid).signals == [signal.SIGHUP]


async def test_kill_ends_all_of_it_at_once(world: World) -> None:
    aid = await spawn(world)
    await world.call(world.person(), Kill(aid, "KILL"))
    assert world.listener.heard == [("ended", aid)]
    assert world.shim(aid).killed
    status = await world.call(world.person(), Wait(aid))
    assert (status.signal, status.reason) == (9, "killed")
    assert world.listener.heard == [("ended", aid)]


@pytest.mark.parametrize("name", ["STOP", "TSTP"])
async def test_stop_suspends_and_cont_resumes(world: World, name: str) -> None:
    aid = await spawn(world)
    world.listener.activities[aid] = Activity("R", core="local", slot=0)
    await world.call(world.person(), Kill(aid, name))
    assert (await world.call(world.person(), GetStatus(aid))).state == "T"
    await world.call(world.person(), Kill(aid, "CONT"))
    assert (await world.call(world.person(), GetStatus(aid))).state == "R"
    assert world.listener.heard == [("stopped", aid), ("continued", aid)]
    assert world.shim(aid).signals == [getattr(signal, f"SIG{name}"), signal.SIGCONT]


async def test_suspend_and_resume_and_set_status_are_the_same(
    world: World, state_dir: Path
) -> None:
    aid = await spawn(world)
    await world.call(world.person(), SuspendAgent(aid))
    await world.call(world.person(), ResumeAgent(aid))
    await world.call(world.person(), SetStatus(aid, "suspended"))
    assert world.shim(aid).signals == [signal.SIGSTOP, signal.SIGCONT, signal.SIGSTOP]
    await world.die()
    again = World(state_dir)  # stays stopped under the next kernel
    again.spawner.adoptable[aid] = world.shim(aid)
    await again.boot()
    assert (await again.call(again.person(), GetStatus(aid))).state == "T"
    await again.call(again.person(), SetStatus(aid, "running"))
    assert (await again.call(again.person(), GetStatus(aid))).state == "S"
    await again.end()


async def test_only_the_agent_sets_its_note(world: World) -> None:
    aid = await spawn(world)
    await world.call(Caller(OWNER, 0, 0, aid), SetStatus(aid, "reading"))
    assert (await world.call(world.person(), GetStatus(aid))).note == "reading"
    with pytest.raises(PermissionError, match="its note"):
        await world.call(world.person(), SetStatus(aid, "lazy"))
    with pytest.raises(PermissionError):
        await world.call(world.person(STRANGER), SetStatus(aid, "suspended"))


async def test_strangers_get_eperm_and_parents_do_not(world: World) -> None:
    parent = await spawn(world)
    child = await spawn(world, parent)
    sibling = await spawn(world)
    await world.call(Caller(OWNER, 0, 0, parent), Kill(child, "INT"))
    await world.call(Caller(OWNER, 0, 0, child), Kill(child, "HUP"))
    for stranger in (
        Caller(OWNER, 0, 0, sibling),
        Caller(OWNER, 0, 0, child),
        world.person(STRANGER),
    ):
        for call in (Kill(parent), SuspendAgent(parent), SetPriority(parent, 9), GetStatus(parent)):
            with pytest.raises(PermissionError):
                await world.call(stranger, call)
    assert world.shim(parent).signals == []


async def test_the_ended_take_no_signals(world: World) -> None:
    parent = await spawn(world)
    child = await spawn(world, parent)
    world.shim(child).exit(code=0)
    await world.table._reaper.close()
    await world.call(world.person(), Kill(child, "TERM"))  # a zombie: no effect
    await world.call(Caller(OWNER, 0, 0, parent), Wait(child))
    with pytest.raises(ProcessLookupError, match="dead"):
        await world.call(world.person(), Kill(child, "TERM"))
    with pytest.raises(ProcessLookupError):
        await world.call(world.person(), SuspendAgent(child))


@pytest.mark.parametrize(("name", "number"), [("HUP", 1), ("INT", 2), ("TERM", 15), ("KILL", 9)])
async def test_a_foreign_agent_ends_as_an_agent(world: World, name: str, number: int) -> None:
    caller = world.person()
    hung_up: list[str] = []
    caller.hang_up = lambda: hung_up.append(name)
    aid = (await world.call(caller, RegisterAgent("guest"))).aid
    await world.call(world.person(), Kill(aid, "STOP"))
    assert (await world.call(world.person(), GetStatus(aid))).state == "T"
    await world.call(world.person(), Kill(aid, "CONT"))
    assert not hung_up
    await world.call(world.person(), Kill(aid, name))
    assert hung_up == [name]
    assert (await world.call(world.person(), Wait(aid))).signal == number


async def test_renice_reaches_the_scheduler(world: World) -> None:
    aid = await spawn(world)
    assert (await world.call(world.person(), SetPriority(aid, 7))).nice == 7
    assert (await world.call(world.person(), GetPriority(aid))).nice == 7
    assert world.listener.heard == [("reniced", aid, 7)]
    me = Caller(OWNER, 0, 0, aid)
    await world.call(me, SetPriority(aid, 9))
    with pytest.raises(PermissionError, match="below 9") as caught:
        await world.call(me, SetPriority(aid, 8))
    assert caught.value.errno == errno.EACCES


async def test_a_new_name_and_a_default(world: World) -> None:
    aid = await spawn(world)
    await world.call(world.person(), UpdateAgentConfig(aid, name="renamed", max_tokens=5))
    await world.call(world.person(), UpdateAgentConfig(aid))
    [row] = await world.call(world.person(), ListAgents())
    assert row.name == "renamed"
    assert world.table.get(aid).max_tokens == 5
