"""The ledger: a request's end on disk, with all that it means, in one transaction.

Its agent's totals, what its quotas are charged, its record, its context as it leaves it, and the
answer that is kept under its key: after a kill there is all of it or nothing, and what there is was
not told to anybody before.

What must hold: a disk that fails costs records, never an answer; whoever asked is answered.
"""

from __future__ import annotations

import asyncio
import logging
from errno import errorcode
from typing import TYPE_CHECKING, Final

import msgspec

from aiosd import charge
from aiosd.again import Answer
from aiosd.journal import Journal, Write, dropping, keeping
from aiosd.roster import Note

if TYPE_CHECKING:
    from aiosd.db import Connection
    from aiosd.generation import Generation
    from aiosd.keys import Keys
    from aiosd.proc import ProcessTable
    from aiosd.quota import Quotas

log = logging.getLogger(__name__)

SWEEP: Final = 256  # requests between two looks for rows beyond `keep`

_COLUMNS: Final = (
    "id", "aid", "cid", "core", "t_submit", "t_start", "t_end", "prompt_tokens", "cached_tokens",
    "completion_tokens", "finish", "error", "waiting_s", "turnaround_s",
)  # fmt: skip
_INSERT: Final = f"insert into requests ({', '.join(_COLUMNS)}) values (:{', :'.join(_COLUMNS)})"

_SWEEP: Final = (  # not by number: each kernel that is killed leaves a gap of numbers
    "delete from requests where id <= (select id from requests order by id desc limit 1 offset ?)"
)


class Ledger:
    """Closes requests. keep: records that are kept, at most."""

    def __init__(
        self, table: ProcessTable, journal: Journal, keys: Keys, quotas: Quotas, keep: int
    ) -> None:
        self.keep = keep
        self._quotas = quotas
        self._table = table
        self._journal = journal
        self._keys = keys

    def close(self, generation: Generation) -> None:
        """Make a request's end durable with all that it means: accounts, record, kept answer."""
        context, kept = generation.context, generation.kept
        settled = self._quotas.settle(
            generation.rid, charge.spent(generation), charge.use(generation, self._table)
        )
        parts = [self._accounts(generation), settled, *self._table.interactions.part(generation)]
        answer = b""
        if kept is not None and generation.error is None:
            answer = msgspec.msgpack.encode(
                Answer(
                    generation.result(), [*generation.texts, generation.tail], generation.certain
                )
            )
            parts.append(keeping(kept.row(answer)))
        if stale := self._keys.stale():
            parts.append(dropping(stale))
        row = None if context.gone else context.record()
        try:
            generation.stored = self._journal.end(generation.rid, row, *parts)
        except OSError as error:
            log.warning("request %d is not on record: %s", generation.rid, error)
            self._settle(generation, answer)
        else:
            generation.stored.add_done_callback(lambda done: self._stored(generation, answer, done))

    def _stored(self, generation: Generation, answer: bytes, done: asyncio.Future[None]) -> None:
        """A request's end is durable, or can't be: whoever asked is answered all the same."""
        error = None if done.cancelled() else done.exception()
        if error is not None:
            log.warning("request %d is not on record: %s", generation.rid, error)
        self._settle(generation, answer)

    def _settle(self, generation: Generation, answer: bytes) -> None:
        """Keep the answer of a keyed request; one that failed may be asked for anew."""
        if generation.kept is not None and answer:
            self._keys.keep(generation.kept, answer)
        elif generation.kept is not None:
            self._keys.drop(generation.kept)

    def _accounts(self, generation: Generation) -> Write:
        """Charge the agent; return what writes its totals and the request's record."""
        timing = generation.timing()
        row = generation.record()
        prompt, cached, said = charge.counted(generation)
        rid, keep = generation.rid, self.keep
        totals = self._table.account(
            generation.aid,
            tokens_in=max(0, prompt - cached),
            tokens_out=said,
            cached=cached,
            waiting_s=timing.waiting_s,
            turnaround_s=timing.turnaround_s,
            dollars=charge.dollars(generation),
            note=Note("request.end", generation.aid, row | _facts(generation)),
        )

        def write(db: Connection) -> None:
            db.execute(_INSERT, row)
            if rid % SWEEP == 0:
                db.execute(_SWEEP, (keep,))
            totals(db)

        return write


def _facts(generation: Generation) -> dict[str, object]:
    """Return what watchers are told of an ended request beside its record."""
    error = generation.error
    return {
        "errno": errorcode.get(error.errno or 0, "EIO") if error else "",
        "first_token_s": generation.timing().first_token_s,
        "dollars": charge.dollars(generation),
    }
