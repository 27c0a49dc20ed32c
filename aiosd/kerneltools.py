"""Tools of the kernel's own: what an agent's own data is needed for, which no box holds.

    tools.runners["kernel"] = KernelTools(access, table, stores)
    catalog.put("kernel", DECLARED)

A tool's box has neither the kernel's socket nor anybody's storage in it, so what looks into an
agent's storage is done here, as a call like any other: checked, limited, queued and on record.

What must hold: nothing comes out that the caller could not get by the system call itself.
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Any, Final

import msgspec

from aiosd.abi.storage import Passage, StoSearch
from aiosd.abi.table import BY_NAME
from aiosd.access import Access, Caller
from aiosd.declaration import Declaration, Limits
from aiosd.library import Library
from aiosd.owners import Owners
from aiosd.toolrun import Outcome, Work, too_slow

if TYPE_CHECKING:
    from aiosd.proc import ProcessTable

MOST: Final = 20
"""Passages of one search."""

_PASSAGE: Final = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "description": "of the object"},
        "version": {"type": "integer"},
        "text": {"type": "string"},
        "score": {"type": "number"},
    },
    "required": ["name", "version", "text", "score"],
}

STORAGE_SEARCH: Final = Declaration(
    name="storage_search",
    description="Find passages in the texts that you have stored, by words and by meaning.",
    input={
        "type": "object",
        "properties": {
            "query": {"type": "string", "minLength": 1, "maxLength": 2000},
            "count": {
                "type": "integer",
                "minimum": 1,
                "maximum": MOST,
                "description": "passages at most; 5 unless given",
            },
            "prefix": {
                "type": "string",
                "maxLength": 256,
                "description": "only in objects whose names begin so",
            },
        },
        "required": ["query"],
        "additionalProperties": False,
    },
    output={"type": "array", "items": _PASSAGE},
    limits=Limits(time=30.0),
    idempotent=True,
    isolation="none",
    source="kernel",
)

DECLARED: Final = (STORAGE_SEARCH,)


class KernelTools:
    """Carries them out."""

    def __init__(
        self, access: Access, table: ProcessTable, owners: Owners, library: Library
    ) -> None:
        self._access = access
        self._table = table
        self._owners = owners
        self._library = library

    async def run(self, work: Work) -> Outcome:
        """See toolrun.Runner."""
        try:
            async with asyncio.timeout(work.seconds):
                found = await self._search(self._caller(work.subject), work.arguments)
        except TimeoutError:
            raise too_slow(work.tool, work.seconds) from None
        return Outcome([_shown(one) for one in found], warm=True)

    def _caller(self, subject: str) -> Caller:
        """Return whose call it is."""
        kind, _, number = subject.partition(":")
        if kind != "agent":
            return Caller(int(number), -1, 0, 0)
        return Caller(self._table.get(int(number)).uid, -1, 0, int(number))

    async def _search(self, caller: Caller, arguments: dict[str, Any]) -> list[Passage]:
        """Search by words and meaning, and by words alone where nothing knows meanings."""
        wanted = StoSearch(
            arguments["query"], k=arguments.get("count", 5), prefix=arguments.get("prefix", "")
        )
        if self._access.permit(caller, BY_NAME["sto_search"], wanted):
            raise PermissionError(
                errno.EPERM,
                "tool storage_search: sto_search needs somebody's approval each time; call that",
            )
        owner = await self._owners.find(caller, "")
        try:
            return await self._library.search(owner.id, wanted)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            words = msgspec.structs.replace(wanted, mode="keyword")
            return await self._library.search(owner.id, words)


def _shown(one: Passage) -> dict[str, Any]:
    return {"name": one.name, "version": one.version, "text": one.text, "score": one.score}
