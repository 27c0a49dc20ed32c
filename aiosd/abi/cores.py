"""System calls about cores: the models that agents run on."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from aiosd.abi.call import Call, Key, Name, Record, syscall


class Core(Record, frozen=True):
    """A core and its load.

    state: loading, ready, restarting, draining, failed. exact: whether the probe at load found the
    core exact ("yes", "no", "off" when not asked for, "?" while loading); setting is what it runs
    with. bytes_per_token is KV. pid is the worker's.
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


@syscall(160, reply=list[Core])
class ListCores(Call, frozen=True):
    """List the cores, their state, load and exactness."""


@syscall(161, reply=Core, errors="ENOENT EACCES EISDIR ENOEXEC EEXIST ENOMEM ENODEV", needs="admin")
class AddCore(Call, frozen=True):
    """Load a model as a core; answered when it is ready or has failed."""

    model: Annotated[
        str,
        Meta(min_length=1, max_length=4096, description="GGUF path or the name of a known model"),
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
    options: Annotated[dict[str, Any], Meta(max_length=32, description="driver's own options")] = {}
    key: Key = ""


@syscall(162, reply=None, errors="ENOENT", needs="admin")
class RemoveCore(Call, frozen=True):
    """Remove a core at once; requests on it end as cancelled."""

    name: Name


@syscall(163, reply=None, errors="ENOENT", needs="admin")
class DrainCore(Call, frozen=True):
    """Let a core finish what it has, give it nothing new, then remove it."""

    name: Name
