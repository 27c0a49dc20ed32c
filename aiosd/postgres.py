"""Chunks of blobs as rows of a PostgreSQL table, through asyncpg (`pip install 'aios[postgres]'`).

    shelf = Table(settings, os.environ)

The table is made when it is first needed. A chunk is one row, committed by itself with
synchronous_commit on. The password comes from the first of these that there is:
AIOS_POSTGRES_PASSWORD, the systemd credential aios-postgres-password, the file `password_file`
(0600); none at all where the server asks for none.

What must hold: a connection on which anything went wrong is not used again.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urlsplit

import asyncpg

from aiosd import credential
from aiosd.blobs import PIECE
from aiosd.remote import line, unreachable
from aiosd.settings import Postgres

CONNECTIONS: Final = 8
BELOW: Final = "name >= $1 and name < $2"
REFUSED: Final = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.InvalidCatalogNameError,
)


class Table:
    """A table of chunks. Raises OSError for settings that are no good."""

    chunk = PIECE

    def __init__(self, settings: Postgres, environ: Mapping[str, str]) -> None:
        if not settings.url:
            raise OSError(
                errno.EINVAL, "storage.postgres.url: say where, as postgresql://user@host/database"
            )
        if urlsplit(settings.url).password:
            raise OSError(
                errno.EINVAL,
                "storage.postgres.url: holds a password; put it into AIOS_POSTGRES_PASSWORD, the "
                "credential aios-postgres-password, or storage.postgres.password_file",
            )
        self._url = settings.url
        self._table = settings.table
        self._password = credential.load(
            "AIOS_POSTGRES_PASSWORD", "aios-postgres-password", settings.password_file, environ
        )
        self._gate = asyncio.Semaphore(CONNECTIONS)
        self._idle: list[asyncpg.Connection] = []
        self._made = False

    async def put(self, name: str, data: bytes) -> None:
        """Write a row."""
        sql = (
            f"insert into {self._table} (name, data) values ($1, $2)"
            " on conflict (name) do update set data = excluded.data"
        )
        async with self._connection() as db:
            await db.execute(sql, name, data)

    async def get(self, name: str, start: int, size: int) -> bytes:
        """Read part of a row."""
        sql = f"select substring(data from $2 for $3) from {self._table} where name = $1"
        async with self._connection() as db:
            row = await db.fetchrow(sql, name, start + 1, size)
        if row is None:
            raise FileNotFoundError(errno.ENOENT, "PostgreSQL has no such chunk")
        return bytes(row[0])

    async def delete(self, prefix: str) -> None:
        """Delete rows."""
        async with self._connection() as db:
            await db.execute(f"delete from {self._table} where {BELOW}", prefix, _end(prefix))

    async def names(self, prefix: str) -> list[str]:
        """List what is below a prefix."""
        sql = (
            f"select distinct split_part(substr(name, $3), '/', 1) from {self._table} where {BELOW}"
        )
        async with self._connection() as db:
            rows = await db.fetch(sql, prefix, _end(prefix), len(prefix) + 1)
        return [row[0] for row in rows]

    async def close(self) -> None:
        """Close connections."""
        while self._idle:
            self._idle.pop().terminate()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[asyncpg.Connection]:
        """Lend a connection; errors come out as OSError."""
        async with self._gate:
            db = None
            try:
                db = self._take() or await self._connect()
                yield db
            except BaseException as error:
                if db is not None:
                    db.terminate()
                if isinstance(error, Exception):  # a server that talks nonsense brings any
                    raise self._told(error) from None
                raise
            self._idle.append(db)

    def _take(self) -> asyncpg.Connection | None:
        """Return an idle connection, None when there is none that still stands."""
        while self._idle:
            db = self._idle.pop()
            if not db.is_closed():
                return db
        return None

    async def _connect(self) -> asyncpg.Connection:
        db = await asyncpg.connect(
            self._url,
            password=self._password or None,
            timeout=3600,  # the time of each request is remote.py's business
            server_settings={"synchronous_commit": "on", "application_name": "aiosd"},
        )
        try:
            if not self._made:
                await self._prepare(db)
                self._made = True
        except BaseException:
            db.terminate()
            raise
        return db

    async def _prepare(self, db: asyncpg.Connection) -> None:
        """Make the table where there is none; bytes as they are, as most won't compress."""
        if await db.fetchval("select to_regclass($1)", self._table) is not None:
            return
        await db.execute(
            f'create table if not exists {self._table} (name text collate "C" primary key,'
            f" data bytea not null);"
            f" alter table {self._table} alter column data set storage external"
        )

    def _told(self, error: BaseException) -> OSError:
        if (
            isinstance(error, FileNotFoundError)
            and error.strerror == "PostgreSQL has no such chunk"
        ):
            return error
        if isinstance(error, REFUSED):
            return PermissionError(
                errno.EACCES, f"PostgreSQL refuses us: {line(error, self._password)}"
            )
        if isinstance(error, asyncpg.DiskFullError):
            return OSError(errno.ENOSPC, "PostgreSQL has no space left on its disk")
        return unreachable("PostgreSQL", error, self._password)


def _end(prefix: str) -> str:
    """Return what comes right behind all names that begin so."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)
