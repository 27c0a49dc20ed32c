"""Rows of list_cores: how a core is described."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil

from aiosd.abi import cores as abi
from aiosd.config import Core as CoreConfig

if TYPE_CHECKING:
    from aiosd.cores.local import LocalCore


def local(core: LocalCore) -> abi.Core:
    """Describe a core with a worker."""
    loaded, placement = core.loaded, core.placement
    return abi.Core(
        name=core.name,
        driver=core.driver,
        model=loaded.name if loaded else core.setup.model,
        state=core.state,
        exact=_verdict(core),
        setting=loaded.setting if loaded else "",
        slots=core.setup.slots,
        running=len(core.queue.policy.running),
        queued=len(core.queue.policy),
        resident=placement.resident,
        n_ctx=loaded.n_ctx if loaded else core.setup.n_ctx,
        n_ctx_train=loaded.n_ctx_train if loaded else 0,
        grid=core.setup.grid,
        threads=core.setup.threads,
        pid=core.pid,
        restarts=core.restarts,
        rss=_rss(core.pid),
        kv_bytes=placement.kv_bytes,
        bytes_per_token=placement.bytes_per_token,
        tokens_in=core.tokens_in,
        tokens_out=core.tokens_out,
        tokens_per_s=core.tokens_per_s,
        switches=placement.switches,
        error=core.error,
        device_s=core.progress.device_s,
        step_s=core.progress.step_s,
    )


def refused(config: CoreConfig, why: str) -> abi.Core:
    """Describe a core that is configured so, but could not be begun."""
    return abi.Core(
        name=config.name,
        driver=config.driver,
        model=config.model,
        state="failed",
        exact="?",
        setting="",
        slots=config.slots,
        running=0,
        queued=0,
        resident=0,
        n_ctx=config.n_ctx,
        n_ctx_train=0,
        grid=config.grid,
        threads=config.threads,
        pid=0,
        restarts=0,
        rss=0,
        kv_bytes=0,
        bytes_per_token=0,
        tokens_in=0,
        tokens_out=0,
        tokens_per_s=0.0,
        switches=0,
        error=why,
        capability=config.class_ or "local",
        quality=config.quality,
    )


def _verdict(core: LocalCore) -> str:
    if core.loaded is None:
        return "?"
    return {True: "yes", False: "no", None: "off"}[core.loaded.exact]


def _rss(pid: int) -> int:
    """Return a process's resident bytes, 0 when it is gone."""
    try:
        return int(psutil.Process(pid).memory_info().rss) if pid else 0
    except psutil.Error:
        return 0
