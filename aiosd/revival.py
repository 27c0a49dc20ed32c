"""Revival: what the last kernel left of contexts, requests and answers is taken up at boot.

Contexts come back with their tokens and their record; their KV is found in a snapshot, or computed
again when it is needed. Requests with a key go on, those without can't be asked for by anybody and
end. What belongs to agents that have ended goes.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import msgspec

from aiosd.context import Context, Contexts
from aiosd.cores.dispatcher import Cores
from aiosd.cores.sequence import Sequence
from aiosd.journal import ContextRow, Found, RequestRow, Stale

if TYPE_CHECKING:
    from aiosd.proc import ProcessTable

log = logging.getLogger(__name__)

RESTARTED: Final = "aiosd restarted"
ENDED: Final = "agent ended"

Adopt = Callable[[dict[int, Sequence]], Awaitable[None]]
"""Finds the KV of sequences, by context id."""

Reopen = Callable[[RequestRow, Context, str], None]
"""Goes on with a request on its context, or ends it for a reason."""


def contexts_of(
    found: Found, table: ProcessTable, contexts: Contexts, cores: Cores
) -> dict[int, Context]:
    """Make the contexts again, those of ended agents too: their requests end on them."""
    return {row.cid: _context(row, table, contexts, cores) for row in found.contexts}


def requests_of(
    found: Found,
    made: dict[int, Context],
    table: ProcessTable,
    contexts: Contexts,
    reopen: Reopen,
) -> Stale:
    """Go on with the requests; return what is to be deleted. Contexts of ended agents go."""
    stale = Stale([], [])
    for request in found.requests:
        context = made.get(request.cid)
        if context is None or context.busy:
            log.error("request %d has no context and is dropped", request.rid)
            stale.requests.append(request.rid)
            continue
        why = "" if request.key else RESTARTED
        try:
            reopen(request, context, why if _lives(table, request.aid) else ENDED)
        except (msgspec.MsgspecError, KeyError, OSError) as error:
            log.error("request %d can't go on: %s", request.rid, error)
            stale.requests.append(request.rid)
    for context in made.values():
        if not (context.gone or _lives(table, context.sequence.aid)):
            contexts.forget(context)
    return stale


def _context(row: ContextRow, table: ProcessTable, contexts: Contexts, cores: Cores) -> Context:
    nice = table.get(row.aid).nice if _lives(table, row.aid) else 0
    return contexts.restore(row, cores.home(row.core), nice)


def _lives(table: ProcessTable, aid: int) -> bool:
    try:
        table.get(aid)
    except ProcessLookupError:
        return False
    return True
