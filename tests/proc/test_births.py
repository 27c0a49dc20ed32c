"""spawn, fork and register_agent: who may, what the child gets, and what a failure leaves."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from aiosd.abi.process import (
    Fork,
    GetAid,
    ListAgents,
    LogEvent,
    QueryHistory,
    RegisterAgent,
    SetPriority,
    Spawn,
    Wait,
)
from aiosd.access import Caller
from tests.proc.world import OWNER, STRANGER, FakeShim, World


async def spawn(world: World, caller: Caller | None = None, **more: object) -> int:
    args = Spawn(["/bin/true"], **more)  # type: ignore[arg-type]
    started = await world.call(caller or world.person(), args)
    assert isinstance(started.aid, int)
    return started.aid


async def test_a_spawned_program_is_a_row_that_survives(world: World, state_dir: Path) -> None:
    events = world.watch("agent.")
    started = await world.call(world.person(), Spawn(["true", "x"], name="worker", nice=3))
    assert started.credential == ""
    [row] = await world.call(world.person(), ListAgents())
    assert (row.aid, row.name, row.argv, row.nice) == (started.aid, "worker", ["true", "x"], 3)
    assert (row.state, row.waiting, row.kind, row.parent) == ("S", "program", "spawned", 0)
    assert row.pid == started.pid == world.shim(row.aid).pid
    assert row.program.endswith("/true")
    assert [(await anext(events)).kind for _ in range(2)] == ["agent.spawn", "agent.start"]
    await world.die()
    other = World(state_dir)
    other.spawner.adoptable[row.aid] = world.shim(row.aid)
    await other.boot()
    [again] = await other.call(other.person(), ListAgents())
    assert again == row
    await other.end()


async def test_the_environment_is_clean_and_the_callers_comes_on_top(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERNELS_SECRET", "x")
    aid = await spawn(world, env={"LANG": "de_DE.UTF-8", "AIOS_SOCKET": "elsewhere", "MINE": "1"})
    spec = world.shim(aid).spec
    assert spec is not None
    assert "KERNELS_SECRET" not in spec.env
    assert spec.env["AIOS_SOCKET"] == world.config.kernel.socket
    assert (spec.env["LANG"], spec.env["MINE"], spec.env["TERM"]) == ("de_DE.UTF-8", "1", "dumb")
    assert {"HOME", "USER", "PATH"} <= spec.env.keys()
    assert str(Path(__file__).parents[2] / "sdk") in spec.env["PYTHONPATH"]
    assert spec.cwd == str(world.state_dir / "work" / str(aid))
    assert os.path.isdir(spec.cwd)
    assert len(spec.credential) > 20


@pytest.mark.parametrize(
    ("args", "number", "word"),
    [
        (Spawn(["no-such-program"]), errno.ENOENT, "no-such-program"),
        (Spawn(["/etc/passwd"]), errno.EACCES, "executable"),
        (Spawn(["true"], sandbox=True), errno.ENOSYS, "sandbox"),
        (Spawn(["true"], limits={"files": 3}), errno.EINVAL, "nofile"),
        (Spawn(["true"], cwd="here"), errno.EINVAL, "absolute"),
    ],
)
async def test_what_cannot_be_run_is_refused_and_leaves_nothing(
    world: World, args: Spawn, number: int, word: str
) -> None:
    with pytest.raises(OSError, match=word) as caught:
        await world.call(world.person(), args)
    assert caught.value.errno == number
    await leaves_nothing(world)


async def leaves_nothing(world: World) -> None:
    assert await world.call(world.person(), ListAgents(all=True)) == []
    assert await world.call(world.person(), QueryHistory()) == []
    assert await world.db.read(lambda db: db.execute("select aid from agents").fetchall()) == []
    assert not list((world.state_dir / "work").glob("*"))
    assert world.table._roster.living == 0


async def test_a_program_that_cannot_be_executed_is_the_callers_error(world: World) -> None:
    def fail(shim: FakeShim) -> None:
        shim.failure = OSError(errno.ENOEXEC, "cannot execute: Exec format error")

    world.spawner.prepare = fail
    with pytest.raises(OSError, match="Exec format") as caught:
        await spawn(world)
    assert caught.value.errno == errno.ENOEXEC
    [shim] = world.spawner.shims.values()
    assert shim.byes == 1
    await leaves_nothing(world)


async def test_a_caller_that_takes_its_spawn_back_gets_it_undone(world: World) -> None:
    began = asyncio.Event()

    def prepare(shim: FakeShim) -> None:
        shim.may_run.clear()
        began.set()

    world.spawner.prepare = prepare
    task = asyncio.create_task(spawn(world))
    await began.wait()
    [shim] = world.spawner.shims.values()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    shim.may_run.set()
    await world.table._births.close()
    assert shim.killed
    assert shim.byes == 1
    assert await world.call(world.person(), ListAgents(all=True)) == []
    assert not list((world.state_dir / "work").glob("*"))
    last = (await world.call(world.person(), QueryHistory()))[-1]
    assert (last.kind, last.data["reason"]) == ("agent.exit", "taken back")


async def test_an_end_before_the_birth_is_over_comes_after_it(world: World) -> None:
    world.spawner.prepare = lambda shim: shim.exit(code=4)
    aid = await spawn(world)
    status = await world.call(world.person(), Wait(aid))
    assert status.code == 4
    kinds = [h.kind for h in await world.call(world.person(), QueryHistory())]
    assert kinds == ["agent.spawn", "agent.start", "agent.exit"]


async def test_there_is_room_for_so_many_agents(state_dir: Path) -> None:
    world = await World(state_dir, **{"agents.max_agents": 2}).boot()
    first, _ = await asyncio.gather(spawn(world), spawn(world))
    with pytest.raises(OSError, match=r"agents\.max_agents") as caught:
        await spawn(world)
    assert caught.value.errno == errno.EMFILE
    world.shim(first).exit(code=0)
    await world.call(world.person(), Wait(first))
    await spawn(world)
    await world.end()


async def test_a_child_of_an_agent_has_its_uid_and_nice(world: World) -> None:
    parent = await spawn(world, nice=5)
    caller = Caller(OWNER, 0, 0, parent)
    child = await spawn(world, caller)
    row = (await world.call(world.person(), ListAgents(aid=child)))[0]
    assert (row.parent, row.uid, row.nice) == (parent, OWNER, 5)
    with pytest.raises(PermissionError, match="below 5"):
        await spawn(world, caller, nice=1)
    with pytest.raises(PermissionError, match="below 5"):
        await world.call(caller, SetPriority(child, 1))


async def test_nice_below_zero_is_for_the_owner_in_person(world: World) -> None:
    assert await spawn(world, nice=-5)
    with pytest.raises(PermissionError, match="below 0"):
        await world.call(world.person(STRANGER), RegisterAgent("a", nice=-1))


@pytest.mark.skipif(OWNER == 0, reason="root can be every user")
async def test_another_users_program_is_refused(world: World) -> None:
    with pytest.raises(PermissionError, match="aiosd of your own"):
        await spawn(world, world.person(STRANGER))
    await leaves_nothing(world)


@pytest.mark.skipif(OWNER != 0, reason="only root can be other users")
async def test_root_runs_a_program_as_the_one_who_asked(world: World) -> None:
    aid = await spawn(world, Caller(65534, 65534, 1))
    spec = world.shim(aid).spec
    assert spec is not None
    assert (spec.uid, spec.gid) == (65534, 65534)
    assert spec.cwd in (spec.env["HOME"], "/")


async def test_fork_without_argv_gives_the_childs_credential(world: World) -> None:
    source = await spawn(world, nice=2, name="math")
    child = await world.call(world.person(), Fork(source))
    assert child.pid == 0
    assert ("forked", source, child.aid) in world.listener.heard
    caller = world.person()
    process, again = await world.table.attach(caller, child.credential)
    assert (process.aid, process.nice, process.name) == (child.aid, 2, "math")
    assert again == child.credential
    assert (await world.call(caller, GetAid())).parent == source


async def test_fork_with_argv_starts_a_process(world: World) -> None:
    source = await spawn(world, cwd="/tmp")
    child = await world.call(world.person(), Fork(source, ["/bin/true"]))
    spec = world.shim(child.aid).spec
    assert spec is not None
    assert spec.cwd == "/tmp"
    assert child.credential == ""


async def test_a_fork_whose_contexts_cannot_be_copied_leaves_nothing(world: World) -> None:
    source = await spawn(world)
    world.listener.fork_error = OSError(errno.ENOSPC, "no room for a copy")
    for argv in ([], ["/bin/true"]):
        with pytest.raises(OSError, match="no room"):
            await world.call(world.person(), Fork(source, argv))
    [row] = await world.call(world.person(), ListAgents(all=True))
    assert row.aid == source


async def test_a_forked_child_that_nobody_claims_ends(world: World) -> None:
    source = await spawn(world)
    world.table._identities.unclaimed = 0.0
    child = await world.call(world.person(), Fork(source))
    status = await world.call(world.person(), Wait(child.aid))
    assert status.reason == "unclaimed"


async def test_a_registered_agent_is_the_connections(world: World) -> None:
    caller = world.person()
    started = await world.call(caller, RegisterAgent("here"))
    assert caller.aid == started.aid
    assert started.pid == os.getpid()
    with pytest.raises(FileExistsError):
        await world.call(caller, RegisterAgent("twice"))
    await world.call(caller, LogEvent("hello"))


async def test_aids_are_never_given_twice(state_dir: Path) -> None:
    world = await World(state_dir, **{"history.keep_ended": 0}).boot()
    aids = []
    for _ in range(3):
        aids.append(await spawn(world))
        wait = asyncio.create_task(world.call(world.person(), Wait(aids[-1])))
        await asyncio.sleep(0)
        world.shim(aids[-1]).exit(code=0)
        assert (await wait).code == 0  # though it is pruned at once
    await world.end()
    world = await World(state_dir).boot()
    aids.append(await spawn(world))
    assert aids == sorted(set(aids))
    assert min(aids) > 1
    await world.end()


async def test_a_birth_whose_answer_was_lost_is_the_same_one(world: World, state_dir: Path) -> None:
    guest = await world.call(world.person(), RegisterAgent("guest", key="r"))
    child = await world.call(world.person(), Fork(guest.aid, key="f"))
    await world.die()
    again = World(state_dir)
    await again.boot()
    caller = again.person()
    same = await again.call(caller, RegisterAgent("guest", key="r"))
    assert (same.aid, caller.aid) == (guest.aid, guest.aid)
    assert same.credential != guest.credential  # of the first there is only a digest
    twin = await again.call(again.person(), Fork(guest.aid, key="f"))
    assert twin.aid == child.aid
    for started in (same, twin):
        process, _ = await again.table.attach(again.person(), started.credential)
        assert process.aid == started.aid
    assert len(await again.call(again.person(), ListAgents())) == 2
    await again.end()
