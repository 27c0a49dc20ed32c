"""System calls for working memory (an agent's life long) and semantic memory."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from aiosd.abi.call import Call, Count, Key, Limit, Record, Text, syscall

RecordKey = Annotated[str, Meta(min_length=1, max_length=256)]
Metadata = Annotated[
    dict[str, Any], Meta(max_length=64, description="at most 64 fields, 16 KiB in all")
]
Pool = Annotated[
    str, Meta(max_length=64, description="a group's shared pool; empty: the agent's own")
]


class Space(Record, frozen=True):
    """Bytes and records reserved and used."""

    limit: int
    used: int
    records: int


@syscall(90, reply=Space, errors="ENOMEM", needs="memory")
class MemAlloc(Call, frozen=True):
    """Reserve working memory for the calling agent."""

    size: Annotated[int, Meta(ge=0, le=1 << 40, description="bytes")]


@syscall(91, reply=Space, errors="ENOMEM", needs="memory")
class MemWrite(Call, frozen=True):
    """Write a record to working memory; it is not durable."""

    name: RecordKey
    value: Annotated[bytes, Meta(max_length=1 << 20)]


@syscall(92, reply=bytes, errors="ENOENT", needs="memory")
class MemRead(Call, frozen=True):
    """Read a record of working memory."""

    name: RecordKey


@syscall(93, reply=Space, errors="ENOENT", needs="memory")
class MemClear(Call, frozen=True):
    """Remove a record of working memory, or all of them."""

    name: Annotated[str, Meta(max_length=256, description="empty: all")] = ""


class Memory(Record, frozen=True):
    """A record of semantic memory; score is set in search results only."""

    id: int
    text: str
    metadata: dict[str, Any]
    created: float
    score: float = 0.0


@syscall(94, reply=Memory, errors="EDQUOT", needs="memory")
class AddMemory(Call, frozen=True):
    """Remember a text, durably."""

    text: Text
    metadata: Metadata = {}
    pool: Pool = ""
    key: Key = ""


@syscall(95, reply=Memory, errors="ENOENT", needs="memory")
class GetMemory(Call, frozen=True):
    """Return one remembered text."""

    id: Count


@syscall(96, reply=Memory, errors="ENOENT EDQUOT", needs="memory")
class UpdateMemory(Call, frozen=True):
    """Replace a remembered text or its metadata."""

    id: Count
    text: Annotated[str, Meta(max_length=1 << 20)] | None = None
    metadata: Annotated[dict[str, Any], Meta(max_length=64)] | None = None
    key: Key = ""


@syscall(97, reply=None, errors="ENOENT", needs="memory")
class DeleteMemory(Call, frozen=True):
    """Forget a remembered text."""

    id: Count
    key: Key = ""


@syscall(98, reply=list[Memory], errors="ENODEV ETIMEDOUT", needs="memory")
class SearchMemory(Call, frozen=True):
    """Find remembered texts by meaning, by words, or both."""

    query: Text
    k: Limit = 10
    mode: Annotated[str, Meta(max_length=16, description="vector, keyword or hybrid")] = "hybrid"
    metadata: Metadata = {}
    since: Annotated[float, Meta(ge=0)] = 0.0
    until: Annotated[float, Meta(ge=0)] = 0.0
    pool: Pool = ""
