"""System calls for access, audit, encryption, quotas and usage."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from aiosd.abi.call import Call, Count, Key, Limit, Record, syscall

Subject = Annotated[
    str, Meta(min_length=1, max_length=64, description="agent:AID, group:NAME or uid:UID")
]
Object = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=64,
        description="agent:AID, group:NAME (its members, or its pool), uid:UID (that user's"
        " agents), or kernel",
    ),
]


class GrantRecord(Record, frozen=True):
    """A capability given to a subject on an object; expires 0 never does."""

    id: int
    subject: str
    capability: str
    object: str
    mode: str
    by: str
    created: float
    expires: float


@syscall(140, reply=GrantRecord, errors="EEXIST", needs="grant")
class Grant(Call, frozen=True):
    """Give a subject a capability on an object.

    As a subject uid:UID is the person, not his agents. `member` on group:NAME makes an agent and
    all its descendants members of a group, which belongs to whoever first did that.
    """

    subject: Subject
    capability: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=64,
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$",
            description="of a call (signal, observe, context, message, ...), or member,"
            " pool.read, pool.write",
        ),
    ]
    object: Object
    mode: Annotated[
        str, Meta(max_length=8, description="allow, or ask: each use waits for approval")
    ] = "allow"
    expires: Annotated[float, Meta(ge=0, description="Unix time; 0: never")] = 0.0
    key: Key = ""


@syscall(141, reply=None, errors="ENOENT", needs="grant")
class Revoke(Call, frozen=True):
    """Take a grant back."""

    id: Count
    key: Key = ""


@syscall(142, reply=list[GrantRecord])
class ListGrants(Call, frozen=True):
    """List the grants that the caller gave or has."""

    subject: Annotated[str, Meta(max_length=64)] = ""


@syscall(143, reply=None, errors="ENOENT", needs="grant")
class Approve(Call, frozen=True):
    """Answer a request that waits for approval; who may grant on its object may."""

    id: Count
    allow: bool
    key: Key = ""


class Pending(Record, frozen=True):
    """A request that waits for somebody's approval."""

    id: int
    aid: int
    capability: str
    object: str
    t: float
    expires: float
    uid: int = 0
    call: str = ""


@syscall(144, reply=list[Pending])
class ListPending(Call, frozen=True):
    """List the requests that the caller may approve."""


class AuditRecord(Record, frozen=True):
    """One link of the audit chain."""

    id: int
    t: float
    uid: int
    aid: int
    kind: str
    data: dict[str, Any]
    digest: str


@syscall(145, reply=None, chunk=list[AuditRecord], needs="audit")
class ReadAudit(Call, frozen=True):
    """Stream the audit log, oldest first; follow goes on until cancelled.

    Root and the daemon's owner see all of it, another person what concerns his uid, an agent
    nothing unless `audit` is granted to it.
    """

    since: Annotated[int, Meta(ge=0, le=2**53, description="only records after this id")] = 0
    kind: Annotated[str, Meta(max_length=64, description="prefix of the kind: access.deny")] = ""
    aid: Annotated[
        int, Meta(ge=0, le=2**53, description="only what this agent did or what was done to it")
    ] = 0
    follow: bool = False


@syscall(146, reply=bytes, needs="encrypt")
class EncryptData(Call, frozen=True):
    """Encrypt bytes under the calling agent's key, or the person's."""

    data: Annotated[bytes, Meta(max_length=4 << 20)]


@syscall(147, reply=bytes, errors="EBADMSG", needs="encrypt")
class DecryptData(Call, frozen=True):
    """Decrypt what encrypt_data gave the same agent, or the same person."""

    data: Annotated[bytes, Meta(max_length=5 << 20)]


class Quota(Record, frozen=True):
    """One limit of a subject: what it counts, how far it is used, when it resets.

    reserved: by requests in flight, at worst. resets: Unix time, 0 never; period: seconds. by: who
    set it, root standing for the daemon's owner too.
    """

    subject: str
    resource: str
    limit: float
    hard: bool
    used: float
    reserved: float
    resets: float
    period: float = 0.0
    by: str = ""


@syscall(148, reply=list[Quota], errors="ESRCH")
class GetQuota(Call, frozen=True):
    """Return the limits that bind a subject; empty: the caller.

    An agent is bound by its own limits and by those of its forebears, its uid and its groups.
    """

    subject: Annotated[str, Meta(max_length=64)] = ""


@syscall(149, reply=Quota, errors="ESRCH ENOENT EDQUOT", needs="admin")
class SetQuota(Call, frozen=True):
    """Set a limit for a subject: an agent with all that descends from it, a group, or a uid.

    Who may: root and the daemon's owner; a person for his uid, his agents and his groups; an agent
    for those below it, never for itself. Limits that several set on one thing all hold. A hard
    limit refuses with EDQUOT, a soft one is told as the event quota.over.
    """

    subject: Subject
    resource: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=64,
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$",
            description="tokens, dollars, requests, tool_calls (used up), concurrent, children,"
            " kv_bytes, working_bytes, memory_records, memory_bytes, storage_objects,"
            " storage_bytes (held)",
        ),
    ]
    limit: Annotated[float, Meta(ge=0)]
    hard: bool = True
    period: Annotated[
        float,
        Meta(ge=0, description="seconds until it resets, up to 366 days; 0: never"),
    ] = 0.0
    key: Key = ""
    remove: Annotated[bool, Meta(description="take the caller's limit away, root: anybody's")] = (
        False
    )


class UsageRow(Record, frozen=True):
    """What a subject used on a core or tool in a span of time."""

    subject: str
    core: str
    tool: str
    since: float
    until: float
    tokens_in: int
    tokens_out: int
    dollars: float
    requests: int


@syscall(150, reply=list[UsageRow], errors="ESRCH")
class GetUsage(Call, frozen=True):
    """Break down what was used, by core, tool and time; of an agent with all that descends from it.

    By agent and by uid there is a row for each that has used something; the subject kernel is all
    of them, for the daemon's owner and root. By group there is one for each that the caller sees.

    What requests in flight use is not in it yet. Days are UTC's, and count whole.
    """

    subject: Annotated[str, Meta(max_length=64)] = ""
    since: Annotated[float, Meta(ge=0)] = 0.0
    by: Annotated[str, Meta(max_length=16, description="core, tool, day, agent, uid or group")] = (
        "core"
    )
    limit: Limit = 1000
