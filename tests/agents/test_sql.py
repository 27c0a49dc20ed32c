"""sql_query, against SQLite files and a real PostgreSQL; of MySQL what needs no server."""

from __future__ import annotations

import socket
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from agents.tools import databases, tunnel
from agents.tools.service import ServiceError
from agents.tools.sql import sql_query, sqlite_query, value
from aios.tools import BadArguments, Unavailable
from tests.agents.test_services import call
from tests.daemon import PATIENCE
from tests.stores.servers import PostgresServer

SECRET = PostgresServer.environ["AIOS_POSTGRES_PASSWORD"]
COUNT = "with recursive n(i) as (select 1 union all select i + 1 from n"
TABLE = """
    create table seats (id integer primary key, name text, price numeric);
    insert into seats values (1, 'window 100%', 12.5), (2, 'aisle', null), (3, 'a:b', 9);
"""


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        for part in filter(str.strip, TABLE.split(";")):
            server.ask(part)
        yield server


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory that a call works in, with a database in it."""
    for name in ("SQL_URL", "SQL_WRITABLE", "SQL_TIMEOUT", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    with sqlite3.connect(tmp_path / "seats.db") as base:
        base.executescript(TABLE)
    base.close()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(params=["sqlite", "postgresql"])
def database(
    request: pytest.FixtureRequest, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """A database of either kind, as the installation's."""
    kind: str = request.param
    url = f"sqlite:///{workspace / 'seats.db'}"
    if kind == "postgresql":
        port = request.getfixturevalue("postgres").port
        url = f"postgresql://aios:{SECRET}@127.0.0.1:{port}/postgres"
    monkeypatch.setenv("SQL_URL", url)
    return kind


def rows(query: str, **more: Any) -> list[list[Any]]:
    tool = sqlite_query if "database" in more else sql_query
    found: list[list[Any]] = call(tool, query=query, **more)["rows"]
    return found


def test_rows_are_read(database: str) -> None:
    got = call(sql_query, query="select id, name from seats order by id;", limit=2)
    assert got == {
        "columns": ["id", "name"], "rows": [[1, "window 100%"], [2, "aisle"]], "more": True,
        "changed": 0,
    }  # fmt: skip
    assert not call(sql_query, query="select 1", limit=1)["more"]


def test_signs_in_a_statement_mean_what_they_mean_in_sql(database: str) -> None:
    assert rows("select name from seats where name like '%100\\%' escape '\\'") == [["window 100%"]]
    assert rows("select id from seats where name = 'a:b' and 7 % 4 = 3") == [[3]]
    assert rows(
        "select id from seats where name = :name and 7 % 4 = 3", parameters={"name": "a:b"}
    ) == [[3]]
    assert rows("with s as (select id from seats) select count(*) from s where id > :low",
                parameters={"low": 1}) == [[2]]  # fmt: skip


def test_what_a_statement_lacks(database: str) -> None:
    with pytest.raises(ServiceError, match=r"refused the statement: .*(name|param)"):
        rows("select id from seats where name = :name", parameters={"other": 1})
    with pytest.raises(ServiceError, match=r"sql_query: .*SQL.* refused the statement: "):
        rows("select nothing from nowhere")


@pytest.mark.parametrize(
    "statement",
    [
        "insert into seats values (9, 'x', 1)",
        "drop table seats",
        "with gone as (delete from seats returning 1) select * from gone",
        "commit",
        "select 1; commit; drop table seats",
    ],
)
def test_a_reader_can_not_write(database: str, statement: str) -> None:
    with pytest.raises(ServiceError, match="refused the statement"):
        rows(statement)
    assert rows("select count(*) from seats") == [[3]]


def test_a_reader_stays_inside(workspace: Path) -> None:
    """What SQLite could do to other files, and to its own settings."""
    for statement in (
        "attach 'new.db' as other", "pragma query_only = off", "pragma journal_mode = wal",
        "select load_extension('x')", "explain delete from seats", "vacuum into 'new.db'",
    ):  # fmt: skip
        with pytest.raises(ServiceError, match="refused the statement"):
            rows(statement, database="seats.db")
    assert not (workspace / "new.db").exists()
    assert rows("pragma table_info(seats)", database="seats.db")[0][:3] == [0, "id", "INTEGER"]
    rows("delete from seats where id = 1", database="seats.db", write=True)
    assert rows("select count(*) from seats", database="seats.db") == [[2]]


def test_a_reader_of_postgres_stays_one(
    postgres: PostgresServer, workspace: Path, monkeypatch: Any
) -> None:
    url = f"postgresql://aios:{SECRET}@127.0.0.1:{postgres.port}/postgres"
    monkeypatch.setenv("SQL_URL", url)
    for statement in (
        "select set_config('transaction_read_only', 'off', false)",
        "select nextval('pg_catalog.no')", "copy seats to program 'touch /tmp/x'",
        "set transaction read write", "explain analyze delete from seats",
    ):  # fmt: skip
        with pytest.raises(ServiceError, match="refused the statement"):
            rows(statement)
    assert rows("show transaction_read_only") == [["on"]]
    assert rows("explain select 1")[0][0].startswith("Result")


def test_the_operator_may_allow_writing(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQL_WRITABLE", "yes")
    insert = "insert into seats values (:id, 'new', null)"
    assert call(sql_query, query=insert, parameters={"id": 7})["changed"] == 1
    assert rows("select name from seats where id = 7") == [["new"]]
    assert call(sql_query, query="delete from seats where id = 7")["changed"] == 1


def test_a_statement_ends_in_time(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQL_TIMEOUT", "0.5")
    endless = f"{COUNT}) select count(*) from n"
    with pytest.raises(ServiceError, match=r"ended the statement after 0\.5 s; ask for less"):
        rows(endless)


def test_more_rows_than_wanted_are_not_fetched(database: str) -> None:
    endless = f"{COUNT} where i < 2000000) select i from n"
    got = call(sql_query, query=endless, limit=1000)
    assert len(got["rows"]) == 1000 and got["more"]
    wide = f"{COUNT} where i < 999) select %s from n"
    text = {"sqlite": "printf('%.9000c', 'x')", "postgresql": "repeat('x', 9000)"}[database]
    got = call(sql_query, query=wide.replace("%s", text), limit=1000)
    assert len(got["rows"][0][0]) == 8000
    assert len(got["rows"]) == 50 and got["more"]


def test_values_of_a_database_have_a_form_in_json(
    postgres: PostgresServer, workspace: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("SQL_URL", f"postgresql://aios:{SECRET}@127.0.0.1:{postgres.port}/postgres")
    assert rows(
        "select 1.50::numeric, true, null, date '2026-11-21', timestamp '2026-11-21 01:02:03',"
        " 'a'::bytea, array[1, 2], '{\"a\": 1}'::json, 'NaN'::float8, interval '1 day',"
        " 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid"
    ) == [["1.50", True, None, "2026-11-21", "2026-11-21T01:02:03", "YQ==", "[1,2]", '{"a":1}',
           "nan", "1 day, 0:00:00", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"]]  # fmt: skip
    assert value(1 << 70) == str(1 << 70)


def test_without_a_database(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unavailable, match="secrets as SQL_URL"):
        rows("select 1")
    with pytest.raises(BadArguments, match=r"sqlite_query: .*x\.db' is no file in the workspace"):
        rows("select 1", database="../x.db")
    for url, says in (
        ("oracle://scott:tiger@host/name", "begins with 'oracle'"), ("no url", "is no URL"),
        ("mysql://u:p@host/name?local_infile=1", "in nothing else"),
    ):  # fmt: skip
        monkeypatch.setenv("SQL_URL", url)
        with pytest.raises(Unavailable, match=says) as raised:
            rows("select 1")
        assert "tiger" not in str(raised.value)


@pytest.mark.parametrize("kind", ["postgresql", "mysql"])
def test_a_server_that_is_not_there(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("SQL_URL", f"{kind}://me:{SECRET}@127.0.0.1:1/name")
    name = databases.NAMES[kind]
    with pytest.raises(ServiceError, match=f"sql_query: {name} can't be reached") as raised:
        rows("select 1")
    assert SECRET not in str(raised.value)


def test_a_password_that_is_wrong(
    postgres: PostgresServer, workspace: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("SQL_URL", f"postgresql://aios:wrong-one@127.0.0.1:{postgres.port}/postgres")
    with pytest.raises(
        ServiceError, match="can't be reached: password authentication failed"
    ) as raised:
        rows("select 1")
    assert "wrong-one" not in str(raised.value)


# ---- through the proxy of a sandbox ----


class Proxy:
    """A proxy for CONNECT that lets one target through."""

    def __init__(self, port: int) -> None:
        self.wanted: list[bytes] = []
        self._port = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._connect, args=(client,)))
            self._threads[-1].start()

    def _connect(self, client: socket.socket) -> None:
        with client:
            client.settimeout(PATIENCE)
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += client.recv(1)
            self.wanted.append(head.split()[1])
            if self.wanted[-1] != f"127.0.0.1:{self._port}".encode():
                client.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")
                return
            with socket.create_connection(("127.0.0.1", self._port), PATIENCE) as server:
                client.sendall(b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n")
                back = threading.Thread(target=self._pump, args=(server, client))
                back.start()
                self._pump(client, server)
                back.join()

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(1 << 16):
                other.sendall(data)
        with suppress(OSError):
            other.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for thread in self._threads:
            thread.join(PATIENCE)


@pytest.fixture
def proxied(
    postgres: PostgresServer, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Proxy]:
    proxy = Proxy(postgres.port)
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    yield proxy
    proxy.close()


def test_a_database_is_reached_through_a_proxy(
    proxied: Proxy, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQL_URL", f"postgresql://aios:{SECRET}@127.0.0.1:{postgres.port}/postgres")
    assert rows("select 1") == [[1]]
    assert proxied.wanted == [f"127.0.0.1:{postgres.port}".encode()]
    monkeypatch.setenv("SQL_URL", "mysql://me:x@db.example.org/name")
    with pytest.raises(
        ServiceError, match=r"the proxy does not let db\.example\.org:3306 through: .*403"
    ):
        rows("select 1")


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 20_000])
def test_a_proxy_that_is_none(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        client, _ = listening.accept()
        with client, listening:
            client.recv(1 << 16)
            client.sendall(said)

    thread = threading.Thread(target=serve)
    thread.start()
    monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{listening.getsockname()[1]}")
    with pytest.raises(OSError, match=r"did not answer as one|reset"):
        tunnel.connect("db.example.org", 5432, PATIENCE)
    thread.join(PATIENCE)


# ---- MySQL, as far as no server is needed ----


@pytest.mark.parametrize(
    "statement",
    ["delete from seats", "set session transaction read write", "call p()", "do sleep(1)",
     "/*!50000 drop */ table seats", "(drop table seats)", "load data infile 'x' into table t",
     "select 1 into outfile '/tmp/x'", "select 1 INTO/**/DUMPFILE '/tmp/x'"],
)  # fmt: skip
def test_a_reader_of_mysql_is_held_to_queries(statement: str) -> None:
    from agents.tools import sql

    with pytest.raises(BadArguments, match="may only be read"):
        sql._check_mysql(sql._Asked(statement, {}, 1, False))
    for query in ("select 1", "(select 1)", "show tables", "with a as (select 1) select * from a"):
        sql._check_mysql(sql._Asked(query, {}, 1, False))
