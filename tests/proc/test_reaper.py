"""How agents end, who may wait for them, and what is kept of them."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from aiosd.abi.process import Exit, ListAgents, QueryHistory, RegisterAgent, Spawn, Wait
from aiosd.access import Caller
from tests.proc.world import OWNER, STRANGER, World


async def spawn(world: World, parent: int = 0) -> int:
    caller = Caller(OWNER, 0, 0, parent)
    aid = (await world.call(caller, Spawn(["/bin/true"]))).aid
    assert isinstance(aid, int)
    return aid


async def state(world: World, aid: int) -> str:
    [row] = await world.call(world.person(), ListAgents(all=True, aid=aid))
    assert isinstance(row.state, str)
    return row.state


async def settle(world: World) -> None:
    await world.table._reaper.close()


async def test_wait_tells_code_signal_and_time(world: World) -> None:
    one, other = await spawn(world), await spawn(world)
    waiting = asyncio.create_task(world.call(world.person(), Wait(one)))
    await asyncio.sleep(0)
    assert not waiting.done()
    world.shim(one).exit(code=3)
    world.shim(other).exit(signal=15)
    status = await waiting
    assert (status.code, status.signal, status.reason) == (3, None, "exited")
    assert status.ended == world.shim(one).record.ended  # type: ignore[union-attr]
    assert status.usage.cpu_s == 0.5
    assert (await world.call(world.person(), Wait(other))).signal == 15
    assert world.shim(one).byes == world.shim(other).byes == 1


async def test_wait_in_time_or_not(world: World) -> None:
    aid = await spawn(world)
    assert await world.call(world.person(), Wait(aid, timeout=0.0)) is None
    with pytest.raises(TimeoutError, match="not ended within") as caught:
        await world.call(world.person(), Wait(aid, timeout=0.01))
    assert caught.value.errno == errno.ETIMEDOUT
    with pytest.raises(OSError, match="negative"):
        await world.call(world.person(), Wait(aid, timeout=-1.0))
    world.shim(aid).exit(code=0)
    assert await world.call(world.person(), Wait(aid, timeout=5.0))


async def test_a_persons_agent_is_dead_at_once_and_its_status_stays(world: World) -> None:
    aid = await spawn(world)
    world.shim(aid).exit(code=1)
    for _ in range(2):
        assert (await world.call(world.person(), Wait(aid))).code == 1
    assert await state(world, aid) == "X"
    assert await world.call(world.person(), ListAgents()) == []


async def test_an_agents_child_is_a_zombie_until_its_parent_waits(world: World) -> None:
    parent = await spawn(world)
    child = await spawn(world, parent)
    me = Caller(OWNER, 0, 0, parent)
    world.shim(child).exit(code=7)
    await settle(world)
    assert await state(world, child) == "Z"
    assert (await world.call(world.person(), Wait(child))).code == 7  # others look
    assert (await world.call(me, Wait(child, reap=False))).code == 7
    assert await state(world, child) == "Z"
    assert (await world.call(me, Wait())).aid == child
    assert await state(world, child) == "X"
    with pytest.raises(ChildProcessError, match="waited for already"):
        await world.call(me, Wait(child))
    with pytest.raises(ChildProcessError, match="no child left"):
        await world.call(me, Wait())


async def test_waiting_for_any_child_takes_them_in_order_of_their_ends(world: World) -> None:
    parent = await spawn(world)
    me = Caller(OWNER, 0, 0, parent)
    first, second = await spawn(world, parent), await spawn(world, parent)
    world.shim(second).exit(code=2)
    await settle(world)
    world.shim(first).exit(code=1)
    await settle(world)
    assert [(await world.call(me, Wait())).aid for _ in range(2)] == [second, first]


async def test_one_end_is_told_to_one_of_two_who_wait_for_any(world: World) -> None:
    parent = await spawn(world)
    me = Caller(OWNER, 0, 0, parent)
    child = await spawn(world, parent)
    waits = [asyncio.create_task(world.call(me, Wait())) for _ in range(2)]
    await asyncio.sleep(0)
    world.shim(child).exit(code=0)
    assert (await waits[0]).aid == child
    with pytest.raises(ChildProcessError):
        await waits[1]


async def test_a_wait_that_was_cut_off_reaps_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = await spawn(world)
    me = Caller(OWNER, 0, 0, parent)
    child = await spawn(world, parent)
    world.shim(child).exit(code=0)
    await settle(world)
    reaping = asyncio.Event()

    async def save(*_: object, more: object) -> None:
        reaping.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr(world.table._roster, "save", save)
        task = asyncio.create_task(world.call(me, Wait()))
        await reaping.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (await world.call(me, Wait())).aid == child


async def test_a_full_disk_ends_an_agent_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    aid = await spawn(world)

    async def save(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(world.table._roster, "save", save)
        world.shim(aid).exit(code=1)
        assert (await world.call(world.person(), Wait(aid, reap=False))).code == 1
        with pytest.raises(OSError, match="full"):
            await world.call(world.person(), Wait(aid))
    assert (await world.call(world.person(), Wait())).aid == aid
    assert world.shim(aid).byes == 0  # the next kernel hears of it


async def test_a_person_waits_for_any_of_its_own(world: World) -> None:
    other = await spawn(world)
    with pytest.raises(ChildProcessError):
        await world.call(world.person(STRANGER), Wait())
    world.shim(other).exit(code=0)
    assert (await world.call(world.person(), Wait())).aid == other
    with pytest.raises(ChildProcessError):
        await world.call(world.person(), Wait())


async def test_nobody_waits_for_itself_or_without_rights(world: World) -> None:
    one, other = await spawn(world), await spawn(world)
    with pytest.raises(ChildProcessError, match="its own end"):
        await world.call(Caller(OWNER, 0, 0, one), Wait(one))
    with pytest.raises(PermissionError):
        await world.call(Caller(OWNER, 0, 0, one), Wait(other))
    with pytest.raises(ProcessLookupError):
        await world.call(world.person(), Wait(12345))


async def test_orphans_go_to_init_and_need_no_reaping(world: World) -> None:
    parent = await spawn(world)
    living, zombie = await spawn(world, parent), await spawn(world, parent)
    world.shim(zombie).exit(code=0)
    world.shim(parent).exit(code=0)
    await settle(world)
    assert await state(world, zombie) == "X"
    [row] = await world.call(world.person(), ListAgents(aid=living))
    assert (row.parent, row.state) == (1, "S")
    world.shim(living).exit(code=0)
    await settle(world)
    assert await state(world, living) == "X"


async def test_an_end_frees_what_the_agent_held_once(world: World) -> None:
    events = world.watch("agent.exit")
    aid = await spawn(world)
    world.shim(aid).exit(code=0)
    await settle(world)
    assert world.listener.heard == [("ended", aid)]
    event = await anext(events)
    assert (event.aid, event.data["code"], event.data["reason"]) == (aid, 0, "exited")


async def test_a_shim_that_was_killed_is_a_lost_agent(world: World) -> None:
    aid = await spawn(world)
    world.shim(aid).vanish()
    status = await world.call(world.person(), Wait(aid))
    assert (status.code, status.signal, status.reason) == (None, None, "lost")


async def test_exit_ends_a_foreign_agent_and_leaves_a_spawned_one_to_its_process(
    world: World,
) -> None:
    foreign = world.person()
    aid = (await world.call(foreign, RegisterAgent("guest"))).aid
    await world.call(foreign, Exit(9))
    assert (await world.call(world.person(), Wait(aid))).code == 9
    with pytest.raises(ProcessLookupError, match="has ended"):
        await world.call(foreign, Exit(9))
    spawned = await spawn(world)
    await world.call(Caller(OWNER, 0, 0, spawned), Exit(5))
    world.shim(spawned).exit(code=6)
    assert (await world.call(world.person(), Wait(spawned))).code == 6
    with pytest.raises(ProcessLookupError, match="no agent"):
        await world.call(world.person(), Exit())


async def test_an_end_is_durable_before_anyone_is_told(world: World, state_dir: Path) -> None:
    aid = await spawn(world)
    world.shim(aid).exit(code=2)
    await world.call(world.person(), Wait(aid))
    await world.die()
    again = await World(state_dir).boot()
    assert (await again.call(again.person(), Wait(aid))).code == 2
    [row] = await again.call(again.person(), ListAgents(all=True))
    assert (row.state, row.exit_code) == ("X", 2)
    await again.end()


async def test_so_many_ended_agents_are_kept(state_dir: Path) -> None:
    world = await World(state_dir, **{"history.keep_ended": 2}).boot()
    parent = await spawn(world)
    zombie = await spawn(world, parent)
    world.shim(zombie).exit(code=0)
    await settle(world)
    aids = [await spawn(world) for _ in range(3)]
    for aid in aids:
        world.shim(aid).exit(code=0)
        await settle(world)
    rows = await world.call(world.person(), ListAgents(all=True))
    assert [row.aid for row in rows] == [parent, zombie, aids[2]]
    assert world.spawner.removed == aids[:2]
    assert not (state_dir / "work" / str(aids[0])).exists()
    exits = await world.call(world.person(), QueryHistory(kind="agent.exit"))
    assert [exit.aid for exit in exits] == [zombie, *aids]
    await world.end()
