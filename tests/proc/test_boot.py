"""The next kernel: agents that lived on, ended meanwhile, or were lost."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aiosd.abi.process import Fork, ListAgents, QueryHistory, RegisterAgent, Spawn, Wait
from aiosd.process import Ending
from aiosd.roster import Note
from tests.proc.world import STRANGER, World


async def spawn(world: World) -> int:
    aid = (await world.call(world.person(), Spawn(["/bin/true"]))).aid
    assert isinstance(aid, int)
    return aid


async def test_each_agent_is_found_as_it_is_now(world: World, state_dir: Path) -> None:
    alive, gone, ended, lost = [await spawn(world) for _ in range(4)]
    await world.die()
    old = {aid: world.shim(aid) for aid in (alive, gone, ended)}
    old[gone].watcher = old[ended].watcher = world.spawner.watcher
    again = World(state_dir)
    record = old[gone]._make(code=3)
    again.spawner.adoptable = {alive: old[alive], gone: record, lost: None}
    held = again.spawner.adoptable[ended] = old[ended]
    held.record = held._make(signal=6)

    events = again.watch("agent.")
    await again.boot()
    again.table.on_exit(held, held.record)  # type: ignore[arg-type]
    status = await again.call(again.person(), Wait(ended))
    assert (status.signal, status.reason) == (6, "exited")
    assert held.byes == 1
    status = await again.call(again.person(), Wait(gone))
    assert (status.code, status.ended) == (3, record.ended)
    assert (await again.call(again.person(), Wait(lost))).reason == "lost"
    [row] = await again.call(again.person(), ListAgents())
    assert (row.aid, row.state) == (alive, "S")
    assert old[alive].signals == [signal.SIGCONT]
    kinds = sorted([(event.kind, event.aid) for event in [await anext(events) for _ in range(4)]])
    assert kinds == [
        ("agent.adopted", alive),
        ("agent.exit", gone),
        ("agent.exit", ended),
        ("agent.exit", lost),
    ]
    old[alive].exit(code=0)
    assert (await again.call(again.person(), Wait(alive))).code == 0
    await again.end()


async def test_those_without_a_process_have_time_to_come_back(
    world: World, state_dir: Path
) -> None:
    guest = await world.call(world.person(), RegisterAgent("guest"))
    parent = await spawn(world)
    child = await world.call(world.person(), Fork(parent))
    await world.die()
    again = World(state_dir, **{"agents.orphan_timeout": 2.0})
    again.spawner.adoptable[parent] = world.shim(parent)
    await again.boot()
    await again.table.attach(again.person(), guest.credential)
    status = await again.call(again.person(), Wait(child.aid))
    assert status.reason == "lost"
    assert again.table.get(guest.aid).alive
    await again.end()


async def test_totals_and_history_survive(world: World, state_dir: Path) -> None:
    aid = await spawn(world)
    note = Note("request.end", aid, {"finish": "stop"})
    account = partial(world.table.account, note=note)
    uses: list[dict[str, Any]] = [
        {"aid": aid, "tokens_in": 10, "tokens_out": 5, "waiting_s": 0.5, "turnaround_s": 1.5},
        {"aid": aid, "tokens_in": 1, "tokens_out": 1, "cached": 1},
        {"aid": 99, "tokens_in": 1},
    ]
    for use in uses:
        await world.db.write(account(**use))
    await world.die()
    again = World(state_dir)
    again.spawner.adoptable[aid] = world.shim(aid)
    await again.boot()
    [row] = await again.call(again.person(), ListAgents())
    usage = row.usage
    assert (usage.tokens_in, usage.tokens_out, usage.cached_tokens, usage.requests) == (11, 6, 1, 2)
    assert (usage.waiting_s, usage.turnaround_s) == (0.5, 1.5)
    kinds = [h.kind for h in await again.call(again.person(), QueryHistory(aid))]
    assert kinds == ["agent.spawn", "agent.start", *["request.end"] * 3, "agent.adopted"]
    await again.end()


async def test_a_birth_that_the_kernel_did_not_live_to_see(world: World, state_dir: Path) -> None:
    aid = await spawn(world)
    process = world.table.get(aid)
    process.pid, process.started = 0, 0.0
    await world.table._roster.save(process)
    await world.die()
    again = World(state_dir)
    shim = again.spawner.adoptable[aid] = world.shim(aid)
    await again.boot()
    again.table.on_started(shim, shim.pid)  # type: ignore[arg-type]
    [row] = await again.call(again.person(), ListAgents())
    assert (row.pid, row.started) == (shim.pid, shim.started)
    await again.end()


async def test_a_spawn_whose_answer_was_lost_can_be_asked_for_again(
    world: World, state_dir: Path
) -> None:
    call = Spawn(["/bin/true"], key="k")
    first = await world.call(world.person(), call)
    await world.die()
    again = World(state_dir)
    again.spawner.adoptable[first.aid] = world.shim(first.aid)
    await again.boot()
    assert await again.call(again.person(), call) == first
    with pytest.raises(OSError, match="another birth"):
        await again.call(again.person(), Spawn(["/bin/false"], key="k"))
    other = await again.call(again.person(STRANGER), RegisterAgent("x", key="k"))
    assert other.aid != first.aid
    again.shim(first.aid).exit(code=0)
    await again.call(again.person(), Wait(first.aid))
    assert (await again.call(again.person(), call)).aid == first.aid
    again.table._roster.get(first.aid).created -= 601
    assert (await again.call(again.person(), call)).aid != first.aid
    await again.end()


async def test_what_no_row_knows_is_cleared_and_its_aid_not_used(state_dir: Path) -> None:
    world = World(state_dir)
    world.spawner.adoptable[40] = None
    await world.boot()
    assert world.spawner.removed == [40]
    assert await spawn(world) == 41
    await world.end()


async def test_closing_leaves_the_agents_alone(world: World) -> None:
    aid = await spawn(world)
    guest = world.person()
    await world.call(guest, RegisterAgent("guest"))
    world.close(guest)
    await world.table.close()
    shim = world.shim(aid)
    assert shim.detached
    assert not shim.killed
    assert shim.signals == []
    assert all(process.grace is None for process in world.table._roster)


async def test_counts_by_state(world: World) -> None:
    one, _ = await spawn(world), await spawn(world)
    world.table._roster.get(one).stopped = True
    await world.table._reaper.end(world.table._roster.get(await spawn(world)), Ending("x", 1.0))
    assert world.table.counts() == {"T": 1, "S": 1, "X": 1}
