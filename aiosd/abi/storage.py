"""System calls for storage: named, versioned objects that outlive agents."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from aiosd.abi.call import Call, Count, Key, Limit, Record, Text, syscall

ObjectName = Annotated[
    str, Meta(min_length=1, max_length=1024, description="a name, not a file path")
]
Metadata = Annotated[
    dict[str, Any], Meta(max_length=64, description="at most 64 fields, 16 KiB in all")
]
Pool = Annotated[
    str, Meta(max_length=64, description="a group's shared pool; empty: the agent's own")
]
Part = Annotated[bytes, Meta(max_length=4 << 20, description="at most 4 MiB at a time")]


class StoredObject(Record, frozen=True):
    """One version of an object. digest is the SHA-256 of its bytes.

    encrypted: its bytes are encrypted at rest, and its text can't be found by sto_search. Its
    digest is empty while the master key is missing.
    """

    name: str
    version: int
    size: int
    digest: str
    content_type: str
    metadata: dict[str, Any]
    created: float
    encrypted: bool = False


class StorageSpace(Record, frozen=True):
    """Bytes and objects allowed and used."""

    limit: int
    used: int
    objects: int


class Passage(Record, frozen=True):
    """A piece of an object found by a search."""

    name: str
    version: int
    start: int
    text: str
    score: float


@syscall(110, reply=StorageSpace, errors="EDQUOT", needs="storage")
class StoAlloc(Call, frozen=True):
    """Reserve storage for the calling agent."""

    size: Annotated[int, Meta(ge=0, le=1 << 50, description="bytes")]
    pool: Pool = ""


@syscall(111, reply=StoredObject, errors="EDQUOT ENOSPC ENOKEY", needs="storage")
class StoWrite(Call, frozen=True):
    """Write a new version of an object, in parts: all there with the last, or not at all."""

    name: ObjectName
    data: Part
    offset: Count = 0
    last: Annotated[bool, Meta(description="this part completes the object")] = True
    upload: Annotated[
        str, Meta(max_length=64, description="names an unfinished write of several parts")
    ] = ""
    content_type: Annotated[str, Meta(max_length=128)] = "application/octet-stream"
    metadata: Metadata = {}
    pool: Pool = ""
    key: Key = ""


@syscall(112, reply=StoredObject, chunk=bytes, errors="ENOENT ENOKEY", needs="storage")
class StoRead(Call, frozen=True):
    """Stream an object's bytes; version 0 is the newest."""

    name: ObjectName
    version: Count = 0
    offset: Count = 0
    size: Annotated[int, Meta(ge=0, description="bytes; 0: to the end")] = 0
    pool: Pool = ""


@syscall(113, reply=None, errors="ENOENT", needs="storage")
class StoDelete(Call, frozen=True):
    """Delete an object and its versions."""

    name: ObjectName
    pool: Pool = ""
    key: Key = ""


@syscall(114, reply=list[StoredObject], needs="storage")
class StoList(Call, frozen=True):
    """List objects whose names begin with a prefix."""

    prefix: Annotated[str, Meta(max_length=1024)] = ""
    limit: Limit = 1000
    pool: Pool = ""


@syscall(115, reply=list[StoredObject], errors="ENOENT", needs="storage")
class StoHistory(Call, frozen=True):
    """List the versions of an object, newest first."""

    name: ObjectName
    limit: Limit = 100
    pool: Pool = ""


@syscall(116, reply=StoredObject, errors="ENOENT", needs="storage")
class StoRollback(Call, frozen=True):
    """Make an older version of an object its newest again."""

    name: ObjectName
    version: Count
    pool: Pool = ""
    key: Key = ""


@syscall(117, reply=list[Passage], errors="ENODEV ETIMEDOUT", needs="storage")
class StoSearch(Call, frozen=True):
    """Find passages in stored objects by meaning, by words, or both.

    Not in those that are encrypted at rest: their words are nowhere but in the ciphertext.
    """

    query: Text
    k: Limit = 10
    mode: Annotated[str, Meta(max_length=16, description="vector, keyword or hybrid")] = "hybrid"
    prefix: Annotated[str, Meta(max_length=1024)] = ""
    pool: Pool = ""
