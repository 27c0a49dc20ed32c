"""Events: who is told what, and what a slow watcher loses."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

from aiosd.abi.system import Event, Ping, Watch
from aiosd.events import BACKLOG, Events, Subscription
from tests.daemon import answer
from tests.door import Door


def everything(aid: int) -> bool:
    return True


async def take(subscription: Subscription, count: int) -> list[Event]:
    return [await anext(subscription) for _ in range(count)]


async def rest(subscription: Subscription) -> list[Event]:
    return [event async for event in subscription]


def kinds(events: Iterable[Event]) -> list[str]:
    return [event.kind for event in events]


def test_a_watcher_gets_the_kinds_and_agents_that_it_asked_for() -> None:
    async def scene() -> None:
        events = Events()
        some = events.subscribe(["agent.", "core.lost"], 0, everything)
        one = events.subscribe([], 7, everything)
        blind = events.subscribe([], 0, lambda aid: aid == 8)
        for kind, aid in (("agent.exit", 7), ("core.lost", 0), ("core.ready", 0), ("agent.x", 8)):
            events.emit(kind, aid, mark=aid)
        assert kinds(await take(some, 3)) == ["agent.exit", "core.lost", "agent.x"]
        assert [e.data for e in await take(one, 1)] == [{"mark": 7}]
        assert kinds(await take(blind, 3)) == ["core.lost", "core.ready", "agent.x"]

    asyncio.run(scene())


def test_a_slow_watcher_loses_the_oldest_and_is_told() -> None:
    async def scene() -> None:
        events = Events()
        watcher = events.subscribe([], 0, everything)
        for number in range(BACKLOG + 5):
            events.emit("tick", number=number)
        lost, first = await take(watcher, 2)
        assert (lost.kind, lost.data) == ("watch.lost", {"count": 5})
        assert first.data == {"number": 5}

    asyncio.run(scene())


def test_a_closed_subscription_ends_and_is_forgotten() -> None:
    async def scene() -> None:
        events = Events()
        watcher = events.subscribe([], 0, everything)
        waiting = asyncio.create_task(rest(watcher))
        await asyncio.sleep(0)
        watcher.close()
        assert await waiting == []
        events.emit("tick")
        assert await rest(watcher) == []

    asyncio.run(scene())


def test_watch_streams_until_cancelled(runtime_dir: Path) -> None:
    with Door(runtime_dir) as door:
        client = door.connect()
        watch = client.send(Watch(kinds=["tick"]))
        client.call(Ping())
        door.do(lambda: door.events.emit("tock"))
        door.do(lambda: door.events.emit("tick", n=1))
        reply = client.read()
        assert (reply.id, reply.more) == (watch, True)
        event = answer(reply, Event)
        assert (event.kind, event.data) == ("tick", {"n": 1})
        client.close()
        door.until(lambda: not door.events._subscriptions)
