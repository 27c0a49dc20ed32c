"""Embeddings: llm_embed, by the embedder, or by a core that is named: a provider's or a model's.

What a core is asked by an agent is reserved at its most (a token for each byte, and what a model
adds to a text) and charged by the core's own figures, as far as they stay within that. A provider
of whom nobody knows what it did may charge all of it, a model on this machine nothing. What was
under way when a kernel died counts at its most towards limits, as of all requests. What the
embedder does, which memory has for itself, is charged to nobody.
"""

from __future__ import annotations

import asyncio
import errno
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from aiosd.abi import inference as abi
from aiosd.access import Caller
from aiosd.accounts import Use, line_of
from aiosd.cores.client import Undone
from aiosd.cores.core import Vectors
from aiosd.cores.local import LocalCore
from aiosd.cores.offer import EMBED
from aiosd.cores.remote import RemoteCore
from aiosd.cores.routing import Wish

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiosd.cores.core import Core
    from aiosd.cores.dispatcher import Cores
    from aiosd.db import Database
    from aiosd.embedder import Embedder
    from aiosd.proc import ProcessTable
    from aiosd.quota import Quotas

ADDED: Final = 2
"""Tokens that a model puts around a text at most."""


class Embedding:
    """Answers llm_embed. number: gives the id of a request."""

    def __init__(
        self,
        embedder: Embedder,
        cores: Cores,
        table: ProcessTable,
        quotas: Quotas,
        db: Database,
        number: Callable[[], int],
    ) -> None:
        self._embedder = embedder
        self._cores = cores
        self._table = table
        self._quotas = quotas
        self._db = db
        self._number = number

    async def sys_llm_embed(self, caller: Caller, args: abi.LlmEmbed) -> abi.Embeddings:
        """Turn texts into vectors."""
        if not args.core:
            return await self._embedder.texts(args.texts)
        core, _ = self._cores.choose(Wish(features=frozenset({EMBED})), args.core)
        if not isinstance(core, LocalCore | RemoteCore):
            raise OSError(errno.ENOTSUP, f"llm_embed: core {core.name} does not embed")
        if caller.aid:
            found = await self._charged(caller, args.texts, core)
        elif isinstance(core, LocalCore):
            with self._at(core):
                found = await core.embed(args.texts)
        else:
            raise OSError(errno.ESRCH, "llm_embed: a provider's core embeds for agents alone")
        return abi.Embeddings(found.vectors, core.row().model, found.tokens, core.name)

    async def _charged(
        self, caller: Caller, texts: list[str], core: LocalCore | RemoteCore
    ) -> Vectors:
        """Have a core embed texts, within the caller's limits. Raises OSError."""
        most = sum(len(text.encode()) for text in texts) + ADDED * len(texts)
        quotas = self._quotas
        quotas.admit(caller.aid, "llm_embed")
        rid = self._number()
        begun = [self._db.write(write) for write in quotas.open(rid, caller.aid)]
        tokens = 0
        try:
            amounts = {"tokens": most, "dollars": core.price.nano(most, 0)}
            reserved = quotas.reserve(rid, amounts, "llm_embed")
            await asyncio.gather(*begun)
            if reserved is not None:
                await asyncio.shield(reserved)
            with self._at(core):
                tokens = most if isinstance(core, RemoteCore) else 0  # unless it says otherwise
                found = await core.embed(texts)
                tokens = min(found.tokens, most)
        except Undone:
            tokens = 0
            raise
        finally:
            await self._settle(rid, caller, core, tokens)
        return Vectors([_unit(vector) for vector in found.vectors], tokens)

    @contextmanager
    def _at(self, core: Core) -> Iterator[None]:
        """Count a request on a core, which goes with its last one when it drains."""
        self._cores.count(core, 1)
        try:
            yield
        finally:
            self._cores.count(core, -1)
            if core.draining and not core.requests:
                self._cores.retire(core)

    async def _settle(self, rid: int, caller: Caller, core: Core, tokens: int) -> None:
        nano = core.price.nano(tokens, 0)
        line = line_of((*self._table.lineage(caller.aid), caller.aid))
        use = Use(
            caller.aid,
            caller.uid,
            line,
            core.name,
            tokens_in=tokens,
            nano=nano,
            requests=bool(tokens),
        )
        spent = {"tokens": tokens, "dollars": nano, "requests": int(bool(tokens))}
        await asyncio.shield(self._db.submit(self._quotas.settle(rid, spent, use)))


def _unit(vector: list[float]) -> list[float]:
    """Return a vector at unit length."""
    length = math.sqrt(sum(number * number for number in vector)) or 1.0
    return [number / length for number in vector]
