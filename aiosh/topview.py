"""What `top` shows, apart from any terminal: the header, the order of rows, the keys. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aiosh import tables
from aiosh.ps import COLUMNS, elapsed
from aiosh.tables import Column

if TYPE_CHECKING:
    from aios import Agent, Core, Sched, SystemInfo


@dataclass(frozen=True)
class Picture:
    """The kernel at one moment."""

    agents: list[Agent]
    cores: list[Core]
    sched: Sched
    info: SystemInfo


ORDERS: Final[dict[str, tuple[str, Callable[[Agent], Any]]]] = {
    "P": ("tokens per second", lambda row: (-row.tokens_per_s, row.state != "R", row.aid)),
    "M": ("KV in RAM and on disk", lambda row: (-row.usage.kv_ram - row.usage.kv_disk, row.aid)),
    "C": ("tokens in and out", lambda row: (-row.usage.tokens_in - row.usage.tokens_out, row.aid)),
    "T": ("age", lambda row: (-elapsed(row), row.aid)),
    "N": ("aid", lambda row: row.aid),
    "I": ("nice", lambda row: (row.nice, row.aid)),
}
"""Sort keys: the letter typed, what it sorts by, and the key."""

KEYS: Final = [
    "up down     choose an agent",
    *(f"{key}           sort by {what}" for key, (what, _) in ORDERS.items()),
    "R           turn the order round",
    "k           kill: asks for the signal",
    "r           renice: asks for the nice value",
    "s  c        suspend, continue (resume)",
    "a           show ended agents too, or not",
    "+  -        refresh more slowly, faster",
    "space       refresh now",
    "q           quit",
]


def ordered(rows: list[Agent], order: str, *, turned: bool = False) -> list[Agent]:
    """Return rows in the order of a key."""
    return sorted(rows, key=ORDERS[order][1], reverse=turned)


def header(picture: Picture) -> list[str]:
    """Return the lines above the table: agents by state, policy, KV, one line for each core."""
    info, sched = picture.info, picture.sched
    states = Counter(row.state for row in picture.agents)
    counts = " ".join(f"{states[letter]} {word}" for letter, word in STATES if states[letter])
    limit = tables.size(info.kv_ram_limit) if info.kv_ram_limit else "no limit"
    return [
        f"aiosd {info.version} up {tables.span(info.uptime_s)}, {len(picture.agents)} agents"
        f"{': ' if counts else ''}{counts}",
        f"policy {sched.policy}, quantum {sched.quantum} tokens, {sched.preemptions} preemptions,"
        f" {info.requests} requests in flight",
        f"tokens {tables.count(info.tokens_in)} in, {tables.count(info.tokens_out)} out;"
        f" KV in RAM {tables.size(info.kv_ram)} of {limit}; kernel {tables.size(info.rss)}",
        *(_core(core) for core in picture.cores),
    ]


def columns() -> list[Column[Agent]]:
    """Return ps's columns, with what agents get of their core beside what is due to them."""
    at = next(n for n, column in enumerate(COLUMNS) if column.head == "RAM/DISK")
    return [*COLUMNS[:at], Column("GOT/DUE", _share, right=True), *COLUMNS[at:]]


def _share(row: Agent) -> str:
    return f"{row.share:.0%}/{row.due:.0%}" if row.share >= 0.005 or row.due else ""


STATES: Final = [
    ("R", "running"), ("Q", "queued"), ("S", "sleeping"), ("T", "stopped"), ("Z", "zombie"),
    ("X", "dead"),
]  # fmt: skip


def _core(core: Core) -> str:
    busy = "#" * min(core.running, 16) + "." * min(max(0, core.slots - core.running), 16)
    return (
        f"core {core.name}: {core.state} [{busy[:16]}] {core.running}/{core.slots} slots,"
        f" {core.queued} queued, {core.tokens_per_s:.1f} tok/s, KV {tables.size(core.kv_bytes)}"
    )
