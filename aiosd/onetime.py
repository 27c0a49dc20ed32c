"""Calls that must not happen twice: what a kernel that is killed in the middle of one leaves.

    await onetime.begin(owner, key, "pay")     # OSError when it may have happened already
    write = onetime.ending(owner, key)         # goes with the answer, in one transaction
    await onetime.failed(owner, key)           # it had no effect that counts; the key is free

A keyed call of a tool that is not idempotent is entered before it begins and taken out with its
answer. So the next kernel, asked again under that key, knows that nobody knows what came of it.
"""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING, Final

from aiosd.keys import KEEP_S, Owner

if TYPE_CHECKING:
    from aiosd.db import Connection, Database
    from aiosd.journal import Write

_OLD: Final = "delete from tool_calls where begun < ?"
_ENTER: Final = "insert or ignore into tool_calls values (?, ?, ?, ?)"
_REMOVE: Final = "delete from tool_calls where owner = ? and key = ?"


class Onetime:
    """The calls under way."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def begin(self, owner: Owner, key: str, tool: str) -> None:
        """Enter a call. Raises OSError(EIO) when it began under an earlier kernel."""
        now, name = time.time(), _name(owner)

        def write(db: Connection) -> bool:
            db.execute(_OLD, (now - KEEP_S,))
            return bool(db.execute(_ENTER, (name, key, tool, now)).rowcount)

        if not await self._db.write(write):
            raise OSError(
                errno.EIO,
                f"tool {tool}: a call with this key was cut short, and whether it had its effect "
                "is not known: look, and use another key to call it again",
            )

    def ending(self, owner: Owner, key: str) -> Write:
        """Return what takes a call out, to be written with its answer."""

        def write(db: Connection) -> None:
            db.execute(_REMOVE, (_name(owner), key))

        return write

    async def failed(self, owner: Owner, key: str) -> None:
        """Take out a call that failed: whoever asks again may have it begun again."""
        await self._db.write(self.ending(owner, key))


def _name(owner: Owner) -> str:
    agent, number = owner
    return f"{'agent' if agent else 'uid'}:{number}"
