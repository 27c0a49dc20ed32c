"""Slot classes: cores beside a core, of the same model with a larger window.

A class is a worker of its own, since a llama.cpp context has one window for all its slots. It has
as many slots as its base, so that KV can move there by file; the weights are mapped once for both.
It is begun when a context is to move there and removed when its last context has left.
"""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING, Final

import psutil

if TYPE_CHECKING:
    from aiosd.cores.local import LocalCore

_NAME: Final = re.compile(r"(?P<base>.+)@(?P<n_ctx>[1-9][0-9]*)(?P<yarn>-yarn)?")
SPARE: Final = 8  # an eighth of the free memory stays free


def title(base: str, n_ctx: int, *, yarn: bool) -> str:
    """Return the name of a class: its base's, its window, and how it came to be so large."""
    return f"{base}@{n_ctx}{'-yarn' if yarn else ''}"


def parse(name: str) -> tuple[str, int, bool] | None:
    """Return base, window and yarn of a class's name, None for another core's."""
    found = _NAME.fullmatch(name)
    return (found["base"], int(found["n_ctx"]), bool(found["yarn"])) if found else None


def check_memory(base: LocalCore, n_ctx: int) -> None:
    """Raise OSError(ENOMEM) with the figures when a class would not fit into memory.

    base: a loaded core. Of one whose KV is on a GPU, or on another machine, only the worker itself
    can tell.
    """
    if base.setup.gpu_layers or base.setup.runner == "ray":
        return
    need = base.setup.slots * n_ctx * base.placement.bytes_per_token
    free = psutil.virtual_memory().available
    if need > free - free // SPARE:
        raise OSError(
            errno.ENOMEM,
            f"tokens: {base.setup.slots} slots of {n_ctx} tokens take {_mib(need)} of KV, "
            f"{_mib(free)} of memory are free; give core {base.name} fewer slots, or ask for less",
        )


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"
