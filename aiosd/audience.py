"""The audience: who follows agents' generations by `attach`, each at its own pace.

What must hold: nobody who watches holds up a generation or the kernel; who is more than
WATCHED_MOST pieces behind loses the oldest.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

from aiosd.abi.process import Attach, Watched
from aiosd.access import Caller

if TYPE_CHECKING:
    from aiosd.proc import ProcessTable
    from aiosd.session import Stream

WATCHED_MOST: Final = 4096  # pieces that a slow watcher may be behind


class Watcher:
    """Pieces of an agent's generations on their way to one `attach`."""

    def __init__(self) -> None:
        self._pieces: deque[Watched] = deque(maxlen=WATCHED_MOST)
        self._news = asyncio.Event()
        self._closed = False

    def put(self, piece: Watched) -> None:
        """Add a piece."""
        self._pieces.append(piece)
        self._news.set()

    def close(self) -> None:
        """There will be no more."""
        self._closed = True
        self._news.set()

    async def get(self) -> Watched | None:
        """Return the next piece, or None after the last."""
        while not self._pieces:
            if self._closed:
                return None
            self._news.clear()
            await self._news.wait()
        return self._pieces.popleft()


class Audience:
    """All watchers, by the agent that they watch."""

    def __init__(self, table: ProcessTable) -> None:
        self._table = table
        self._of: dict[int, set[Watcher]] = {}

    def _join(self, aid: int) -> Watcher:
        """Begin to watch an agent; whoever watches must leave."""
        watcher = Watcher()
        self._of.setdefault(aid, set()).add(watcher)
        return watcher

    def _leave(self, aid: int, watcher: Watcher) -> None:
        """Watch no longer."""
        mine = self._of.get(aid, set())
        mine.discard(watcher)
        if not mine:
            self._of.pop(aid, None)

    def tell(self, aid: int, cid: int, text: str, finish: str = "", prompt_tokens: int = 0) -> None:
        """Give a piece to all who watch an agent."""
        watchers = self._of.get(aid)
        if watchers:
            piece = Watched(aid, cid, text, finish, prompt_tokens)
            for watcher in watchers:
                watcher.put(piece)

    def close(self, aid: int) -> None:
        """An agent has ended: those who watch it get what there is, and the end."""
        for watcher in self._of.pop(aid, ()):
            watcher.close()

    async def sys_attach(self, caller: Caller, args: Attach, stream: Stream) -> None:
        """Stream what an agent's requests produce until it ends."""
        aid = self._table.get(args.aid).aid
        watcher = self._join(aid)
        try:
            while (piece := await watcher.get()) is not None:
                await stream.send(piece)
        finally:
            self._leave(aid, watcher)
