"""System calls about cores: the models that agents run on."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from aiosd.abi.call import Call, Cid, Count, Key, Name, Record, syscall
from aiosd.abi.inference import Context
from aiosd.abi.route import Features, MaxLatency, MaxPrice, MinContext, Route


class Core(Record, frozen=True):
    """A core and its load.

    state: loading, ready, restarting, draining, failed; error says why. exact: whether the probe at
    load found the core exact ("yes", "no", "off" when not asked for, "?" while loading); setting is
    what it runs with. bytes_per_token is KV. pid is the worker's. A configured core that could not
    be begun at all is listed too, as failed.

    capability: its class, which requests need; features: what it can do for them; price_in and
    price_out: dollars per million tokens; quality: for the routing policy best; requests: all that
    it has; first_token_s: expected for one more, 0 while nothing was measured.

    kind "tool": a tool that is a model; slots is its batch, switches how often it was loaded, state
    is dropped while it is not, and waiting while it needs memory that others have at work.
    """

    name: str
    driver: str
    model: str
    state: str
    exact: str
    setting: str
    slots: int
    running: int
    queued: int
    resident: int
    n_ctx: int
    n_ctx_train: int
    grid: int
    threads: int
    pid: int
    restarts: int
    rss: int
    kv_bytes: int
    bytes_per_token: int
    tokens_in: int
    tokens_out: int
    tokens_per_s: float
    switches: int
    kind: str = "local"
    error: str = ""
    device_s: float = 0.0
    step_s: float = 0.0
    capability: str = "local"
    features: list[str] = []
    price_in: float = 0.0
    price_out: float = 0.0
    quality: float = 0.0
    requests: int = 0
    first_token_s: float = 0.0


@syscall(160, reply=list[Core])
class ListCores(Call, frozen=True):
    """List the cores, their state, load and exactness."""


@syscall(
    161,
    reply=Core,
    errors="ENOENT EACCES EISDIR ENOEXEC EEXIST ENOMEM ENODEV ENOSPC",
    needs="admin",
)
class AddCore(Call, frozen=True):
    """Load a model as a core; answered when it is ready or has failed."""

    model: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=4096,
            description="GGUF path, a packaged model's name, or hf:OWNER/NAME[:FILE]",
        ),
    ]
    name: Annotated[
        str,
        Meta(
            max_length=64,
            pattern=r"^([A-Za-z0-9][A-Za-z0-9._:-]*)?$",
            description="the model's by default",
        ),
    ] = ""
    driver: Annotated[str, Meta(max_length=32)] = "llama"
    slots: Annotated[int, Meta(ge=1, le=256, description="sequences that run at once")] = 8
    n_ctx: Annotated[int, Meta(ge=128, le=1 << 20, description="tokens a slot")] = 2048
    threads: Annotated[int, Meta(ge=0, le=1024, description="0: as many as processors")] = 0
    exact: bool = True
    options: Annotated[
        dict[str, Any],
        Meta(max_length=32, description="other settings of [[cores]], and the driver's own"),
    ] = {}
    key: Key = ""


@syscall(162, reply=None, errors="ENOENT", needs="admin")
class RemoveCore(Call, frozen=True):
    """Remove a core at once; requests on it end as cancelled."""

    name: Name


@syscall(163, reply=None, errors="ENOENT", needs="admin")
class DrainCore(Call, frozen=True):
    """Let a core finish what it has, give it nothing new, then remove it.

    Its contexts move to another core of its model and setting, where there is one.
    """

    name: Name


class RouteCore(Record, frozen=True):
    """What one leg of a route makes of one core.

    place: counts from 1, the core that is chosen; 0 for one that can't take the request, and why
    says what it lacks. capability: its class. dollars: what the request would cost. first_token_s
    and tokens_per_s: as measured under such a load, 0 when it was not measured yet.
    """

    name: str
    leg: str
    place: int
    why: str
    capability: str
    dollars: float
    first_token_s: float
    tokens_per_s: float
    requests: int
    slots: int
    quality: float
    features: list[str]


class Routed(Record, frozen=True):
    """Which core a request would get now, and why; core is "" when none, and reason says why.

    legs: the rules (or policies) that are tried in this order.
    """

    core: str
    reason: str
    legs: list[str]
    cores: list[RouteCore]


@syscall(136, reply=Routed, since=2)
class ExplainRoute(Call, frozen=True):
    """Say which core a request would get, and what keeps it from each other one."""

    route: Route = ""
    needs: Annotated[str, Meta(max_length=64, description="capability class; empty: any")] = ""
    features: Features = []
    min_context: MinContext = 0
    max_price: MaxPrice = None
    max_latency: MaxLatency = None
    prompt_tokens: Count = 0
    max_tokens: Annotated[Count, Meta(description="0: as long as is usual")] = 0
    agent: Annotated[
        str, Meta(max_length=64, description="name of the agent that asks; empty: the caller's")
    ] = ""


@syscall(137, reply=Context, needs="context", errors="ENOENT EBUSY ENODEV ENOSPC ENOTSUP", since=2)
class MoveContext(Call, frozen=True):
    """Put an idle context on another core; the next request on it goes on there.

    Its KV goes along when both cores are of the same model, build and setting, and the reply has
    exact; else it is computed anew there, for another setting of the same model. A core of another
    model is refused, since its tokens mean something else there. A context of a provider's core is
    the turns of its chat, and goes to any core; one of tokens goes to no provider's.
    """

    context: Cid
    core: Annotated[Name, Meta(description="the core to move to")]


class Model(Record, frozen=True):
    """A model that a core may run. kind: package, hub (in its cache) or file.

    used: when a file of the cache was read last, in Unix seconds. cores: those that run it.
    """

    name: str
    kind: str
    path: str
    bytes: int
    used: float = 0.0
    cores: list[str] = []


@syscall(164, reply=list[Model], errors="ETIMEDOUT", since=2)
class ListModels(Call, frozen=True):
    """List the models of this machine: of packages, of the hub's cache, and the files in use."""


@syscall(165, reply=int, errors="ENOENT EBUSY ENOSYS ETIMEDOUT", needs="admin", since=2)
class RemoveModel(Call, frozen=True):
    """Delete a model from the hub's cache; answers how many bytes are free again."""

    name: Annotated[
        str,
        Meta(
            min_length=1, max_length=512, description="hf:OWNER/NAME:FILE, or hf:OWNER/NAME for all"
        ),
    ]
