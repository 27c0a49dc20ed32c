"""What happens in the kernel, told to whoever watches.

    events.emit("agent.exit", aid, code=0)
    subscription = events.subscribe(["agent."], 0, sees)
    async for event in subscription: ...
    subscription.close()

Events are for watching, not for keeping: history is in the database. An emitter never waits; a
watcher that is too slow loses the oldest events and is told how many it lost.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from time import time
from typing import Any, Final

from aiosd.abi.system import Event

BACKLOG: Final = 1024
"""Events kept for a watcher that is behind."""

Sees = Callable[[int], bool]


class Subscription:
    """One watcher's events, oldest first. Iterate; `close` when done."""

    def __init__(self, events: Events, kinds: Iterable[str], aid: int, sees: Sees) -> None:
        self._events = events
        self._kinds = tuple(kinds) or ("",)
        self._aid = aid
        self._sees = sees
        self._queue: deque[Event] = deque()
        self._lost = 0
        self._came = asyncio.Event()
        self._closed = False

    def offer(self, event: Event) -> None:
        """Queue an event when this watcher wants it and may see it."""
        if self._aid and event.aid != self._aid:
            return
        if not event.kind.startswith(self._kinds) or (event.aid and not self._sees(event.aid)):
            return
        if len(self._queue) == BACKLOG:
            self._queue.popleft()
            self._lost += 1
        self._queue.append(event)
        self._came.set()

    def close(self) -> None:
        """Watch no longer; a waiting iteration ends."""
        self._closed = True
        self._events.forget(self)
        self._came.set()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        while not self._queue:
            if self._closed:
                raise StopAsyncIteration
            self._came.clear()
            await self._came.wait()
        if self._lost:
            lost, self._lost = self._lost, 0
            return Event(time(), "watch.lost", 0, {"count": lost})
        return self._queue.popleft()


class Events:
    """Where events are emitted and subscribed to."""

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()
        self.witness: Callable[[str, int, dict[str, Any]], None] | None = None
        """Told of every event before the watchers, for the record; must neither wait nor raise."""

    def emit(self, kind: str, aid: int = 0, /, **data: Any) -> None:
        """Tell the watchers that something happened; aid 0: to the kernel, so anyone may know."""
        if self.witness is not None:
            self.witness(kind, aid, data)
        if not self._subscriptions:
            return
        event = Event(time(), kind, aid, data)
        for subscription in list(self._subscriptions):
            subscription.offer(event)

    def subscribe(self, kinds: Iterable[str], aid: int, sees: Sees) -> Subscription:
        """Begin to watch events whose kind has one of the prefixes (none: all kinds).

        aid: only this agent's (0: all). sees: whether the watcher may see an agent's events.
        """
        subscription = Subscription(self, kinds, aid, sees)
        self._subscriptions.add(subscription)
        return subscription

    def forget(self, subscription: Subscription) -> None:
        """Take a subscription off the list."""
        self._subscriptions.discard(subscription)
