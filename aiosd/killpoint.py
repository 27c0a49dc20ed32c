"""Kill points: named places at which a test has this process die, as if by SIGKILL.

    AIOS_KILL_AT=journal.end:3 aiosd ...        # dies when it comes there for the third time
    AIOS_KILL_AT=journal.end:3:/tmp/mark ...    # ... once only: not where the file exists already

A test hook and nothing else. Without the variable `reach` does nothing, and nothing is counted.
Workers inherit the variable, so that a point may lie in theirs; the file keeps the one that comes
after from dying there again.

POINTS names them all; whoever adds one adds it there, and the soak test goes through them.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Final

VARIABLE: Final = "AIOS_KILL_AT"

POINTS: Final = {
    "journal.begin": "a request and its context are written, not committed",
    "journal.flush": "tokens are written behind, not committed",
    "journal.end": "a request's end is written, not committed",
    "journal.save": "contexts are written at their owner's wish, not committed",
    "journal.forget": "contexts are deleted, not committed",
    "journal.answer": "the answer of a keyed call is written, not committed",
    "db.commit": "a group is complete, its commit not begun",
    "db.committed": "a group is committed, nobody has been told",
    "inference.answer": "a request's end is durable, its reply not sent",
    "interactions.row": "a request is put in the history, not committed",
    "identity.answer": "a new credential is durable, its owner has not been told",
    "snapshot.begun": "a snapshot's copy on disk has its size, and nothing in it",
    "snapshot.copied": "a snapshot's copy is written, not synced",
    "snapshot.synced": "a snapshot's copy is synced, under its temporary name",
    "snapshot.renamed": "a snapshot's copy has its name, its directory is not synced",
    "snapshot.kept": "a named snapshot's file is complete, its row is not written",
    "snapshot.row": "a named snapshot's row is written, not committed",
    "memory.row": "records are written, not committed",
    "memory.answer": "records are durable, nobody has been told",
    "storage.part": "a part of an object is written, more are to come",
    "storage.synced": "an object's bytes are synced, under their temporary name",
    "storage.placed": "an object's bytes have their name, its version is not written",
    "storage.row": "an object's version is written, not committed",
    "storage.answer": "an object's version is durable, its writer has not been told",
    "storage.forgotten": "bytes are no longer on record, and not deleted yet",
    "tools.registered": "a tool is declared or taken away, not committed",
    "tools.begun": "a call that must not happen twice is on record, and not begun",
    "tools.done": "a call that must not happen twice was made, its answer is not on record",
    "toolturns.round": "a round of a generation with tools is durable, its calls are not begun",
    "toolturns.called": "the calls of a round have been made, it is not on record",
    "toolturns.recorded": "a round with its calls is on record, the next one is not begun",
    "quota.reserve": "reservations are written, not committed",
    "quota.reserved": "a reservation is durable, its request is not on its core",
    "quota.settle": "a request's use is charged, not committed",
    "quota.set": "a limit is written, not committed",
    "snapshot.cleared": "in a worker: a file's header is cleared, nothing else is written",
    "snapshot.filled": "in a worker: a file's contents are written, its header is not valid",
    "weights.written": "in a worker: converted weights are written, not synced",
    "weights.synced": "in a worker: converted weights are synced, under their temporary name",
    "snapshot.written": "in a worker: a file is whole, the kernel has not been told",
}
"""Each point, and what is done when it is reached."""


def _nothing(name: str) -> None:
    """Come by a point that nobody asked for."""


def _armed(wanted: str, count: int, mark: str) -> Callable[[str], None]:
    left = count

    def reach(name: str) -> None:
        nonlocal left
        if name != wanted:
            return
        left -= 1
        if left == 0 and _first(mark):
            os.kill(os.getpid(), signal.SIGKILL)

    return reach


def _first(mark: str) -> bool:
    """Whether no process has died here before; leaves the mark that says so."""
    if not mark:
        return True
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return False
    return True


def arm(text: str) -> Callable[[str], None]:
    """Return the function that counts the points passed. text: NAME[:COUNT[:FILE]], "" for none.

    Raises ValueError for a point that there is not, or a count that is no number.
    """
    name, _, rest = text.partition(":")
    if name and name not in POINTS:
        raise ValueError(f"{VARIABLE}: no kill point {name!r}; there are {', '.join(POINTS)}")
    count, _, mark = rest.partition(":")
    return _armed(name, int(count or 1), mark) if name else _nothing


reach: Final = arm(os.environ.get(VARIABLE, ""))
"""Come by the point of this name."""
