"""Where a core on Ray is to run: what the kernel tells its bridge.

    ray://HOST:PORT/MODEL?num_cpus=4&resources=arm:1

The address is that of the cluster's head, as `ray start --address` takes it. MODEL is a GGUF file
on the nodes, or the name of the packaged model; it is found by the node itself. Nothing here
imports Ray.
"""

from __future__ import annotations

import errno
from typing import Annotated, Any, Final, Literal
from urllib.parse import parse_qsl, urlsplit

import msgspec
from msgspec import Meta

from aiosd.settings import PACKAGED_MODEL

SCHEME: Final = "ray://"
PORT: Final = 6379
"""Where the head of a cluster listens unless told otherwise."""

_Seconds = Annotated[float, Meta(ge=1.0, le=86_400.0)]
_Amount = Annotated[float, Meta(ge=0.0, le=1e15)]


class Place(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a core asks of its cluster.

    num_cpus, num_gpus, memory (bytes) and resources are set aside on a node, as Ray counts them;
    threads 0 computes with num_cpus. strategy: how Ray chooses among nodes. runtime_env: Ray's own,
    for nodes that have no AIOS installed. cache: bytes of snapshots that a node keeps beside those
    that are with the kernel. silence: seconds after which a node that says nothing counts as dead.
    wait: seconds to wait for a node with room. runner: "llama" or "fake".
    """

    address: str
    model: str = PACKAGED_MODEL
    runner: Literal["llama", "fake"] = "llama"
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    num_cpus: _Amount = 1.0
    num_gpus: _Amount = 0.0
    memory: _Amount = 0.0
    resources: dict[str, _Amount] = {}
    strategy: Literal["SPREAD", "DEFAULT"] = "SPREAD"
    runtime_env: dict[str, Any] = {}
    cache: Annotated[int, Meta(ge=0)] = 1 << 30
    silence: _Seconds = 30.0
    wait: _Seconds = 60.0

    @property
    def wants(self) -> dict[str, float]:
        """What a node must have, by the names that Ray gives to it."""
        named = {"CPU": self.num_cpus, "GPU": self.num_gpus, "memory": self.memory}
        return {name: n for name, n in (named | self.resources).items() if n}


def place(model: str, threads: int, options: dict[str, Any]) -> Place:
    """Return where a core is to run, by its model (maybe a ray:// address) and its options.

    Raises OSError(EINVAL) that names what is wrong.
    """
    given: dict[str, Any] = {"threads": threads, **options}
    if model.startswith(SCHEME):
        given |= _parse(model)
    else:
        given["model"] = model
    if "address" not in given:
        cure = f"name it: {SCHEME}HOST:{PORT}/MODEL, or options.address"
        raise OSError(errno.EINVAL, f"driver ray: no address of a cluster; {cure}")
    if given.get("runner") == "fake":
        given["model"] = msgspec.json.encode(given.pop("fake", {})).decode()
    try:
        return msgspec.convert(given, Place, strict=False)
    except msgspec.ValidationError as error:
        raise OSError(errno.EINVAL, f"driver ray: {error}") from None


def _parse(url: str) -> dict[str, Any]:
    """Take an address apart; of a query each word is a field, resources=NAME:COUNT may repeat."""
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port or PORT
    except ValueError as error:
        raise OSError(errno.EINVAL, f"{url}: {error}") from None
    if not host:
        raise OSError(errno.EINVAL, f"{url}: no host; write {SCHEME}HOST:{PORT}/MODEL")
    given: dict[str, Any] = {"address": f"{host}:{port}"}
    if parts.path.strip("/"):
        given["model"] = parts.path
    resources: dict[str, str] = {}
    for name, value in parse_qsl(parts.query):
        if name == "resources":
            which, _, count = value.partition(":")
            resources[which] = count or "1"
        else:
            given[name] = value
    return given | ({"resources": resources} if resources else {})


def title(url: str) -> str:
    """Return what a core is called whose model is a ray:// address: its model, else its host."""
    parts = urlsplit(url)
    return parts.path.rpartition("/")[2] or f"ray-{parts.hostname or 'core'}"
