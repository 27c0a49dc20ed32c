"""Drivers: what makes a core of a kind, by the name that a configuration gives as `driver`.

To add one, write a function that takes `core.Parts`, checks the configuration in it and returns
what satisfies `core.Core`, and enter it in DRIVERS.
"""

from __future__ import annotations

import errno
import os
from typing import Final

import msgspec

from aiosd import modelfile
from aiosd.config import PACKAGED_MODEL
from aiosd.config import Core as CoreConfig
from aiosd.cores import cluster
from aiosd.cores.core import Core, Driver, Parts
from aiosd.cores.local import Launch, LocalCore
from aiosd.cores.remote import RemoteCore
from aiosd.cores.worker import Worker
from aiosd.engine import weights
from aiosd.engine.embed import SUFFIX
from aiosd.engine.protocol import CoreSetup


def llama(parts: Parts) -> Core:
    """Make a core of a GGUF file; raises OSError that says what is wrong with the path.

    A model of the hub is fetched when the core starts.
    """
    model, fetch = parts.config.model, parts.fetch
    if not model.startswith(modelfile.HUB) or parts.setup is not None:
        return local(parts, _file(model) if parts.setup is None else parts.setup.model)
    if fetch is None:
        raise OSError(errno.ENOSYS, f"model {model}: models of the hub are not fetched here")
    core = local(parts, model)

    async def open_() -> CoreSetup:
        return _setup(parts, _file(await fetch(model)))

    core.find = open_
    return core


def _file(model: str) -> str:
    path = modelfile.find_model(model)
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, f"model {model}: there is no such file")
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, f"model {path}: a directory; name the GGUF file")
    if not os.access(path, os.R_OK):
        raise PermissionError(errno.EACCES, f"model {path}: the daemon may not read it")
    return str(path)


def fake(parts: Parts) -> Core:
    """Make a core without a model."""
    _as_it_is(parts.config)
    return local(parts, msgspec.json.encode(parts.config.options).decode())


def ray(parts: Parts) -> Core:
    """Make a core whose workers run on a Ray cluster; raises OSError that says what is wrong."""
    _as_it_is(parts.config)
    return local(parts, *cluster.place(parts))


def remote(parts: Parts) -> Core:
    """Make a core of a provider's endpoint; the driver's name says which client speaks to it."""
    assert parts.bridge is not None
    _as_it_is(parts.config)
    if not parts.config.model or parts.config.model == PACKAGED_MODEL:
        raise OSError(errno.EINVAL, "model: name the provider's model")
    if unknown := sorted(parts.config.options):
        text = f"options {unknown}: what a provider needs is in [cores.remote]; say it there"
        raise OSError(errno.EINVAL, text)
    return RemoteCore(parts, parts.bridge)


DRIVERS: Final[dict[str, Driver]] = {
    "llama": llama,
    "fake": fake,
    "ray": ray,
    "openai": remote,
    "anthropic": remote,
    "gemini": remote,
}


def local(parts: Parts, model: str, worker: Launch = Worker) -> LocalCore:
    """Make a core whose workers, made with `worker`, open `model`."""
    setup = parts.setup or _setup(parts, model)
    core = LocalCore(
        parts.config.name,
        setup,
        parts.config.nice,
        parts.policy,
        parts.tiers,
        parts.listener,
        parts.secret,
        worker,
    )
    core.driver = parts.config.driver
    if parts.config.embedding:
        core.features = frozenset({"embed"})
    return core


def _as_it_is(config: CoreConfig) -> None:
    """Raise OSError(EINVAL) when weights are to be converted that this machine does not hold."""
    if config.quantize:
        text = f"quantize {config.quantize!r}: only the driver llama converts weights"
        raise OSError(errno.EINVAL, f"{text}, not {config.driver}; leave it empty")


def find(name: str) -> Driver:
    """Return a driver by name; raises OSError(EINVAL) that lists those there are."""
    driver = DRIVERS.get(name)
    if driver is None:
        raise OSError(errno.EINVAL, f"core driver {name!r}: there are {', '.join(DRIVERS)}")
    return driver


def _setup(parts: Parts, model: str) -> CoreSetup:
    setup = setup_of(parts.config, model)
    if setup.quantize:
        weights.find(setup.quantize)
        setup = msgspec.structs.replace(setup, weights=parts.weights)
    return msgspec.structs.replace(setup, verdict=parts.verdicts(setup_key(setup)))


def setup_of(config: CoreConfig, model: str) -> CoreSetup:
    """Return what a worker is told of a core that is configured so."""
    return CoreSetup(
        runner=f"{config.driver}{SUFFIX}" if config.embedding else config.driver,
        model=model,
        slots=config.slots,
        n_ctx=config.n_ctx,
        grid=config.grid,
        threads=config.threads or os.cpu_count() or 1,
        gpu_layers=config.gpu_layers,
        kv_k=config.kv_k,
        kv_v=config.kv_v,
        exact=config.exact,
        verdict="",
        quantize=config.quantize,
    )


def setup_key(setup: CoreSetup) -> str:
    """Name a core's setting, so that its probe's verdict can be found again."""
    return msgspec.json.encode(msgspec.structs.replace(setup, verdict="")).decode()
