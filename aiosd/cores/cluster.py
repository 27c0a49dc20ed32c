"""The driver `ray`: cores whose workers run on the nodes of a Ray cluster.

Such a core is a local one in all but its worker, which is a bridge (aiosd/raybridge.py): the run
queue, the placement, replay and exactness are the same code. Ray itself is not imported here, nor
anywhere in the kernel.
"""

from __future__ import annotations

import errno
from importlib.util import find_spec
from typing import ClassVar

import msgspec

from aiosd import rayplace
from aiosd.cores.core import Parts
from aiosd.cores.local import Launch
from aiosd.cores.worker import Worker


class Bridge(Worker):
    """A worker process that passes everything on to a node."""

    program: ClassVar[str] = "aiosd.raybridge"


def place(parts: Parts) -> tuple[str, Launch]:
    """Return what a core's workers open, and what they are. Raises OSError (EINVAL, ENODEV)."""
    config = parts.config
    found = rayplace.place(config.model, config.threads, config.options)
    if find_spec("ray") is None:
        raise OSError(errno.ENODEV, "driver ray: it needs the package ray: pip install 'aios[ray]'")
    return msgspec.json.encode(found).decode(), Bridge
