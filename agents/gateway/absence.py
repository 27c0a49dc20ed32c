"""Absence: whether a core that a request can't have is one that may be there again soon.

A client that is told 404 gives up; 503 with Retry-After has it come back by itself.
"""

from __future__ import annotations

from typing import Final

import aios

from .refusal import Refusal

SOON: Final = {"draining": 5.0, "loading": 2.0, "restarting": 2.0, "down": 5.0}
"""States of a core that pass, and after how many seconds to ask again."""


async def explained(kernel: aios.AsyncKernel, error: OSError) -> Refusal | OSError:
    """Return what a client is told of an ENODEV: 503 where it names a core that is only away."""
    sentence = error.strerror or ""
    for core in await kernel.list_cores():
        told = f"core {core.name} is " in sentence or (core.error and core.error in sentence)
        if told and core.state in SOON:
            return Refusal(503, sentence, code="core_away", retry_after=SOON[core.state])
    return error
