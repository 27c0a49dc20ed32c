"""Credentials: who becomes which agent, and what becomes of an agent without connections."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from aiosd.abi.process import (
    AuthenticateAgent,
    Fork,
    GetAid,
    ListAgents,
    RegisterAgent,
    SetAid,
    Spawn,
    Wait,
)
from aiosd.access import Caller
from tests.proc.world import OWNER, STRANGER, World

INVALID = "not valid"


async def spawn(world: World) -> tuple[int, str]:
    """Spawn an agent; return its aid and the one-time credential that its program got."""
    aid = (await world.call(world.person(), Spawn(["/bin/true"]))).aid
    spec = world.shim(aid).spec
    assert spec is not None
    return aid, spec.credential.decode()


async def test_a_one_time_credential_is_used_up(world: World) -> None:
    aid, ticket = await spawn(world)
    caller = world.person()
    process, credential = await world.table.attach(caller, ticket)
    assert process.aid == caller.aid == aid
    assert credential != ticket
    with pytest.raises(PermissionError, match=INVALID) as caught:
        await world.table.attach(world.person(), ticket)
    assert caught.value.errno == errno.EACCES
    for _ in range(2):
        other = world.person()
        assert await world.table.attach(other, credential) == (process, credential)
        assert (await world.call(other, GetAid())).aid == aid


async def test_of_two_that_replay_one_wins(world: World) -> None:
    _, ticket = await spawn(world)
    results = await asyncio.gather(
        *(world.table.attach(world.person(), ticket) for _ in range(3)), return_exceptions=True
    )
    assert sum(isinstance(result, PermissionError) for result in results) == 2


async def test_a_hello_that_was_cut_off_leaves_the_one_time_credential(world: World) -> None:
    aid, ticket = await spawn(world)
    task = asyncio.create_task(world.table.attach(world.person(), ticket))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    process, _ = await world.table.attach(world.person(), ticket)
    assert process.aid == aid


async def test_secrets_are_not_on_disk(world: World, state_dir: Path) -> None:
    _, ticket = await spawn(world)
    registered = await world.call(world.person(), RegisterAgent("guest"))
    _, credential = await world.table.attach(world.person(), ticket)
    await world.db.flush()
    stored = b"".join(path.read_bytes() for path in state_dir.glob("aios.db*"))
    for secret in (ticket, credential, registered.credential):
        assert secret.encode() not in stored


async def test_a_credential_can_be_tried_without_becoming_the_agent(world: World) -> None:
    aid, ticket = await spawn(world)
    caller = world.person()
    assert (await world.call(caller, AuthenticateAgent(ticket))).aid == aid
    assert caller.aid == 0
    await world.table.attach(caller, ticket)
    with pytest.raises(PermissionError, match=INVALID):
        await world.call(world.person(), AuthenticateAgent(ticket))
    with pytest.raises(PermissionError, match=INVALID):
        await world.call(world.person(), AuthenticateAgent(""))


async def test_an_agent_is_not_another_without_its_credential(world: World) -> None:
    one = await world.call(world.person(), RegisterAgent("one"))
    other = await world.call(world.person(), RegisterAgent("other"))
    with pytest.raises(PermissionError, match="not agent"):
        await world.call(world.person(), SetAid(one.aid, other.credential))
    caller = world.person()
    assert (await world.call(caller, SetAid(one.aid, one.credential))).name == "one"
    assert caller.aid == one.aid
    with pytest.raises(OSError, match="open another"):
        await world.call(caller, SetAid(other.aid, other.credential))
    with pytest.raises(ProcessLookupError):
        await world.call(world.person(), SetAid(9999, one.credential))
    with pytest.raises(PermissionError, match="of use to uid"):
        await world.table.attach(world.person(STRANGER), one.credential)
    with pytest.raises(ProcessLookupError, match="is no agent"):
        await world.call(world.person(), GetAid())


async def test_a_credential_dies_with_its_agent(world: World) -> None:
    aid, ticket = await spawn(world)
    _, credential = await world.table.attach(world.person(), ticket)
    world.shim(aid).exit(code=0)
    await world.call(world.person(), Wait(aid))
    with pytest.raises(PermissionError, match=INVALID):
        await world.table.attach(world.person(), credential)


async def test_a_foreign_agent_ends_some_time_after_its_last_connection(world: World) -> None:
    world.table._identities.reattach = 0.01
    first, second = world.person(), world.person()
    started = await world.call(first, RegisterAgent("guest"))
    await world.table.attach(second, started.credential)
    world.close(first)
    assert world.table.get(started.aid).grace is None
    world.close(second)
    status = await world.call(world.person(), Wait(started.aid))
    assert status.reason == "disconnected"


async def test_a_foreign_agent_that_comes_back_in_time_lives_on(world: World) -> None:
    first = world.person()
    started = await world.call(first, RegisterAgent("guest"))
    world.close(first)
    assert world.table.get(started.aid).grace is not None
    await world.table.attach(world.person(), started.credential)
    assert world.table.get(started.aid).grace is None


async def test_a_spawned_agent_needs_no_connection(world: World) -> None:
    aid, ticket = await spawn(world)
    caller = world.person()
    await world.table.attach(caller, ticket)
    world.close(caller)
    assert world.table.get(aid).grace is None


async def test_a_credential_that_was_stored_and_never_told_locks_nobody_out(
    world: World, state_dir: Path
) -> None:
    aid, ticket = await spawn(world)
    await world.table.attach(world.person(), ticket)  # and the answer is lost with the kernel
    await world.die()
    again = World(state_dir)
    again.spawner.adoptable[aid] = world.shim(aid)
    await again.boot()
    process, credential = await again.table.attach(again.person(), ticket)
    assert process.aid == aid
    with pytest.raises(PermissionError, match=INVALID):
        await again.table.attach(again.person(), ticket)
    await again.table.attach(again.person(), credential)
    await again.die()
    third = World(state_dir)
    third.spawner.adoptable[aid] = world.shim(aid)
    await third.boot()
    with pytest.raises(PermissionError, match=INVALID):
        await third.table.attach(third.person(), ticket)
    await third.table.attach(third.person(), credential)
    await third.end()


async def test_credentials_work_under_the_next_kernel(world: World, state_dir: Path) -> None:
    spawned, ticket = await spawn(world)
    used, used_ticket = await spawn(world)
    _, credential = await world.table.attach(world.person(), used_ticket)
    await world.table.attach(world.person(), credential)
    guest = await world.call(world.person(), RegisterAgent("guest"))
    child = await world.call(world.person(), Fork(spawned))
    await world.die()
    again = World(state_dir)
    for aid in (spawned, used):
        again.spawner.adoptable[aid] = world.shim(aid)
    await again.boot()
    with pytest.raises(PermissionError):
        await again.table.attach(again.person(), used_ticket)
    for secret, aid in (
        (ticket, spawned),
        (credential, used),
        (guest.credential, guest.aid),
        (child.credential, child.aid),
    ):
        process, _ = await again.table.attach(again.person(), secret)
        assert process.aid == aid
        assert process.grace is None
    await again.end()


async def test_an_agents_child_may_be_spoken_for_by_whoever_has_its_credential(
    world: World,
) -> None:
    aid, ticket = await spawn(world)
    me = Caller(OWNER, 0, 0)
    await world.table.attach(me, ticket)
    child = await world.call(me, Fork(aid, name="twin"))
    other = world.person()
    await world.call(other, SetAid(child.aid, child.credential))
    [row] = await world.call(me, ListAgents(aid=child.aid))
    assert (row.name, row.parent, row.kind) == ("twin", aid, "forked")
