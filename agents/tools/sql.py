"""sql_query and sqlite_query: questions to a database, by default ones that may only read.

sql_query asks the one of the secret SQL_URL (SQLite, PostgreSQL, MySQL or MariaDB; SQLAlchemy knows
the URL and the drivers), sqlite_query a file of the workspace. What must hold:
- it is the database that keeps a reader from writing, not a look at the text: an authorizer of
  SQLite's, a read-only transaction and a cursor of PostgreSQL's, a read-only session of MySQL's;
- one call carries out one statement, which ends after SQL_TIMEOUT seconds;
- a result has a bounded number of rows, and each value a bounded size; more is not fetched.

Where a database is, and how one gets there, is in `databases`.
"""

from __future__ import annotations

import base64
import datetime
import math
import re
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import msgspec
import sqlalchemy
from sqlalchemy import URL, Connection, CursorResult
from sqlalchemy.exc import ArgumentError, DBAPIError

from aios.tools import BadArguments, Meta, Unavailable, secret, setting, tool

from . import databases
from .databases import NAMES, patience
from .service import ServiceError, clip, cover

_CELL: Final = 8_000  # characters
_ALL: Final = 400_000  # characters of all values
_LENGTH: Final = 16 << 20  # bytes of a value or row inside of SQLite
_READING: Final = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}
_PRAGMAS: Final = {
    "table_list",
    "table_info",
    "table_xinfo",
    "index_list",
    "index_info",
    "foreign_key_list",
}
_MYSQL_READS: Final = {"SELECT", "WITH", "SHOW", "DESCRIBE", "DESC", "EXPLAIN", "TABLE", "VALUES"}

_LATE: Final = (
    "interrupted",
    "statement timeout",
    "maximum statement execution",
    "max_statement_time",
)
"""What the databases say of a statement that they have ended."""

Value = str | int | float | bool | None
Query = Annotated[str, Meta(min_length=1, max_length=20_000)]
Parameters = dict[Annotated[str, Meta(pattern=r"^[A-Za-z_]\w*$")], Value] | None
Limit = Annotated[int, Meta(ge=1, le=1000)]


class Rows(msgspec.Struct):
    """What a statement gave. more: there were more rows. changed: how many rows it changed."""

    columns: list[str]
    rows: list[list[Value]]
    more: bool = False
    changed: int = 0


@tool(needs={"secrets": ["SQL_URL"]}, limits={"time": 120})
def sql_query(query: Query, parameters: Parameters = None, limit: Limit = 100) -> Rows:
    """Ask the database of this installation in SQL: one statement, which as a rule may only read.

    query: the statement, with :name where a parameter stands
    parameters: values by name
    limit: how many rows at most
    """
    url = _installed()
    writable = setting("SQL_WRITABLE").lower() in ("1", "yes", "true")
    return _ask("sql_query", url, _Asked(_plain(query), parameters or {}, limit, writable))


@tool(limits={"time": 120})
def sqlite_query(
    database: Annotated[str, Meta(min_length=1, max_length=1000)],
    query: Query,
    parameters: Parameters = None,
    limit: Limit = 100,
    write: bool = False,
) -> Rows:
    """Ask an SQLite file of the workspace in SQL: one statement.

    database: the file
    query: the statement, with :name where a parameter stands
    parameters: values by name
    limit: how many rows at most
    write: let the statement change the file, which must be there already
    """
    url = _file(database)
    return _ask("sqlite_query", url, _Asked(_plain(query), parameters or {}, limit, write))


def _plain(query: str) -> str:
    return query.strip().removesuffix(";").rstrip()


def _ask(tool: str, url: URL, asked: _Asked) -> Rows:
    """Carry a statement out. Raises ServiceError that names the tool and the kind of database."""
    engine = databases.engine(url, asked.writable)
    try:
        connection = engine.connect()
    except Exception as error:  # noqa: BLE001 (drivers raise anything at what a server says)
        why = _words(url, error)
        raise ServiceError(f"{tool}: {_name(url)} can't be reached: {why}") from None
    try:
        with connection:
            rows = _WAYS[engine.name](connection, asked)
            if asked.writable:
                connection.commit()
            return rows
    except BadArguments:
        raise
    except Exception as error:  # noqa: BLE001 (as above)
        raise _failed(tool, url, error) from None
    finally:
        engine.dispose()


class _Asked(NamedTuple):
    """A call: limit is that of rows."""

    statement: str
    parameters: dict[str, Value]
    limit: int
    writable: bool

    @property
    def verb(self) -> str:
        """The word that the statement begins with."""
        return self.statement.partition(" ")[0].split()[0].strip("(").upper()


def _ask_sqlite(connection: Connection, asked: _Asked) -> Rows:
    raw = connection.connection.driver_connection
    assert isinstance(raw, sqlite3.Connection)
    raw.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LENGTH)
    deadline = time.monotonic() + patience()
    raw.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
    raw.set_authorizer(None if asked.writable else _may_read)
    return _rows(_execute(connection, asked), asked.limit)


def _may_read(action: int, first: str | None, second: str | None, *_: object) -> int:
    """Tell SQLite what a statement may do: read, and look at what there is to read."""
    if action in _READING or (action == sqlite3.SQLITE_PRAGMA and first in _PRAGMAS):
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY


def _ask_postgres(connection: Connection, asked: _Asked) -> Rows:
    connection = connection.execution_options(postgresql_readonly=not asked.writable)
    connection.exec_driver_sql(f"SET statement_timeout = {int(patience() * 1000)}")
    if asked.writable or asked.verb in ("SHOW", "EXPLAIN"):
        return _rows(_execute(connection, asked), asked.limit)
    # A cursor takes nothing that is no query, and leaves on the server what is not wanted.
    _execute(
        connection,
        asked._replace(statement=f"DECLARE asked NO SCROLL CURSOR FOR {asked.statement}"),
    )
    return _rows(connection.exec_driver_sql(f"FETCH {asked.limit + 1} FROM asked"), asked.limit)


def _ask_mysql(connection: Connection, asked: _Asked) -> Rows:
    mariadb = getattr(connection.dialect, "is_mariadb", False)
    if not asked.writable:
        _check_mysql(asked)
        connection.exec_driver_sql("SET SESSION TRANSACTION READ ONLY")
        connection.rollback()  # what comes now is the first of a new transaction
    seconds = patience()
    if mariadb:
        connection.exec_driver_sql(f"SET SESSION max_statement_time = {seconds}")
    else:
        connection.exec_driver_sql(f"SET SESSION max_execution_time = {int(seconds * 1000)}")
    connection.exec_driver_sql(f"SET SESSION sql_select_limit = {asked.limit + 1}")
    streaming = connection.execution_options(stream_results=True)
    rows = _rows(_execute(streaming, asked), asked.limit)
    if rows.more and not asked.writable:
        connection.invalidate()  # closing it in peace would read all the rows that are left
    return rows


def _check_mysql(asked: _Asked) -> None:
    """Refuse what a read-only session of MySQL's lets through: files of the server, settings."""
    if asked.verb not in _MYSQL_READS:
        raise BadArguments(
            f"sql_query: {asked.verb[:40]} is no query, and this database may only be read"
        )
    if re.search(r"\b(outfile|dumpfile)\b", asked.statement, re.IGNORECASE):
        raise BadArguments(
            "sql_query: OUTFILE and DUMPFILE write files; this database may only be read"
        )


_WAYS: Final[dict[str, Callable[[Connection, _Asked], Rows]]] = {
    "sqlite": _ask_sqlite, "postgresql": _ask_postgres, "mysql": _ask_mysql, "mariadb": _ask_mysql,
}  # fmt: skip


def _execute(connection: Connection, asked: _Asked) -> CursorResult[Any]:
    """Carry a statement out with its parameters, in the way that its driver takes them by name."""
    if not asked.parameters:
        plain = connection.execution_options(no_parameters=True)
        return plain.exec_driver_sql(asked.statement)
    if connection.dialect.paramstyle == "named" or connection.dialect.name == "sqlite":
        return connection.exec_driver_sql(asked.statement, asked.parameters)
    return connection.execute(sqlalchemy.text(asked.statement), asked.parameters)


def _rows(result: CursorResult[Any], limit: int) -> Rows:
    """Return the rows of a result, as many as there is room for."""
    if not result.returns_rows:
        return Rows([], [], changed=max(result.rowcount, 0))
    rows: list[list[Value]] = []
    room = _ALL
    for row in result.fetchmany(limit + 1):
        values = [value(cell) for cell in row]
        room -= sum(len(cell) if isinstance(cell, str) else 8 for cell in values)
        if len(rows) == limit or (room < 0 and rows):
            return Rows(list(result.keys()), rows, more=True)
        rows.append(values)
    return Rows(list(result.keys()), rows)


def value(cell: object) -> Value:
    """Return a value of a database as one of JSON: what has no such form becomes text."""
    if cell is None or isinstance(cell, bool):
        return cell
    if isinstance(cell, int):
        return cell if abs(cell) < 1 << 63 else str(cell)
    if isinstance(cell, float):
        return cell if math.isfinite(cell) else str(cell)
    if isinstance(cell, bytes | bytearray | memoryview):
        return clip(base64.b64encode(bytes(cell[:_CELL])).decode(), _CELL)
    if isinstance(cell, datetime.date | datetime.time):
        return cell.isoformat()
    if isinstance(cell, dict | list | tuple):
        return clip(msgspec.json.encode(cell, enc_hook=str).decode(), _CELL)
    return clip(str(cell), _CELL)


def _failed(tool: str, url: URL, error: Exception) -> ServiceError:
    """Say what a database had against a statement."""
    why = _words(url, error)
    if isinstance(error, KeyError | TypeError):  # pg8000, of a name in the statement
        why = f"no value for the parameter {why}"
    if any(sign in why for sign in _LATE):
        return ServiceError(
            f"{tool}: {_name(url)} ended the statement after {patience():g} s; ask for less, or"
            f" set SQL_TIMEOUT in [tools.settings.{tool}]"
        )
    return ServiceError(f"{tool}: {_name(url)} refused the statement: {why}")


def _words(url: URL, error: Exception) -> str:
    """Return what a driver says of an error, without the password."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    said = cause.args[0] if cause.args else ""
    if isinstance(said, dict):  # pg8000: the fields of the server's message
        said = ". ".join(str(said[field]) for field in ("M", "D", "H") if field in said)
    elif len(cause.args) > 1:  # PyMySQL: number and text
        said = " ".join(str(part) for part in cause.args)
    return clip(cover(str(said) or type(cause).__name__, (url.password or "",)), 500)


def _name(url: URL) -> str:
    return NAMES[url.get_backend_name()]


def _installed() -> URL:
    """Return the database of this installation. Raises Unavailable when there is none."""
    try:
        text = secret("SQL_URL")
    except Unavailable:
        raise Unavailable(
            "sql_query: no database is set up; put its URL, as postgresql://user:password@host/name,"
            " into the kernel's store of secrets as SQL_URL (see aios-tool-catalog(7))"
        ) from None
    try:
        url = sqlalchemy.make_url(text)
    except ArgumentError:
        raise Unavailable("sql_query: the secret SQL_URL is no URL of a database") from None
    if url.get_backend_name() not in NAMES:
        known = ", ".join(NAMES)
        raise Unavailable(f"sql_query: SQL_URL begins with {url.drivername!r}; known are {known}")
    return url


def _file(database: str) -> URL:
    here = Path.cwd().resolve()
    path = (here / database).resolve()
    if not path.is_relative_to(here) or not path.is_file():
        raise BadArguments(f"sqlite_query: database {database!r} is no file in the workspace")
    return URL.create("sqlite", database=str(path))
