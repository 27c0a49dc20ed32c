"""Memory and storage put together: what agents keep, and the embedder that finds it by meaning.

    stores = Stores(config, db, events, access, table, vault)
    await stores.boot()
    dispatcher.bind(*stores.managers)
    await stores.close()

Where to look: working.py is an agent's memory while it lives, memory.py its texts, storage.py its
objects (versions.py their rows, blobs.py their bytes, sealing.py encrypts those); owners.py says
whose they are, corpus.py finds them (library.py: in objects), embedder.py is the process that
knows vectors.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from aiosd.access import Access
from aiosd.config import Config
from aiosd.embedder import Embedder
from aiosd.library import Library
from aiosd.memory import SemanticMemory
from aiosd.owners import Owners
from aiosd.recall import Recall
from aiosd.storage import Storage
from aiosd.working import WorkingMemory

if TYPE_CHECKING:
    from aiosd.db import Database
    from aiosd.events import Events
    from aiosd.proc import ProcessTable
    from aiosd.quota import Quotas
    from aiosd.vault import Vault


class Stores:
    """All that agents keep. managers: the objects whose sys_ methods serve the calls."""

    def __init__(
        self,
        config: Config,
        db: Database,
        events: Events,
        access: Access,
        table: ProcessTable,
        quotas: Quotas,
        vault: Vault,
    ) -> None:
        self._config = config
        indexes = os.path.join(config.kernel.state_dir, "indexes")
        self.embedder = Embedder(indexes, lambda: self._config.memory, events)
        self.owners = Owners(db, access)
        self.owners.keeper = quotas
        self.working = WorkingMemory(table, quotas, lambda: self._config.memory)
        self.memory = SemanticMemory(db, self.owners, self.embedder, lambda: self._config.memory)
        self.library = Library(db, self.embedder, lambda: self._config.storage)
        self.storage = Storage(db, self.owners, self.library, vault, lambda: self._config.storage)
        self.recall = Recall(access, self.owners, self.memory, self.library)
        quotas.prepare = self.owners.prepare
        quotas.counts["working_bytes"] = self.working.held
        for resource in ("memory_records", "memory_bytes", "storage_objects", "storage_bytes"):
            quotas.counts[resource] = partial(self.owners.held, resource=resource)
        self.managers = (self.working, self.memory, self.storage)

    async def boot(self) -> None:
        """Go on where the last kernel stopped."""
        await self.memory.boot()
        await self.storage.boot()

    async def close(self) -> None:
        """Finish what is being written, and let the embedder leave."""
        await self.storage.close()
        await self.library.close()
        await self.memory.close()
        await self.embedder.close()

    def reload(self, config: Config) -> None:
        """Take on the limits of a configuration that was read again."""
        self._config = config
