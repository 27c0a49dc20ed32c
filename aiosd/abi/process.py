"""System calls about agents as processes."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from aiosd.abi.call import (
    Aid,
    Call,
    Credential,
    Key,
    Limit,
    Name,
    Nice,
    Record,
    syscall,
)

Argument = Annotated[str, Meta(max_length=131_072)]
Argv = Annotated[list[Argument], Meta(max_length=1024, description="program and its arguments")]
Environment = Annotated[
    dict[Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^[^=\x00]+$")], Argument],
    Meta(max_length=512, description="environment variables to add"),
]


class Usage(Record, frozen=True):
    """What an agent has used up: tokens, dollars, seconds, bytes."""

    tokens_in: int = 0
    tokens_out: int = 0
    cached_tokens: int = 0
    requests: int = 0
    dollars: float = 0.0
    kv_ram: int = 0
    kv_disk: int = 0
    cpu_s: float = 0.0
    waiting_s: float = 0.0
    turnaround_s: float = 0.0


class Agent(Record, frozen=True):
    """A row of the process table.

    state: R running on a core, Q runnable and queued, S sleeping, T stopped, Z zombie, X dead.
    waiting: the wait channel, such as "core", "program", "reader". queue: place among the queued,
    0 is next, -1 when not queued. slot: -1 when in none. pid: 0 when it has no process of ours.
    share: the part (0 to 1) of its core's tokens, of prompts and replies, that it has got in the
    last seconds; due: the part that fair shares would give it now.
    """

    aid: int
    parent: int
    name: str
    uid: int
    gid: int
    groups: list[str]
    kind: str
    program: str
    argv: list[str]
    pid: int
    state: str
    nice: int
    core: str
    slot: int
    waiting: str
    queue: int
    note: str
    created: float
    started: float
    ended: float
    exit_code: int | None
    exit_signal: int | None
    exit_reason: str
    tokens_per_s: float
    usage: Usage
    share: float = 0.0
    due: float = 0.0


class Started(Record, frozen=True):
    """A new agent. The credential is empty where the agent's process got it directly."""

    aid: int
    pid: int = 0
    credential: str = ""


@syscall(20, reply=Started, errors="ENOENT EACCES ENOEXEC EMFILE EDQUOT", needs="spawn")
class Spawn(Call, frozen=True):
    """Run a program as an agent: a new OS process under this kernel.

    argv[0] is a file, a name on the agent path, or a command on PATH. Answered once the program
    runs, or with the reason why it can't.
    """

    argv: Annotated[
        list[Argument], Meta(min_length=1, max_length=1024, description="program and arguments")
    ]
    name: Annotated[
        str,
        Meta(
            max_length=64,
            pattern=r"^([A-Za-z0-9][A-Za-z0-9._:-]*)?$",
            description="name shown by ps; the program's by default",
        ),
    ] = ""
    cwd: Annotated[str, Meta(max_length=4096, description="working directory; absolute")] = ""
    env: Environment = {}
    nice: Nice = 0
    limits: Annotated[
        dict[str, Annotated[int, Meta(ge=0, le=2**62)]],
        Meta(
            max_length=16,
            description="resource limits by setrlimit's names: nofile, nproc, as, cpu, fsize, core",
        ),
    ] = {}
    sandbox: Annotated[bool, Meta(description="run it without ambient rights")] = False
    key: Key = ""


@syscall(21, reply=Started, errors="EEXIST EMFILE")
class RegisterAgent(Call, frozen=True):
    """Make the calling process an agent that this kernel did not start."""

    name: Name
    nice: Nice = 0
    key: Key = ""


class Identity(Record, frozen=True):
    """Who a connection is."""

    aid: int
    name: str
    parent: int
    uid: int
    pid: int


@syscall(22, reply=Identity, errors="EACCES")
class AuthenticateAgent(Call, frozen=True):
    """Say whether a credential is valid and whose it is, without becoming that agent."""

    credential: Credential


@syscall(23, reply=Started, errors="ESRCH EMFILE ENOENT EACCES ENOEXEC", needs="fork")
class Fork(Call, frozen=True):
    """Make a child with a copy of an agent's contexts and working state.

    With argv the child is a new process; without, the caller holds the child's credential and
    speaks for it.
    """

    aid: Aid
    argv: Argv = []
    name: Annotated[str, Meta(max_length=64)] = ""
    key: Key = ""


@syscall(24, reply=None, errors="ESRCH")
class Exit(Call, frozen=True):
    """End the calling agent with an exit status."""

    code: Annotated[int, Meta(ge=0, le=255, description="exit status")] = 0
    key: Key = ""


class ExitStatus(Record, frozen=True):
    """How an agent ended: code, or the signal that ended it, and why when neither tells."""

    aid: int
    code: int | None
    signal: int | None
    reason: str
    ended: float
    usage: Usage


@syscall(25, reply=ExitStatus | None, errors="ECHILD ESRCH ETIMEDOUT", needs="wait")
class Wait(Call, frozen=True):
    """Wait for a child (or, with rights, any agent) to end, and reap it.

    aid 0 waits for any child. timeout 0 answers None at once when none has ended yet.
    """

    aid: Annotated[int, Meta(ge=0, description="agent id; 0: any child")] = 0
    timeout: Annotated[float, Meta(description="seconds; none: for ever")] | None = None
    reap: Annotated[bool, Meta(description="False leaves the zombie in place")] = True
    key: Key = ""


@syscall(26, reply=None, errors="ESRCH", needs="signal")
class Kill(Call, frozen=True):
    """Send a signal to an agent, with Unix meaning.

    INT and TERM end its generation keeping the partial text, then reach its process; KILL ends it
    at once; STOP and TSTP suspend; CONT resumes; HUP reaches its process.
    """

    aid: Aid
    signal: Annotated[
        str, Meta(min_length=1, max_length=16, description="name, with or without SIG, or number")
    ] = "TERM"
    generation: Annotated[
        bool, Meta(description="INT only: end the current generation, leave the process alone")
    ] = False
    key: Key = ""


@syscall(27, reply=None, errors="ESRCH", needs="signal")
class SuspendAgent(Call, frozen=True):
    """Suspend an agent: generation stops between two tokens, its processes get SIGSTOP."""

    aid: Aid


@syscall(28, reply=None, errors="ESRCH", needs="signal")
class ResumeAgent(Call, frozen=True):
    """Resume a suspended agent; its generation goes on with the very next token."""

    aid: Aid


@syscall(29, reply=list[Agent])
class ListAgents(Call, frozen=True):
    """List the process table."""

    all: Annotated[bool, Meta(description="ended agents too, as far as they are kept")] = False
    aid: Annotated[int, Meta(ge=0, description="only this one; 0: every one")] = 0
    limit: Limit = 1000


@syscall(30, reply=Identity, errors="ESRCH")
class GetAid(Call, frozen=True):
    """Say which agent the caller is."""


@syscall(31, reply=Identity, errors="EACCES ESRCH")
class SetAid(Call, frozen=True):
    """Re-attach this connection to an agent by its credential."""

    aid: Aid
    credential: Credential


class Status(Record, frozen=True):
    """An agent's state letter and its own note."""

    aid: int
    state: str
    note: str
    waiting: str


@syscall(32, reply=Status, errors="ESRCH")
class GetStatus(Call, frozen=True):
    """Say in which state an agent is."""

    aid: Aid


@syscall(33, reply=None, errors="ESRCH")
class SetStatus(Call, frozen=True):
    """Set an agent's own note, or "suspended"/"running" where the caller may signal it."""

    aid: Aid
    status: Annotated[
        str,
        Meta(max_length=256, description='"suspended", "running", or a note of the agent itself'),
    ]


class Priority(Record, frozen=True):
    """An agent's nice value."""

    aid: int
    nice: int


@syscall(34, reply=Priority, errors="ESRCH")
class GetPriority(Call, frozen=True):
    """Return an agent's nice value."""

    aid: Aid


@syscall(35, reply=Priority, errors="ESRCH EACCES", needs="signal")
class SetPriority(Call, frozen=True):
    """Set an agent's nice value; lowering it below what it was needs the daemon's owner or root."""

    aid: Aid
    nice: Nice


class SchedRow(Record, frozen=True):
    """One schedulable request in a core's run queue.

    place: 0 is next, -1 while it runs. used: tokens of its quantum that are spent. level: under
    mlfq and priority, 0 is the best. virtual: under fair, its agent's tokens by weight, ahead of
    (negative: behind) the agent that was last given a slot. width: slots that it needs. state S:
    it waits until the requests on the contexts in `after` have ended.
    """

    aid: int
    cid: int
    core: str
    state: str
    nice: int
    place: int
    used: int
    level: int = 0
    virtual: float = 0.0
    width: int = 1
    after: list[int] = []


class Sched(Record, frozen=True):
    """The scheduling policy, its options and its queues.

    options: the numbers of [sched] in aiosd.toml(5) that this policy uses beside the quantum.
    """

    policy: str
    quantum: int
    policies: list[str]
    preemptions: int
    rows: list[SchedRow]
    options: dict[str, float] = {}


@syscall(36, reply=Sched)
class GetSched(Call, frozen=True):
    """Return the scheduling policy and its queues."""


@syscall(37, reply=Sched, needs="admin")
class SetSched(Call, frozen=True):
    """Change the scheduling policy while running; nothing in flight is lost."""

    policy: Annotated[
        str, Meta(max_length=32, description="fifo, rr, priority, mlfq or fair; empty: unchanged")
    ] = ""
    quantum: Annotated[int, Meta(ge=0, le=1_000_000, description="tokens; 0: unchanged")] = 0
    options: Annotated[
        dict[str, Annotated[float, Meta(ge=0, le=1e12)]],
        Meta(
            max_length=8,
            description="numbers of [sched] by name, as levels or credit",
        ),
    ] = {}


@syscall(38, reply=None, errors="ESRCH", needs="signal")
class UpdateAgentConfig(Call, frozen=True):
    """Change an agent's name or the context settings it starts requests with."""

    aid: Aid
    name: Annotated[
        str,
        Meta(
            max_length=64,
            pattern=r"^([A-Za-z0-9][A-Za-z0-9._:-]*)?$",
            description="new name; empty: unchanged",
        ),
    ] = ""
    max_tokens: Annotated[
        int,
        Meta(ge=0, le=1_000_000, description="default max_tokens of its requests; 0: unchanged"),
    ] = 0


class Watched(Record, frozen=True):
    """A piece of another agent's generation: text as it came, or the start or end of a request."""

    aid: int
    cid: int
    text: str
    finish: str = ""
    prompt_tokens: int = 0


@syscall(39, reply=None, errors="ESRCH", needs="observe", chunk=Watched)
class Attach(Call, frozen=True):
    """Stream the tokens that an agent's requests produce, as they come, until it ends."""

    aid: Aid


class LogRecord(Record, frozen=True):
    """A piece of an agent's output; stream is "out", "err" or "log" (from log_event)."""

    t: float
    stream: str
    text: str


@syscall(40, reply=None, errors="ESRCH", needs="observe", chunk=list[LogRecord])
class ReadLog(Call, frozen=True):
    """Stream an agent's captured output, oldest first; follow goes on until it ends."""

    aid: Aid
    tail: Annotated[
        int, Meta(ge=0, le=1_000_000, description="only the last this many records; 0: all")
    ] = 0
    follow: Annotated[bool, Meta(description="go on as output comes, until the agent ends")] = False


@syscall(41, reply=None, errors="ESRCH")
class LogEvent(Call, frozen=True):
    """Record an event of the calling agent in its history."""

    kind: Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[a-z0-9_.-]+$")]
    data: Annotated[
        dict[str, Any], Meta(max_length=64, description="at most 64 fields, 64 KiB in all")
    ] = {}
    key: Key = ""


class Happening(Record, frozen=True):
    """A record of an agent's history. Of kind interaction: data has the fields of Interaction."""

    id: int
    t: float
    aid: int
    kind: str
    data: dict[str, Any]


class Interaction(Record, frozen=True):
    """A request that ended and its reply, as they are kept.

    id counts those of the history, t is when it ended. prompt or messages: what was asked, as role
    and content; redacted and cut as [history] in aiosd.toml(5) says, and then they say so. Where
    only digests are kept, asked_digest and reply_digest are the SHA-256 of the texts.
    """

    id: int
    t: float
    aid: int
    request: int
    context: int
    core: str
    submitted: float
    finish_reason: str
    reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt: str = ""
    messages: list[dict[str, str]] = []
    reply: str = ""
    asked_digest: str = ""
    reply_digest: str = ""


@syscall(42, reply=list[Happening], errors="ESRCH", needs="observe")
class QueryHistory(Call, frozen=True):
    """Return recorded events of agents: starts, ends, state changes, requests, own events.

    With kind interaction, or with text, cid, core, finish or request, it returns what agents asked
    and were answered instead. The newest that match, oldest first. The texts of one answer have at
    most 2 MiB: go on with before, the id of the first, until nothing comes.
    """

    aid: Annotated[int, Meta(ge=0, description="agent id; 0: all that the caller may see")] = 0
    kind: Annotated[
        str,
        Meta(max_length=64, description="prefix of the kind; empty: all events"),
    ] = ""
    since: Annotated[float, Meta(ge=0, description="Unix time")] = 0.0
    limit: Limit = 200
    until: Annotated[float, Meta(ge=0, description="Unix time; 0: now")] = 0.0
    before: Annotated[int, Meta(ge=0, le=2**53, description="only ids below; 0: all")] = 0
    text: Annotated[
        str,
        Meta(max_length=4096, description="words that all stand in the request or the reply"),
    ] = ""
    cid: Annotated[int, Meta(ge=0, le=2**53, description="of this context; 0: all")] = 0
    core: Annotated[str, Meta(max_length=64, description="on this core; empty: all")] = ""
    finish: Annotated[
        str,
        Meta(max_length=16, description="that ended so: stop, length or cancelled; empty: all"),
    ] = ""
    request: Annotated[int, Meta(ge=0, le=2**53, description="this request alone; 0: all")] = 0
