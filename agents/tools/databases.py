"""Connections to the databases that sql_query asks: SQLite, PostgreSQL, MySQL and MariaDB.

SQLAlchemy knows the URL, and what is different about each. The drivers are in pure Python and take
an open socket, so that they work through a sandbox's proxy; nothing waits without end on one.
"""

from __future__ import annotations

import socket
import sqlite3
import ssl
from typing import Any, Final
from urllib.parse import quote

import sqlalchemy
from sqlalchemy import URL, Engine, event
from sqlalchemy.pool import NullPool

from aios.tools import Unavailable, setting

from . import tunnel

TIMEOUT: Final = 15.0
"""Seconds of a statement where SQL_TIMEOUT says nothing else."""

NAMES: Final = {
    "postgresql": "PostgreSQL",
    "mysql": "MySQL",
    "mariadb": "MariaDB",
    "sqlite": "SQLite",
}

_DRIVERS: Final = {"postgresql": "pg8000", "mysql": "pymysql", "mariadb": "pymysql"}
_PORTS: Final = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}
_GRACE: Final = 10.0  # seconds that a server has to end a statement of its own accord


def patience() -> float:
    """Return how many seconds a statement may take."""
    text = setting("SQL_TIMEOUT")
    try:
        seconds = float(text) if text else TIMEOUT
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise Unavailable(f"sql_query: SQL_TIMEOUT is {text[:80]!r}, not seconds up to 3600")
    return seconds


def engine(url: URL, writable: bool) -> Engine:
    """Return what connects to a database. Raises Unavailable for a URL that can't be used."""
    backend = url.get_backend_name()
    if backend == "sqlite":
        return _sqlite(url, writable)
    tls = _tls(url)
    plain = url.set(drivername=f"{backend}+{_DRIVERS[backend]}", query={})
    return _postgres(plain, tls) if backend == "postgresql" else _mysql(plain, tls)


def _sqlite(url: URL, writable: bool) -> Engine:
    where = f"file:{quote(url.database or '')}?mode={'rw' if writable else 'ro'}"

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(where, uri=True, timeout=patience())

    return sqlalchemy.create_engine("sqlite://", poolclass=NullPool, creator=connect)


def _postgres(url: URL, tls: ssl.SSLContext | None) -> Engine:
    import pg8000.dbapi

    def connect(_dialect: Any, _record: Any, args: Any, settings: dict[str, Any]) -> Any:
        sock = _socket(url)
        try:
            return pg8000.dbapi.connect(*args, **settings, sock=sock, ssl_context=tls)
        except BaseException:
            sock.close()
            raise

    # With named parameters, and with these alone, a % in a statement means nothing to the driver.
    pg8000.dbapi.paramstyle = "named"
    made = sqlalchemy.create_engine(url, poolclass=NullPool, paramstyle="named")
    event.listen(made, "do_connect", connect)
    return made


def _mysql(url: URL, tls: ssl.SSLContext | None) -> Engine:
    import pymysql

    def connect(_dialect: Any, _record: Any, args: Any, settings: dict[str, Any]) -> Any:
        seconds = patience() + _GRACE
        found = pymysql.connect(
            *args, **settings, ssl=tls, defer_connect=True,
            read_timeout=seconds, write_timeout=seconds,
        )  # fmt: skip
        sock = _socket(url)
        try:
            found.connect(sock)
        except BaseException:
            sock.close()
            raise
        return found

    made = sqlalchemy.create_engine(url, poolclass=NullPool)
    event.listen(made, "do_connect", connect)
    return made


def _socket(url: URL) -> socket.socket:
    """Return a connection to a database's server, on which each step may take its time, no more."""
    port = url.port or _PORTS[url.get_backend_name()]
    return tunnel.connect(url.host or "localhost", port, patience() + _GRACE)


def _tls(url: URL) -> ssl.SSLContext | None:
    """Return how the connection is secured: sslmode, as PostgreSQL's own clients call it."""
    unknown = set(url.query) - {"sslmode"}
    mode = url.query.get("sslmode", "disable")
    if unknown or mode not in ("disable", "verify-full"):
        raise Unavailable(
            "sql_query: SQL_URL may end in ?sslmode=verify-full (TLS, with the name checked)"
            " or ?sslmode=disable, and in nothing else"
        )
    return ssl.create_default_context() if mode == "verify-full" else None
