"""What the routes share: the settings, and one kernel connection for each key.

    office = Office(setup)
    async with office.caller(request.headers) as kernel:      # an aios.AsyncKernel
        reply = await kernel.llm_generate(...)

What must hold: a key is never kept longer than its connection; connections are bounded, those that
are idle make room; and a key that the kernel does not know takes nothing from those that it does.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from time import monotonic
from typing import Any, Final

from starlette.datastructures import Headers

import aios

from .absence import explained
from .refusal import Refusal
from .setup import Setup

IDLE_S: Final = 60.0
"""Seconds after its last request that a connection stays open."""
SWEEP_S: Final = 5.0
RECONNECT_S: Final = 5.0
"""Seconds that a request waits for a kernel which is away."""
CORES_S: Final = 1.0
"""Seconds that a list of cores is taken for the present one."""
STRANGERS: Final = 16
"""Keys that may be tried at the same time."""
LONGEST_KEY: Final = 128


class _Line:
    """One kernel connection, and how many requests use it."""

    def __init__(self, kernel: aios.AsyncKernel) -> None:
        self.kernel = kernel
        self.users = 0
        self.idle_since = 0.0
        self.opening: asyncio.Lock | None = asyncio.Lock()


class Office:
    """The one of this process. busy: requests under way. background: what runs while it serves."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.busy = 0
        self.background: list[Callable[[], AbstractAsyncContextManager[Any]]] = []
        self._lines: dict[str, _Line] = {}  # by key, the longest unused first
        self._strangers = asyncio.Semaphore(STRANGERS)
        self._sweeping: asyncio.TimerHandle | None = None
        self._cores: tuple[float, list[str]] = (0.0, [])

    async def cores(self, kernel: aios.AsyncKernel) -> list[str]:
        """Return the names of all cores, as they were a moment ago."""
        until, names = self._cores
        if monotonic() > until:
            cores = await kernel.list_cores()
            names = [core.name for core in cores if core.kind != "tool"]
            self._cores = monotonic() + CORES_S, names
        return names

    @asynccontextmanager
    async def caller(self, headers: Headers) -> AsyncIterator[aios.AsyncKernel]:
        """Give the connection of whoever a request is from. Raises Refusal, OSError."""
        key = key_of(headers)
        line = await self._line(key)
        line.users += 1
        try:
            yield line.kernel
        except OSError as error:
            if error.errno == errno.ENODEV:
                raise await explained(line.kernel, error) from None
            raise
        finally:
            line.users -= 1
            line.idle_since = monotonic()
            if self._lines.get(key) is line:  # it was used last now
                self._lines[key] = self._lines.pop(key)
            self._sweep_later()

    async def close(self) -> None:
        """Close every connection."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        lines, self._lines = self._lines, {}
        for line in lines.values():
            await line.kernel.close()

    # Inside.

    async def _line(self, key: str) -> _Line:
        line = self._lines.get(key)
        if line is None or line.kernel.closed:
            self._make_room()
            kernel = aios.connect_async(self.setup.kernel, None, key, reconnect=RECONNECT_S)
            line = self._lines[key] = _Line(kernel)
        if line.opening is not None:
            await self._open(key, line)
        return line

    async def _open(self, key: str, line: _Line) -> None:
        """Have the kernel say whose key it is; whoever comes meanwhile waits for that."""
        lock = line.opening
        assert lock is not None
        async with lock, self._strangers:
            if line.opening is None:
                return
            try:
                await line.kernel
            except OSError as error:
                if self._lines.get(key) is line:
                    del self._lines[key]
                await line.kernel.close()
                if error.errno == errno.EACCES:
                    raise Refusal(401, "this key is not valid: its agent has ended, or it never "
                                  "was one", code="invalid_api_key") from None  # fmt: skip
                raise
            line.opening = None

    def _make_room(self) -> None:
        if len(self._lines) < self.setup.max_keys:
            return
        for key, line in self._lines.items():
            if not line.users and line.opening is None:
                self._drop(key)
                return
        raise Refusal(
            503, f"{self.setup.max_keys} agents are served ([gateway] max_keys); come back later",
            retry_after=1.0,
        )  # fmt: skip

    def _sweep_later(self) -> None:
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        """Close what nobody has used for a while, and what the kernel has hung up on."""
        self._sweeping = None
        now = monotonic()
        for key, line in list(self._lines.items()):
            idle = not line.users and line.opening is None and now - line.idle_since > IDLE_S
            if idle or line.kernel.closed:
                self._drop(key)
        if self._lines:
            self._sweep_later()

    def _drop(self, key: str) -> None:
        line = self._lines.pop(key)
        task = asyncio.get_running_loop().create_task(line.kernel.close())
        task.add_done_callback(lambda done: done.cancelled() or done.exception())


def key_of(headers: Headers) -> str:
    """Return the key of a request: `Authorization: Bearer KEY`. Raises Refusal."""
    kind, _, key = headers.get("authorization", "").partition(" ")
    key = key.strip() or headers.get("x-api-key", "").strip()
    if not key or (kind and kind.lower() != "bearer"):
        sentence = (
            "no key: programs that `aiosctl run` starts find theirs in OPENAI_API_KEY and send it "
            "as `Authorization: Bearer KEY`"
        )
        raise Refusal(401, sentence, code="invalid_api_key")
    if len(key) > LONGEST_KEY or not key.isascii():
        raise Refusal(401, "this is no key of an agent", code="invalid_api_key")
    return key
