"""Versions: the rows of stored objects. Which names there are, and which bytes each version has.

The functions run in the database's threads: `enter`, `roll_back` and `delete` in the writer's, as
whole transactions, the others in the reader's. Whose an object is, is its owner's number; nothing
here asks whether the caller may see it.

What must hold: what is entered refers to a blob that is in its place; a version that was entered
under a key is not entered twice.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aiosd import metadata
from aiosd.abi.storage import StoredObject
from aiosd.blobs import Blob
from aiosd.killpoint import reach

if TYPE_CHECKING:
    from aiosd.db import Connection

LAST: Final = "\U0010ffff"  # sorts behind every name

_VERSION: Final = (
    "select o.name, v.version, v.size, v.digest, v.content_type, v.metadata, v.created,"
    " coalesce(b.seal, x'') from objects as o join versions as v on v.object = o.id"
    " left join blobs as b on b.digest = v.digest"
)


@dataclass(frozen=True)
class Version:
    """A row. digest: of its blob. metadata: packed. seal: as in Blob."""

    name: str
    version: int
    size: int
    digest: str
    content_type: str
    metadata: str
    created: float
    seal: bytes

    def shown(self, digest: str = "") -> StoredObject:
        """Return it as a reply has it. digest: of the plain bytes, where the blob is sealed."""
        return StoredObject(
            self.name,
            self.version,
            self.size,
            digest if self.seal else self.digest,
            self.content_type,
            metadata.unpack(self.metadata),
            self.created,
            bool(self.seal),
        )


@dataclass(frozen=True)
class Entry:
    """A version that is about to be entered. keep: versions of the object that stay."""

    owner: int
    name: str
    blob: Blob
    size: int
    content_type: str
    metadata: str
    created: float
    key: str
    keep: int


@dataclass(frozen=True)
class Entered:
    """What entering a version did. repeated: it was there already, by its key."""

    version: Version
    fresh: bool
    freed: int
    repeated: bool = False


# Looking.


def find(db: Connection, owner: int, name: str, version: int) -> Version | None:
    """Return a version, the newest for 0; None where there is none."""
    newest = "o.version" if not version else "?"
    sql = f"{_VERSION} where o.owner = ? and o.name = ? and v.version = {newest}"
    row = db.execute(sql, (owner, name, *([version] if version else []))).fetchone()
    return Version(*row) if row else None


def of_key(db: Connection, owner: int, name: str, key: str) -> Version | None:
    """Return the version that was entered under a key; None where there is none."""
    sql = f"{_VERSION} where o.owner = ? and o.name = ? and v.key = ?"
    row = db.execute(sql, (owner, name, key)).fetchone()
    return Version(*row) if row else None


def newest(db: Connection, owner: int, prefix: str, limit: int) -> list[Version]:
    """Return the newest versions of objects whose names begin so, by name."""
    sql = (
        f"{_VERSION} where v.version = o.version and o.owner = ? and o.name >= ?"
        " and o.name < ? order by o.name limit ?"
    )
    rows = db.execute(sql, (owner, prefix, prefix + LAST, limit)).fetchall()
    return [Version(*row) for row in rows]


def past(db: Connection, owner: int, name: str, limit: int) -> list[Version]:
    """Return an object's versions, the newest first."""
    sql = f"{_VERSION} where o.owner = ? and o.name = ? order by v.version desc limit ?"
    return [Version(*row) for row in db.execute(sql, (owner, name, limit)).fetchall()]


def blob_of(db: Connection, version: Version) -> Blob | None:
    """Return what is known of a version's bytes."""
    sql = "select digest, size, sums, seal, place from blobs where digest = ?"
    row = db.execute(sql, (version.digest,)).fetchone()
    return Blob(*row) if row else None


def place_of(db: Connection, digest: str) -> str:
    """Return the place of a blob; "" when it is not on record."""
    row = db.execute("select place from blobs where digest = ?", (digest,)).fetchone()
    return row[0] if row else ""


def forget(db: Connection, digest: str) -> str:
    """Take a blob that no version refers to off the record; return its place, "" if it stays."""
    place = place_of(db, digest)
    gone = db.execute(
        "delete from blobs where digest = ?1"
        " and not exists (select 1 from versions where digest = ?1)",
        (digest,),
    ).rowcount
    return place if gone else ""


# Changing.


def enter(db: Connection, wanted: Entry) -> Entered:
    """Enter a version, prune old ones; or return the one that has the same key."""
    where = "where o.owner = ? and o.name = ?"
    place = (wanted.owner, wanted.name)
    if wanted.key:
        old = of_key(db, *place, wanted.key)
        if old is not None:
            return Entered(old, fresh=False, freed=0, repeated=True)
    row = db.execute(f"select id, version from objects as o {where}", place).fetchone()
    if row is None:
        sql = "insert into objects (owner, name, version) values (?, ?, 0) returning id, version"
        id, version = db.execute(sql, place).fetchone()
    else:
        id, version = row
    _put(db, id, version + 1, wanted)
    freed = _prune(db, id, version + 1 - wanted.keep)
    reach("storage.row")
    new = db.execute(f"{_VERSION} where o.id = ? and v.version = ?", (id, version + 1)).fetchone()
    return Entered(Version(*new), fresh=row is None, freed=freed)


def _put(db: Connection, id: int, version: int, wanted: Entry) -> None:
    blob = wanted.blob
    db.execute(
        "insert into blobs (digest, size, sums, used, seal, place) values (?, ?, ?, ?, ?, ?)"
        " on conflict (digest) do update set used = excluded.used, place = excluded.place",
        (blob.digest, blob.size, blob.sums, wanted.created, blob.seal, blob.place),
    )
    db.execute(
        "insert into versions values (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            id, version, blob.digest, wanted.size, wanted.content_type, wanted.metadata,
            wanted.created, wanted.key,
        ),
    )  # fmt: skip
    db.execute("update objects set version = ? where id = ?", (version, id))


def _prune(db: Connection, id: int, last: int) -> int:
    """Delete an object's versions up to one; return how many bytes those had."""
    old = "from versions where object = ? and version <= ?"
    freed = db.execute(f"select coalesce(sum(size), 0) {old}", (id, last)).fetchone()[0]
    db.execute(f"delete {old}", (id, last))
    return int(freed)


def roll_back(db: Connection, owner: int, name: str, version: int, key: str, keep: int) -> Entered:
    """Enter an older version's bytes as the newest; raises FileNotFoundError."""
    old = find(db, owner, name, version) if version else None
    blob = blob_of(db, old) if old else None
    if old is None or blob is None:
        raise missing("sto_rollback", name, version)
    wanted = Entry(
        owner, name, blob, old.size, old.content_type, old.metadata, time.time(), key, keep
    )
    return enter(db, wanted)


def delete(
    db: Connection, owner: int, name: str, done: Callable[[], None]
) -> tuple[int, list[int]] | None:
    """Delete an object; return the bytes of its versions and the ids of its passages.

    done: called in the same transaction, when there was one.
    """
    sql = "select id from objects where owner = ? and name = ?"
    row = db.execute(sql, (owner, name)).fetchone()
    if row is None:
        return None
    size = db.execute("select sum(size) from versions where object = ?", row).fetchone()[0]
    passages = [r[0] for r in db.execute("select id from passages where object = ?", row)]
    db.execute("delete from versions where object = ?", row)
    db.execute("delete from passages where object = ?", row)
    db.execute("delete from objects where id = ?", row)
    done()
    return int(size or 0), passages


def missing(call: str, name: str, version: int = 0) -> FileNotFoundError:
    """Return the error that says so."""
    what = f"version {version} of object {name!r}" if version else f"object {name!r}"
    return FileNotFoundError(errno.ENOENT, f"{call}: you have no {what}")
