"""Embedding: llm_embed, by the kernel's own embedder or by a core that is named."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiosd.abi import inference as abi
from aiosd.access import Caller
from aiosd.cores.dispatcher import Cores
from aiosd.cores.offer import EMBED
from aiosd.cores.routing import Wish

if TYPE_CHECKING:
    from aiosd.embedder import Embedder


class Embedding:
    """Turns texts into vectors."""

    def __init__(self, cores: Cores, embedder: Embedder) -> None:
        self._cores = cores
        self._embedder = embedder

    async def sys_llm_embed(self, caller: Caller, args: abi.LlmEmbed) -> abi.Embeddings:
        """Turn texts into vectors."""
        if not args.core:
            return await self._embedder.answer(args.texts)
        core, _ = self._cores.choose(Wish(features=frozenset({EMBED})), args.core)
        self._cores.count(core, 1)
        try:
            found = await core.embed(args.texts)
        finally:
            self._cores.count(core, -1)
            if core.draining and not core.requests:
                self._cores.retire(core)
        return abi.Embeddings(found.vectors, core.row().model, found.tokens, core.name)
