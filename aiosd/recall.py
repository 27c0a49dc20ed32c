"""Recall: what memory or storage knows about a request, put before it.

    recall.check(caller, args)                           # before the request is taken on
    args, used = await recall.add(uid, aid, args)        # before it is turned into tokens

`llm_generate(recall="memory")`, "storage", or both with a comma; "memory:NAME" is a group's pool.
The last user's words are searched for, by words and meaning, by words alone where there is no
embedder; the best texts that fit stand before them, and the reply says which.

What must hold: nothing is recalled that the caller could not find by search_memory or sto_search;
when the search fails the request goes on without.
"""

from __future__ import annotations

import errno
import logging
from typing import Final

import msgspec

from aiosd.abi.inference import LlmGenerate, Recalled
from aiosd.abi.memory import SearchMemory
from aiosd.abi.storage import StoSearch
from aiosd.abi.table import BY_NAME
from aiosd.access import Access, Caller
from aiosd.library import Library
from aiosd.memory import SemanticMemory
from aiosd.owners import Owners

log = logging.getLogger(__name__)

TEXTS: Final = 4
"""Texts recalled at most, of each source."""
LETTERS: Final = 2000
"""Characters of all of them; what doesn't fit any more is left out."""
QUERY: Final = 2000
"""Characters of the question that are searched for."""
HEAD: Final = "What is remembered, for use where it helps:"
SOURCES: Final = ("memory", "storage")


class Recall:
    """Finds what goes before a request."""

    def __init__(
        self, access: Access, owners: Owners, memory: SemanticMemory, library: Library
    ) -> None:
        self._access = access
        self._owners = owners
        self._memory = memory
        self._library = library

    def check(self, caller: Caller, args: LlmGenerate) -> None:
        """Raise OSError for sources that there are not, or that the caller may not search."""
        if not args.recall:
            return
        if not (args.prompt or args.messages):
            raise OSError(errno.EINVAL, "llm_generate: recall: give a prompt to recall for")
        for source, pool in _sources(args.recall):
            name = "search_memory" if source == "memory" else "sto_search"
            call = SearchMemory("", pool=pool) if source == "memory" else StoSearch("", pool=pool)
            if self._access.permit(caller, BY_NAME[name], call):
                raise PermissionError(
                    errno.EPERM,
                    f"llm_generate: recall: {name} needs somebody's approval each time; call it, "
                    "and give what it finds in the prompt",
                )

    async def add(
        self, uid: int, aid: int, args: LlmGenerate
    ) -> tuple[LlmGenerate, list[Recalled]]:
        """Return the request with what was found before its question, and what that is."""
        query = _question(args)[:QUERY]
        found: list[Recalled] = []
        for source, pool in _sources(args.recall):
            found += await self._find(Caller(uid, -1, 0, aid), source, pool, query)
        found.sort(key=lambda one: -one.score)
        used, left = [], LETTERS
        for one in found:
            if len(one.text) <= left:
                used.append(one)
                left -= len(one.text)
        return (_before(args, used) if used else args), used

    async def _find(self, caller: Caller, source: str, pool: str, query: str) -> list[Recalled]:
        owner = await self._owners.find(caller, pool)
        for mode in ("hybrid", "keyword"):
            try:
                if source == "memory":
                    wanted = SearchMemory(query, k=TEXTS, mode=mode)
                    return [
                        Recalled(source, one.text, one.score, id=one.id)
                        for one in await self._memory.search(owner, wanted)
                    ]
                return [
                    Recalled(source, one.text, one.score, name=one.name, version=one.version)
                    for one in await self._library.search(
                        owner.id, StoSearch(query, k=TEXTS, mode=mode)
                    )
                ]
            except OSError as error:
                if mode == "keyword" or error.errno != errno.ENODEV:
                    log.warning("agent %d recalls without %s: %s", caller.aid, mode, error.strerror)
        return []


def _sources(text: str) -> list[tuple[str, str]]:
    """Return the sources and pools that a request names; raises OSError(EINVAL)."""
    found = []
    for word in text.split(","):
        source, _, pool = word.strip().partition(":")
        if source not in SOURCES:
            raise OSError(
                errno.EINVAL,
                f"llm_generate: recall: {source[:32]!r}; memory, storage, or both with a comma, "
                "each with :POOL for a group's",
            )
        found.append((source, pool))
    return found


def _question(args: LlmGenerate) -> str:
    """Return the last words of the user."""
    asked = [turn.content for turn in args.messages if turn.role == "user"]
    return asked[-1] if asked else args.prompt


def _before(args: LlmGenerate, used: list[Recalled]) -> LlmGenerate:
    lines = "\n".join(f"- {' '.join(one.text.split())}" for one in used)
    head = f"{HEAD}\n{lines}\n\n"
    if not args.messages:
        return msgspec.structs.replace(args, prompt=head + args.prompt)
    turns = list(args.messages)
    for i in reversed(range(len(turns))):
        if turns[i].role == "user":
            turns[i] = msgspec.structs.replace(turns[i], content=head + turns[i].content)
            break
    return msgspec.structs.replace(args, messages=turns)
