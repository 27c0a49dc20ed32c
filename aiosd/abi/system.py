"""System calls about the kernel itself: hello, ping, sysinfo, watch, cancel."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from aiosd.abi.call import Call, Credential, Record, syscall


class Welcome(Record, frozen=True):
    """The kernel's answer to hello."""

    level: int
    version: str
    pid: int
    uid: int
    boot_id: str
    max_frame: int
    aid: int = 0
    credential: str = ""


@syscall(0, reply=Welcome, errors="EPROTO EACCES")
class Hello(Call, frozen=True):
    """Open a connection: the first call on it, and only once.

    Says which ABI level the caller speaks and, with a credential, which agent it is. A one-time
    credential (from spawn) is used up; the answer carries the one to re-attach with.
    """

    level: Annotated[int, Meta(ge=1, le=1_000_000, description="ABI level the caller speaks")]
    client: Annotated[str, Meta(max_length=128, description="program and version, for logs")] = ""
    credential: Credential = ""


class Pong(Record, frozen=True):
    """The payload of a ping."""

    payload: bytes = b""


@syscall(1, reply=Pong)
class Ping(Call, frozen=True):
    """Answer at once with the same payload."""

    payload: Annotated[bytes, Meta(max_length=65_536, description="at most 64 KiB")] = b""


class CallStatistics(Record, frozen=True):
    """How often a call was made and how it went; seconds are in the handler."""

    name: str
    calls: int
    errors: int
    seconds: float
    slowest_s: float


class SystemInfo(Record, frozen=True):
    """What the kernel is and what it does just now; sizes in bytes."""

    version: str
    level: int
    boot_id: str
    pid: int
    uptime_s: float
    socket: str
    state_dir: str
    config: str
    rss: int
    connections: int
    agents: dict[str, int]
    requests: int
    preemptions: int
    tokens_in: int
    tokens_out: int
    kv_ram: int
    kv_ram_limit: int
    missing: list[str]
    calls: list[CallStatistics]
    kv_disk: int = 0
    kv_disk_limit: int = 0


@syscall(2, reply=SystemInfo)
class Sysinfo(Call, frozen=True):
    """Describe the kernel, its load, its statistics per call, and the calls it lacks."""


class Event(Record, frozen=True):
    """One thing that happened. kind is a dotted name such as agent.exit or core.lost."""

    t: float
    kind: str
    aid: int = 0
    data: dict[str, Any] = {}


@syscall(3, reply=None, chunk=Event)
class Watch(Call, frozen=True):
    """Stream events as they happen until cancelled; others' events only where permitted."""

    kinds: Annotated[
        list[Annotated[str, Meta(max_length=64)]],
        Meta(max_length=32, description="prefixes of event kinds to be told of; empty: all"),
    ] = []
    aid: Annotated[int, Meta(ge=0, description="only this agent's events; 0: all")] = 0


@syscall(4, reply=None, errors="ESRCH")
class Cancel(Call, frozen=True):
    """Cancel one of this connection's own requests in flight.

    A generation ends with the text it has and finish_reason "cancelled"; any other request
    answers ECANCELED.
    """

    id: Annotated[int, Meta(ge=0, description="the id in the request's header")]


class Sample(Record, frozen=True):
    """One number of a metric. name: the metric's own, or for a histogram with _bucket, _sum or
    _count; a bucket's label `le` is its upper bound."""

    name: str
    value: float
    labels: dict[str, str] = {}


class Metric(Record, frozen=True):
    """A metric: kind is counter, gauge or histogram, text says what it counts, in which unit."""

    name: str
    kind: str
    text: str
    samples: list[Sample] = []


@syscall(138, reply=list[Metric], since=2)
class ReadMetrics(Call, frozen=True):
    """Read the kernel's metrics: requests, tokens, queues, KV, preemptions, errors.

    They begin at nought when the kernel starts, and name calls, cores and tools, but no agent.
    """


class Gateway(Record, frozen=True):
    """Where programs that know nothing of AIOS are served over HTTP.

    http: the address, as http://127.0.0.1:PORT, "" for none; socket: the Unix socket. state: off,
    listening (its process is started by the first connection), starting, ready, or waiting until
    it may be started again. restarts: how often it ended without being told to. reason: why it is
    off, or ended last.
    """

    state: str
    http: str = ""
    socket: str = ""
    pid: int = 0
    since: float = 0.0
    restarts: int = 0
    reason: str = ""


@syscall(139, reply=Gateway, since=2)
class GetGateway(Call, frozen=True):
    """Say where the gateway listens, and how it is."""
