"""A core without a kernel around it, for figures that the socket would only blur.

    async with bare_core(policy="priority") as core: ...

The same LocalCore, worker and buffers as in the daemon; its buffers lie on tmpfs.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiosd import sched
from aiosd.config import PACKAGED_MODEL, find_model
from aiosd.cores.core import Core
from aiosd.cores.local import LocalCore
from aiosd.cores.sequence import Sequence
from aiosd.cores.tiers import Tiers
from aiosd.engine.protocol import Beam, CoreSetup, Goal, Sampling, Token
from tests.bench.kernel import N_CTX, TMPFS


class Answer:
    """The sink of one request: when its first batch began, and when it ended."""

    def __init__(self) -> None:
        self.began = 0.0
        self.tokens: list[int] = []
        self.done: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def computed(self, kind: int, start: int, end: int, began: float) -> None:
        """Note when the request came on the core."""
        self.began = self.began or began

    def token(self, token: Token) -> None:
        """Take a token."""
        self.tokens.append(token.token)
        if token.finish and not self.done.done():
            self.done.set_result(token.finish)

    def shared(self, count: int) -> None:
        """Take no notice of what need not be computed."""

    def found(self, beams: list[Beam]) -> None:
        """Take no notice of beams, for which nobody asked."""

    def failed(self, errno: int, message: str) -> None:
        """End with the error."""
        if not self.done.done():
            self.done.set_exception(OSError(errno, message))


class _Quiet:
    def core_changed(self, core: Core, what: str) -> None:
        pass

    def preempted(self, core: Core, sequence: Sequence) -> None:
        pass

    def started(self, core: Core, sequence: Sequence) -> None:
        pass

    def fell_back(self, core: Core, sequence: Sequence, why: str) -> None:
        pass

    def verdict(self, setup: CoreSetup, verdict: str) -> None:
        pass


@asynccontextmanager
async def bare_core(*, slots: int = 8, policy: str = "rr") -> AsyncIterator[LocalCore]:
    """Load the packaged model with the daemon's defaults."""
    setup = CoreSetup(
        runner="llama",
        model=str(find_model(PACKAGED_MODEL)),
        slots=slots,
        n_ctx=N_CTX,
        grid=64,
        threads=os.cpu_count() or 1,
        gpu_layers=0,
        kv_k="auto",
        kv_v="auto",
        exact=True,
        verdict="",
    )
    with tempfile.TemporaryDirectory(prefix="aios-bench-", dir=TMPFS) as place:
        tiers = Tiers(Path(place, "kv"), 2 << 30, Path(place, "contexts"), 2 << 30)
        tiers.boot()
        core = LocalCore("bare", setup, 19, sched.make(policy), tiers, _Quiet())
        try:
            await core.start()
            yield core
        finally:
            await core.stop()
            tiers.close()


async def submit(
    core: LocalCore, cid: int, tokens: list[int], max_tokens: int, nice: int = 0
) -> tuple[Sequence, Answer]:
    """Give a fresh sequence to the core."""
    sequence = Sequence(cid=cid, aid=cid, uid=0, nice=nice, tokens=list(tokens))
    core.add(sequence)
    answer = Answer()
    sequence.sink = answer
    sequence.goal = Goal(len(tokens), max_tokens, Sampling(), [])
    core.submit(sequence)
    return sequence, answer
