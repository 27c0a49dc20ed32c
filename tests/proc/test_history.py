"""log_event, query_history and read_log."""

from __future__ import annotations

import asyncio
import errno
import time
from pathlib import Path

import pytest

from aiosd.abi.process import LogEvent, QueryHistory, ReadLog, RegisterAgent, Spawn
from aiosd.access import Caller
from aiosd.agentlog import LogRecord
from tests.proc.world import OWNER, STRANGER, Reader, World


async def spawn(world: World) -> int:
    aid = (await world.call(world.person(), Spawn(["/bin/true"]))).aid
    assert isinstance(aid, int)
    return aid


async def test_an_agents_own_events_are_kept_below_their_own_name(world: World) -> None:
    watch = world.watch("agent.event")
    aid = await spawn(world)
    data = {"kind": "x", "aid": 3, "self": None, "deep": {"a": [1]}}
    await world.call(Caller(OWNER, 0, 0, aid), LogEvent("agent.exit", data))
    [event] = await world.call(world.person(), QueryHistory(aid, kind="agent.event"))
    assert (event.kind, event.data) == ("agent.event.agent.exit", data)
    assert (await anext(watch)).data == data


async def test_an_event_has_a_size(world: World) -> None:
    me = Caller(OWNER, 0, 0, await spawn(world))
    await world.call(me, LogEvent("big", {"x": "y" * 65_000}))
    with pytest.raises(OSError, match="65536") as caught:
        await world.call(me, LogEvent("big", {"x": "y" * 66_000}))
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(OSError, match="as JSON"):
        await world.call(me, LogEvent("odd", {"x": {(1, 2): 3}}))
    with pytest.raises(ProcessLookupError):
        await world.call(world.person(), LogEvent("nobody"))


async def test_history_is_the_newest_oldest_first_and_only_ones_own(world: World) -> None:
    guest = world.person(STRANGER)
    other = (await world.call(guest, RegisterAgent("guest"))).aid
    aid = await spawn(world)
    for number in range(5):
        await world.call(Caller(OWNER, 0, 0, aid), LogEvent("n", {"n": number}))
    found = await world.call(world.person(), QueryHistory(kind="agent.event", limit=2))
    assert [event.data["n"] for event in found] == [3, 4]
    assert {event.aid for event in await world.call(world.person(), QueryHistory())} == {aid, other}
    assert {e.aid for e in await world.call(world.person(STRANGER), QueryHistory())} == {other}
    assert {e.aid for e in await world.call(Caller(OWNER, 0, 0, aid), QueryHistory())} == {aid}
    assert await world.call(world.person(), QueryHistory(since=time.time() + 60)) == []
    with pytest.raises(PermissionError):
        await world.call(world.person(STRANGER), QueryHistory(aid))


async def test_history_is_bounded(state_dir: Path) -> None:
    world = await World(state_dir, **{"history.keep_events": 10}).boot()
    for number in range(600):
        world.table.note("test.n", 0, {"n": number})
    await world.db.flush()
    found = await world.call(world.person(), QueryHistory(limit=10_000))
    assert 10 <= len(found) <= 10 + 256
    assert found[-1].data == {"n": 599}
    await world.end()


def lines(*entries: tuple[float, str]) -> list[LogRecord]:
    return [LogRecord(t, "out", text) for t, text in entries]


async def test_output_and_events_are_one_stream_by_time(world: World) -> None:
    aid = await spawn(world)
    now = time.time()
    world.spawner.logs[aid] = lines((now - 5, "a\n"), (now - 4, "b\n"), (now + 60, "c\n"))
    await world.call(Caller(OWNER, 0, 0, aid), LogEvent("step", {"n": 1}))
    reader = Reader()
    await world.call(world.person(), ReadLog(aid), reader)
    assert reader.texts() == ["a\n", "b\n", 'step {"n":1}\n', "c\n"]
    tail = Reader()
    await world.call(world.person(), ReadLog(aid, tail=2), tail)
    assert tail.texts() == ['step {"n":1}\n', "c\n"]


async def test_much_output_comes_in_pieces_and_in_order(world: World) -> None:
    aid = await spawn(world)
    now = time.time()
    world.spawner.logs[aid] = lines(*((now - 1 + i / 1e4, f"{i}" + "x" * 4000) for i in range(700)))
    for number in range(300):
        await world.call(Caller(OWNER, 0, 0, aid), LogEvent("e", {"n": number}))
    reader = Reader()
    await world.call(world.person(), ReadLog(aid), reader)
    texts = reader.texts()
    assert len(texts) == 1000
    times = [record.t for chunk in reader.chunks for record in chunk]
    assert times == sorted(times)
    assert max(sum(len(r.text) for r in chunk) for chunk in reader.chunks) < 512 << 10


async def test_following_goes_on_until_the_end(world: World) -> None:
    aid = await spawn(world)
    world.spawner.logs[aid] = lines((time.time(), "a\n"))
    reader = Reader()
    following = asyncio.create_task(
        world.call(world.person(), ReadLog(aid, tail=1, follow=True), reader)
    )
    await reader.news.wait()
    reader.news.clear()
    world.spawner.logs[aid] += lines((time.time(), "b\n"))
    world.table.on_log(world.shim(aid), 2)  # type: ignore[arg-type]
    await reader.news.wait()
    reader.news.clear()
    await world.call(Caller(OWNER, 0, 0, aid), LogEvent("last"))
    await reader.news.wait()
    world.spawner.logs[aid] += lines((time.time(), "c\n"))
    world.shim(aid).exit(code=0)
    await following
    assert reader.texts() == ["a\n", "b\n", "last {}\n", "c\n"]
    assert not world.table._history._readers


async def test_the_output_of_an_agent_without_a_process_is_its_events(world: World) -> None:
    caller = world.person()
    aid = (await world.call(caller, RegisterAgent("guest"))).aid
    await world.call(caller, LogEvent("hello"))
    reader = Reader()
    await world.call(world.person(), ReadLog(aid), reader)
    assert reader.texts() == ["hello {}\n"]
