"""System calls about the kernel as a whole: ping, sysinfo, watch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, Protocol

from aiosd.abi import LEVEL
from aiosd.abi.system import CallStatistics, Ping, Pong, Sysinfo, SystemInfo, Watch
from aiosd.access import Access, Caller
from aiosd.events import Events
from aiosd.session import Stream

VERSION: Final = "0.1.0"

_COUNTS: Final = (
    "connections", "requests", "preemptions", "tokens_in", "tokens_out", "kv_ram", "kv_ram_limit",
    "kv_disk", "kv_disk_limit",
)  # fmt: skip
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class About:
    """What does not change while the kernel runs."""

    boot_id: str
    socket: str
    state_dir: str
    config: str


class Ledger(Protocol):
    """What the dispatcher knows of the calls."""

    def missing(self) -> list[str]:
        """Return the names of the calls that have no handler."""

    def statistics(self) -> list[CallStatistics]:
        """Return the numbers of every call that was made."""


class System:
    """The kernel's account of itself.

    figures: gives the fields of SystemInfo that other parts know; what it lacks is shown as 0.
    """

    def __init__(
        self,
        about: About,
        ledger: Ledger,
        events: Events,
        access: Access,
        figures: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._about = about
        self._ledger = ledger
        self._events = events
        self._access = access
        self._figures = figures
        self._born = monotonic()

    def sys_ping(self, caller: Caller, args: Ping) -> Pong:
        """Answer with the same payload."""
        return Pong(args.payload)

    def sys_sysinfo(self, caller: Caller, args: Sysinfo) -> SystemInfo:
        """Describe the kernel."""
        known: dict[str, Any] = dict.fromkeys(_COUNTS, 0) | {"agents": {}}
        known.update(self._figures())
        return SystemInfo(
            version=VERSION,
            level=LEVEL,
            boot_id=self._about.boot_id,
            pid=os.getpid(),
            uptime_s=monotonic() - self._born,
            socket=self._about.socket,
            state_dir=self._about.state_dir,
            config=self._about.config,
            rss=resident(),
            missing=self._ledger.missing(),
            calls=self._ledger.statistics(),
            **known,
        )

    async def sys_watch(self, caller: Caller, args: Watch, stream: Stream) -> None:
        """Stream events until cancelled."""
        subscription = self._events.subscribe(
            args.kinds, args.aid, lambda aid: self._access.may_see(caller, aid)
        )
        try:
            async for event in subscription:
                await stream.send(event)
        finally:
            subscription.close()


def resident() -> int:
    """Return the bytes of memory that this process holds (RSS)."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * _PAGE
