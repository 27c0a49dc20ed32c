"""The tables of aios.db, as numbered migrations.

`MIGRATIONS[n - 1]` is migration n. What is released never changes: a new table or column is a new
function at the end of the list. Each runs once per database, in a transaction of its own.

Times are seconds since the epoch, durations seconds, JSON is text.
"""

from __future__ import annotations

import json
from typing import Final

from aiosd.db import Connection, Migration

_AGENTS = """
create table agents (
    aid integer primary key autoincrement,  -- never used twice, not even after a row is gone
    parent integer not null default 0,
    name text not null,
    uid integer not null,
    gid integer not null,
    groups text not null default '[]',
    kind text not null check (kind in ('spawned', 'foreign', 'forked')),
    program text not null default '',
    argv text not null default '[]',
    cwd text not null default '',
    pid integer not null default 0,
    pid_started real not null default 0,    -- tells the process from a later one of the same pid
    state text not null,
    nice integer not null default 0,
    max_tokens integer not null default 0,
    note text not null default '',
    credential_hash text not null default '',
    ticket_hash text not null default '',   -- of the one-time credential, until it is used up
    created real not null,
    started real not null default 0,
    ended real not null default 0,
    exit_code integer,
    exit_signal integer,
    exit_reason text not null default '',
    reaped integer not null default 0,
    tokens_in integer not null default 0,
    tokens_out integer not null default 0,
    cached_tokens integer not null default 0,
    requests integer not null default 0,
    dollars real not null default 0,
    waiting_s real not null default 0,
    turnaround_s real not null default 0,
    cpu_s real not null default 0
);
create index agents_ended on agents (ended);
create index agents_parent on agents (parent);
"""

_EVENTS = """
create table events (
    id integer primary key autoincrement,
    t real not null,
    aid integer not null,
    kind text not null,
    data text not null default '{}'
);
create index events_aid_t on events (aid, t);
create index events_t on events (t);
"""

_REQUESTS = """
create table requests (
    id integer primary key autoincrement,
    aid integer not null,
    cid integer not null,
    core text not null default '',
    t_submit real not null,
    t_start real not null default 0,
    t_end real not null default 0,
    prompt_tokens integer not null default 0,
    cached_tokens integer not null default 0,
    completion_tokens integer not null default 0,
    finish text not null default '',
    error text not null default '',
    waiting_s real not null default 0,
    turnaround_s real not null default 0
);
create index requests_aid_t on requests (aid, t_submit);
"""

_META = "create table meta (key text primary key, value text not null) without rowid"

_VERDICTS = """
create table verdicts (
    key text primary key,   -- model, build and processor
    verdict text not null,  -- JSON, the worker's own
    t real not null
) without rowid
"""


def first_boot(db: Connection) -> None:
    """Make the process table, its history and the cores' verdicts."""
    for script in (_AGENTS, _EVENTS, _REQUESTS, _META, _VERDICTS):
        db.executescript(script)


def keyed_births(db: Connection) -> None:
    """Remember by which idempotency key an agent was spawned."""
    db.execute("alter table agents add column birth_key text not null default ''")


def numbered_series(db: Connection) -> None:
    """Keep the marks of what is numbered in `meta`: no request or context has a number twice."""
    for name, column in (("request", "id"), ("context", "cid")):
        db.execute(
            f"insert into meta (key, value) select ?, coalesce(max({column}), 0) + 1 from requests",
            (f"next.{name}",),
        )


_CONTEXTS = """
create table contexts (
    cid integer primary key,
    aid integer not null,
    uid integer not null,
    core text not null,
    fingerprint text not null,      -- of the core that computed its KV; '' before it did
    tokens blob not null,           -- 4 bytes each, little-endian
    runs blob not null,             -- msgpack: how the first kv positions were computed
    kv integer not null,
    meta text not null,             -- JSON, the context's own
    created real not null,
    used real not null
)
"""

_OPEN_REQUESTS = """
create table open_requests (
    rid integer primary key,
    aid integer not null,
    cid integer not null,
    key text not null,              -- '' for one that nobody can ask for again
    args blob not null,             -- msgpack: the call
    submitted real not null,
    progress blob not null          -- msgpack: the generation's own
)
"""

_ANSWERS = """
create table answers (
    agent integer not null,         -- 1: owner is an aid; 0: a uid
    owner integer not null,
    call text not null,
    key text not null,
    print blob not null,
    answer blob not null,
    expires real not null,
    primary key (agent, owner, call, key)
) without rowid
"""


def journal(db: Connection) -> None:
    """Let contexts, open requests and kept answers outlive the kernel."""
    for script in (_CONTEXTS, _OPEN_REQUESTS, _ANSWERS):
        db.executescript(script)


_GRANTS = """
create table grants (
    id integer primary key autoincrement,
    subject text not null,      -- agent:AID, group:NAME or uid:UID
    capability text not null,
    object text not null,       -- the same, or kernel
    mode text not null check (mode in ('allow', 'ask')),
    by text not null,           -- who gave it, as a subject
    created real not null,
    expires real not null       -- 0: never
);
create unique index grants_said_once on grants (subject, capability, object);
create table groups (
    name text primary key,
    uid integer not null,       -- to whom it belongs: who may say who is in it
    created real not null
) without rowid;
create table approvals (
    id integer primary key autoincrement,
    aid integer not null,       -- 0: a person asks
    uid integer not null,
    capability text not null,
    object text not null,
    call text not null,
    print text not null,        -- of the call and its arguments: only this request is approved
    t real not null,
    expires real not null,
    state text not null check (state in ('pending', 'allowed', 'denied')),
    by text not null default ''
);
"""


def rights(db: Connection) -> None:
    """Keep grants, groups and what waits for approval; and every agent's line of forebears."""
    db.executescript(_GRANTS)
    db.execute("alter table agents add column lineage text not null default '[]'")
    known: dict[int, list[int]] = {}
    for aid, parent in db.execute("select aid, parent from agents order by aid").fetchall():
        known[aid] = [*known[parent], parent] if parent in known else []
        db.execute("update agents set lineage = ? where aid = ?", (json.dumps(known[aid]), aid))


_MESSAGES = """
create table messages (
    id integer primary key autoincrement,
    t real not null,
    aid integer not null,       -- in whose mailbox it is
    sender integer not null,    -- 0: a person
    uid integer not null,       -- the sender's
    topic text not null,        -- '': sent to the agent itself
    body blob not null          -- msgpack
);
create index messages_box on messages (aid, topic, id);
create table subscriptions (
    aid integer not null,
    topic text not null,
    primary key (aid, topic)
) without rowid;
"""


def mailboxes(db: Connection) -> None:
    """Keep messages until they are taken, and who subscribes to which topic."""
    db.executescript(_MESSAGES)


_SNAPSHOTS = """
create table snapshots (
    id integer primary key autoincrement,
    cid integer not null,
    name text not null,
    created real not null,
    request integer not null,   -- that was running, 0: none
    file text not null,         -- in the directory of contexts, '' when only tokens are kept
    bytes integer not null,
    count integer not null,     -- of tokens
    fingerprint text not null,
    kv integer not null,
    tokens blob not null,       -- 32 bits each
    runs blob not null,         -- msgpack
    meta text not null          -- JSON
);
create index snapshots_cid on snapshots (cid);
"""


def snapshots(db: Connection) -> None:
    """Keep named points of contexts."""
    db.executescript(_SNAPSHOTS)


MIGRATIONS: Final[list[Migration]] = [
    first_boot, keyed_births, numbered_series, journal, rights, mailboxes, snapshots,
]  # fmt: skip


def last_aid(db: Connection) -> int:
    """Return the highest aid that was ever given out; 0 when none was."""
    row = db.execute("select seq from sqlite_sequence where name = 'agents'").fetchone()
    return int(row[0]) if row else 0
