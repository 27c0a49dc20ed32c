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


_OWNERS = """
create table owners (
    id integer primary key,
    kind text not null check (kind in ('agent', 'uid', 'pool')),
    name text not null,                     -- the aid, the uid, or the pool's name
    uid integer not null,                   -- of the agent or person
    reserved integer not null default 0,    -- bytes of storage, by sto_alloc
    unique (kind, name)
)
"""

_MEMORIES = """
create table memories (
    id integer primary key autoincrement,
    owner integer not null,
    text text not null,
    metadata text not null,
    created real not null,
    size integer not null,                  -- bytes that count against the owner's limit
    rev integer not null default 0,         -- how often the text was replaced
    key text not null default ''            -- the idempotency key of its add_memory
);
create index memories_owner on memories (owner, created);
create unique index memories_key on memories (owner, key) where key != '';
"""

_OBJECTS = """
create table objects (
    id integer primary key autoincrement,
    owner integer not null,
    name text not null,
    version integer not null,               -- the newest
    indexed integer not null default 0,     -- the version that passages are of
    unique (owner, name)
);
create table versions (
    object integer not null,
    version integer not null,
    digest text not null,
    size integer not null,
    content_type text not null,
    metadata text not null,
    created real not null,
    key text not null default '',
    primary key (object, version)
) without rowid;
create index versions_digest on versions (digest);
create table blobs (
    digest text primary key,
    size integer not null,
    sums blob not null,                     -- xxh3 of each piece, 8 bytes little-endian
    used real not null
) without rowid;
create table passages (
    id integer primary key autoincrement,
    owner integer not null,
    object integer not null,
    start integer not null,                 -- byte of the object
    text text not null,
    rev integer not null default 0
);
create index passages_owner on passages (owner, object);
create index passages_object on passages (object);
"""

_FOUND = """
create virtual table {0}_words using fts5(
    owner, text, content='{0}', content_rowid='id', tokenize='porter unicode61 remove_diacritics 2'
);
create trigger {0}_added after insert on {0} begin
    insert into {0}_words (rowid, owner, text) values (new.id, new.owner, new.text);
end;
create trigger {0}_deleted after delete on {0} begin
    insert into {0}_words ({0}_words, rowid, owner, text)
    values ('delete', old.id, old.owner, old.text);
    delete from {0}_vectors where id = old.id;
end;
create trigger {0}_updated after update of text on {0} begin
    insert into {0}_words ({0}_words, rowid, owner, text)
    values ('delete', old.id, old.owner, old.text);
    insert into {0}_words (rowid, owner, text) values (new.id, new.owner, new.text);
end;
create table {0}_vectors (
    id integer primary key,
    owner integer not null,
    rev integer not null,                   -- of the text that it was made from
    model text not null,
    vector blob not null                    -- float32, little-endian, of unit length
);
create index {0}_vectors_owner on {0}_vectors (owner);
"""
"""What makes the texts of a table findable: words by FTS5, meaning by vectors."""


def stores(db: Connection) -> None:
    """Make the tables of semantic memory and of storage."""
    for script in (_OWNERS, _MEMORIES, _OBJECTS):
        db.executescript(script)
    for table in ("memories", "passages"):
        db.executescript(_FOUND.format(table))


_ORIGINALS = """
create table originals (
    cid integer not null,
    at integer not null,        -- position of its first token in the context's life
    number integer not null,    -- of the turn
    role text not null,
    text text not null,
    tokens blob not null,       -- 32 bits each
    primary key (cid, at)
) without rowid;
create trigger originals_end after delete on contexts begin
    delete from originals where cid = old.cid;
end;
"""


def originals(db: Connection) -> None:
    """Keep the turns of contexts that have been summarized, as they were."""
    db.executescript(_ORIGINALS)


def audit_owed(db: Connection) -> None:
    """Keep what the audit log is owed until it has it."""
    db.execute(
        "create table audit_owed (id integer primary key autoincrement, kind text not null, "
        "uid integer not null, aid integer not null, target integer not null, data text not null)"
    )


_INTERACTIONS = """
create table interactions (
    id integer primary key autoincrement,   -- in the order of their ends
    rid integer not null unique,            -- of the request: it is there once
    aid integer not null,
    cid integer not null,
    core text not null,
    submitted real not null,
    t real not null,                        -- when it ended
    finish text not null,
    reason text not null,
    prompt_tokens integer not null,
    completion_tokens integer not null,
    size integer not null,                  -- bytes of the texts
    digests text not null                   -- JSON: SHA-256 of request and reply, or {}
);
create index interactions_agent on interactions (aid, id);
create index interactions_t on interactions (t);
create table interaction_texts (
    id integer primary key,
    aid integer not null,
    asked text not null,                    -- the prompt, or the turns one after the other
    turns text not null,                    -- JSON: role and characters of each; [] of a prompt
    reply text not null
);
create trigger interactions_deleted after delete on interactions begin
    delete from interaction_texts where id = old.id;
end;
create table interactions_held (count integer not null, bytes integer not null);
insert into interactions_held values (0, 0);
create trigger interactions_more after insert on interactions begin
    update interactions_held set count = count + 1, bytes = bytes + new.size;
end;
create trigger interactions_less after delete on interactions begin
    update interactions_held set count = count - 1, bytes = bytes - old.size;
end;
create virtual table interaction_words using fts5(
    aid, asked, reply, content='interaction_texts', content_rowid='id',
    tokenize='unicode61 remove_diacritics 2'
);
create trigger interaction_texts_added after insert on interaction_texts begin
    insert into interaction_words (rowid, aid, asked, reply)
    values (new.id, new.aid, new.asked, new.reply);
end;
create trigger interaction_texts_deleted after delete on interaction_texts begin
    insert into interaction_words (interaction_words, rowid, aid, asked, reply)
    values ('delete', old.id, old.aid, old.asked, old.reply);
end;
"""


def interactions(db: Connection) -> None:
    """Keep what agents asked and were answered."""
    db.executescript(_INTERACTIONS)


def sealed_blobs(db: Connection) -> None:
    """Remember of encrypted blobs what opens them."""
    db.execute("alter table blobs add column seal blob not null default x''")


_QUOTAS = """
create table limits (
    subject text not null,
    resource text not null,
    setter text not null,
    amount integer not null,                -- dollars in billionths
    hard integer not null,
    period real not null,                   -- seconds, 0: never ends
    since real not null,
    used integer not null,
    primary key (subject, resource, setter)
);
create table reservations (
    rid integer primary key,
    aid integer not null,
    subjects text not null,                 -- JSON: whom it is charged to
    amounts text not null                   -- JSON: of each resource
);
create table usage (
    day integer not null,                   -- days since 1970, UTC
    aid integer not null,
    uid integer not null,
    line text not null,                     -- the agent with all its forebears: /1/5/9/
    core text not null,
    tool text not null,
    tokens_in integer not null,
    tokens_out integer not null,
    nano integer not null,                  -- dollars in billionths
    requests integer not null,
    primary key (day, aid, core, tool)
) without rowid;
alter table owners add column line text not null default '';
update owners set line = coalesce((
    select '/' || case lineage when '[]' then ''
        else replace(replace(trim(lineage, '[]'), ' ', ''), ',', '/') || '/' end || aid || '/'
    from agents where aid = cast(owners.name as integer)), '/' || name || '/')
where kind = 'agent';
"""


def quotas(db: Connection) -> None:
    """Make the tables of limits, reservations and use; know the forebears of owners."""
    db.executescript(_QUOTAS)


def places(db: Connection) -> None:
    """Keep of each blob which back end has it; name this store to those that others use too."""
    db.execute("alter table blobs add column place text not null default ''")
    db.execute("update blobs set place = 'directory:' || digest")
    db.execute("create table store (name text not null)")
    db.execute("insert into store values (lower(hex(randomblob(8))))")


_TOOLS: Final = """
create table tools (
    name text primary key,
    declaration text not null               -- JSON
) without rowid;
create table tool_calls (                   -- that may have had an effect, and no answer yet
    owner text not null,
    key text not null,
    tool text not null,
    begun real not null,                    -- Unix time
    primary key (owner, key)
) without rowid;
"""


def tools(db: Connection) -> None:
    """Make the tables of registered tools, and of calls whose end is not known yet."""
    db.executescript(_TOOLS)


def tool_rounds(db: Connection) -> None:
    """Keep what requests with tools have done, until they are answered."""
    db.execute(
        "create table tool_rounds (aid integer not null, key text not null, "
        "number integer not null, print blob not null, t real not null, body blob not null, "
        "primary key (aid, key, number)) without rowid"
    )


def gateway_keys(db: Connection) -> None:
    """Keep by which key the gateway knows an agent."""
    db.execute("alter table agents add column key_hash text not null default ''")


def cached_verdicts(db: Connection) -> None:
    """Drop what probes found: the next ones keep that in the user's cache."""
    db.execute("drop table if exists verdicts")


MIGRATIONS: Final[list[Migration]] = [
    first_boot,
    keyed_births,
    numbered_series,
    journal,
    rights,
    mailboxes,
    snapshots,
    stores,
    originals,
    audit_owed,
    interactions,
    sealed_blobs,
    quotas,
    places,
    tools,
    tool_rounds,
    gateway_keys,
    cached_verdicts,
]


def last_aid(db: Connection) -> int:
    """Return the highest aid that was ever given out; 0 when none was."""
    row = db.execute("select seq from sqlite_sequence where name = 'agents'").fetchone()
    return int(row[0]) if row else 0
