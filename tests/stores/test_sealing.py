"""Objects encrypted at rest: nothing plain on disk, nothing moved unnoticed, keys come and go."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import random
import secrets
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from aiosd.abi.accounts import Grant
from aiosd.abi.process import RegisterAgent
from aiosd.abi.storage import (
    StoDelete,
    StoHistory,
    StoList,
    StoredObject,
    StoRollback,
    StoSearch,
    StoWrite,
)  # fmt: skip
from aiosd.blobs import PIECE
from aiosd.sealing import CHUNK, PLAIN, STEP
from tests.daemon import Client, Daemon
from tests.stores.conftest import FAKE, Start
from tests.stores.test_storage import PART, TEXT, blobs, read, send, until

ALL = FAKE + '[storage]\nencrypt = "all"\n'
MARK = "xylophone"
SECRET = f"The {MARK} stands in the cellar. ".encode()


def digest(data: bytes) -> str:
    """Return the digest that a reply has of plain bytes."""
    return hashlib.sha256(data).hexdigest()


def plain_in(place: Path, mark: str = MARK) -> list[str]:
    """Return the files below a directory that have a text in them."""
    files = [file for file in place.rglob("*") if file.is_file() and file.name != "aiosd.toml"]
    return [file.name for file in files if mark.encode() in file.read_bytes().lower()]


def change(daemon: Daemon, sql: str) -> None:
    """Change the database of a daemon that is stopped."""
    with closing(sqlite3.connect(daemon.state_dir / "aios.db")) as db, db:
        db.execute(sql)


def soundly(client: Client, name: str, data: bytes) -> bool:
    """Whether an object is what it was; else it is said to be damaged."""
    try:
        found = read(client, name)
    except OSError as error:
        damaged = error.errno
    else:
        assert found == data
        return True
    assert damaged == errno.EUCLEAN
    return False


def refused(client: Client, name: str) -> int:
    """Read what can't be read; return the errno."""
    with pytest.raises(OSError, match=name) as caught:
        read(client, name)
    return caught.value.errno or 0


def test_nothing_plain_is_on_disk_and_all_of_it_comes_back(start: Start) -> None:
    daemon = start(ALL)
    with daemon.connect() as client:
        first = client.call(StoWrite("notes/a", SECRET, content_type=TEXT))
        assert first.encrypted and (first.size, first.digest) == (len(SECRET), digest(SECRET))
        second = client.call(StoWrite("notes/a", SECRET * 2, content_type=TEXT))
        large = SECRET * (5 * PART // len(SECRET))
        assert send(client, "large", large, content_type=TEXT).digest == digest(large)
        assert read(client, "notes/a") == SECRET * 2
        assert read(client, "notes/a", version=1) == SECRET
        assert read(client, "large") == large
        assert client.call(StoHistory("notes/a")) == [second, first]
        back = client.call(StoRollback("notes/a", 1))
        assert (back.version, back.digest, back.encrypted) == (3, first.digest, True)
        assert client.call(StoSearch(MARK, mode="keyword")) == []
        assert client.call(StoSearch(MARK, mode="hybrid")) == []
        assert plain_in(daemon.state_dir) == []
        assert {row.digest for row in client.call(StoList())} == {digest(SECRET), digest(large)}
    daemon.stop()
    assert plain_in(daemon.state_dir) == []
    database = (daemon.state_dir / "aios.db").read_bytes()
    for known in (digest(SECRET), digest(large)):  # would tell who has the same
        assert known.encode() not in database and bytes.fromhex(known) not in database


def test_every_length_and_every_place(start: Start) -> None:
    with start(ALL).connect() as client:
        for size in (0, 1, PLAIN - 1, PLAIN, PLAIN + 1, STEP, STEP + 1, 2 * STEP - 1):
            data = random.Random(size).randbytes(size)
            stored = send(client, "a", data) if data else client.call(StoWrite("a", b""))
            assert (stored.size, stored.digest) == (size, digest(data))
            assert read(client, "a") == data
            for at in {0, size // 2, max(0, size - 2), size}:
                assert read(client, "a", offset=at) == data[at:]
                assert read(client, "a", offset=at, size=7) == data[at : at + 7]


def test_equal_bytes_are_not_equal_on_disk(start: Start) -> None:
    daemon = start(ALL)
    with daemon.connect() as one, daemon.connect() as two:
        two.call(RegisterAgent("two"))
        for client, name in ((one, "a"), (one, "b"), (two, "a")):
            client.call(StoWrite(name, SECRET))
        files = blobs(daemon)
        assert len(files) == 3
        assert len({file.read_bytes()[-64:] for file in files}) == 3
        one.call(StoDelete("a"))
        until(lambda: len(blobs(daemon)) == 2)
        assert read(one, "b") == read(two, "a") == SECRET


def test_those_of_some_owners(start: Start) -> None:
    owners = '[storage]\nencrypt = ["agent:3", "group:team"]\n'
    daemon = start(FAKE + owners)
    with daemon.connect() as person, daemon.connect() as two, daemon.connect() as three:
        assert [c.call(RegisterAgent("x")).aid for c in (two, three)] == [2, 3]
        person.call(Grant("agent:2", "member", "group:team"))
        assert not person.call(StoWrite("mine", SECRET, content_type=TEXT)).encrypted
        assert not two.call(StoWrite("mine", SECRET)).encrypted
        assert three.call(StoWrite("mine", SECRET)).encrypted
        assert two.call(StoWrite("ours", SECRET, pool="team")).encrypted
        assert read(two, "ours", pool="team") == SECRET
        daemon.configure(FAKE + f'[storage]\nencrypt = ["uid:{os.geteuid()}"]\n')
        daemon.send_signal(signal.SIGHUP)
        daemon.await_notice("READY=1")
        assert person.call(StoWrite("mine", SECRET, content_type=TEXT)).encrypted
        assert two.call(StoWrite("mine", SECRET)).encrypted
        found = person.call(StoHistory("mine"))
        assert [row.encrypted for row in found] == [True, False]
        assert {row.digest for row in found} == {digest(SECRET)}
        assert read(person, "mine", version=1) == SECRET  # what was plain stays so
        assert person.call(StoSearch(MARK, mode="keyword")) == []  # its newest version is not
        person.call(StoRollback("mine", 1))
        assert len(person.call(StoSearch(MARK, mode="keyword"))) == 1


def test_rotated_keys_read_what_older_ones_wrote(start: Start) -> None:
    daemon = start(ALL)
    with daemon.connect() as client:
        client.call(StoWrite("old", SECRET))
        assert daemon.run("--rotate-key").returncode == 0
        daemon.send_signal(signal.SIGHUP)
        daemon.await_notice("READY=1")
        client.call(StoWrite("new", SECRET))
        ids = {file.read_bytes()[1:5] for file in blobs(daemon)}
        assert len(ids) == 2  # one under each master key
        assert read(client, "old") == read(client, "new") == SECRET
    daemon.stop()
    with start(ALL).connect() as client:
        assert read(client, "old") == read(client, "new") == SECRET


def test_a_wrong_master_key_is_told_and_nobody_else_notices(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = FAKE + '[storage]\nencrypt = ["agent:2"]\n'
    daemon = start(settings)
    with daemon.connect() as client, daemon.connect() as other:
        credential = client.call(RegisterAgent("sealed")).credential
        client.call(StoWrite("a", SECRET))
        other.call(StoWrite("theirs", SECRET, content_type=TEXT))
    daemon.stop()
    key = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    monkeypatch.setenv("AIOS_MASTER_KEY", key)
    daemon = start(settings)
    with Client(daemon.socket, credential=credential) as client, daemon.connect() as other:
        with pytest.raises(OSError, match=r"'a': .*master key [0-9a-f]{8}.*put it back") as caught:
            read(client, "a")
        assert caught.value.errno == errno.ENOKEY
        [row] = client.call(StoList())
        assert (row.size, row.digest, row.encrypted) == (len(SECRET), "", True)
        client.call(StoWrite("b", SECRET))  # under the key that is there
        assert read(client, "b") == SECRET
        assert read(other, "theirs") == SECRET
        assert len(other.call(StoSearch(MARK, mode="keyword"))) == 1
    daemon.stop()
    monkeypatch.setenv("AIOS_MASTER_KEY", "no key")
    daemon = start(settings)
    with Client(daemon.socket, credential=credential) as client, daemon.connect() as other:
        with pytest.raises(OSError, match=r"can't be encrypted.*AIOS_MASTER_KEY") as caught:
            client.call(StoWrite("c", SECRET))
        assert caught.value.errno == errno.ENOKEY
        assert refused(client, "a") == errno.ENOKEY
        other.call(StoWrite("theirs", b"more"))
        assert read(other, "theirs") == b"more"
        assert [row.name for row in client.call(StoList())] == ["a", "b"]
    daemon.stop()
    monkeypatch.delenv("AIOS_MASTER_KEY")
    with Client(start(settings).socket, credential=credential) as client:
        assert read(client, "a") == SECRET  # nothing was lost
        assert refused(client, "b") == errno.ENOKEY


def swap_chunks(files: list[Path]) -> None:
    """Put a chunk of an object in another's place."""
    data = files[0].read_bytes()
    files[0].write_bytes(data[CHUNK : 2 * CHUNK] + data[:CHUNK] + data[2 * CHUNK :])


def swap_files(files: list[Path]) -> None:
    """Put one object in another's place."""
    one, two = (file.read_bytes() for file in files[:2])
    files[0].write_bytes(two)
    files[1].write_bytes(one)


def cut_off(files: list[Path]) -> None:
    """Leave out the end."""
    files[0].write_bytes(files[0].read_bytes()[:-CHUNK])


def flip(files: list[Path]) -> None:
    """Change a bit."""
    data = bytearray(files[0].read_bytes())
    data[len(data) // 2] ^= 1
    files[0].write_bytes(data)


@pytest.mark.parametrize("attack", [swap_chunks, swap_files, cut_off, flip])
def test_what_was_tampered_with_is_never_returned(start: Start, attack: object) -> None:
    """Whoever changes the files may change their checksums, too: those are no secret."""
    daemon = start(ALL)
    rng = random.Random(3)
    names = ("a", "b")
    data = {name: rng.randbytes(3 * PLAIN) for name in names}
    with daemon.connect() as client:
        for name in names:
            client.call(StoWrite(name, data[name]))
    daemon.stop()
    files = sorted(blobs(daemon))
    assert callable(attack)
    attack(files)
    forge(daemon, files)
    daemon = start(ALL)
    with daemon.connect() as client:
        sound = [soundly(client, name, data[name]) for name in names]
        assert sound.count(False) == (2 if attack is swap_files else 1)


def forge(daemon: Daemon, files: list[Path]) -> None:
    """Make the checksums on record those of the files as they are."""
    import xxhash

    with closing(sqlite3.connect(daemon.state_dir / "aios.db")) as db, db:
        for file in files:
            data = file.read_bytes()
            sums = b"".join(
                xxhash.xxh3_64_intdigest(data[at : at + PIECE]).to_bytes(8, "little")
                for at in range(0, len(data), PIECE)
            )
            name = file.parent.name + file.name
            db.execute("update blobs set sums = ? where digest = ?", (sums, name))


def test_an_object_that_was_given_anothers_bytes(start: Start) -> None:
    """In the database, where even the salt is the right one: the name is bound as well."""
    daemon = start(ALL)
    with daemon.connect() as client:
        for name in ("a", "b"):
            client.call(StoWrite(name, name.encode() * 9))
    daemon.stop()
    change(daemon, "update versions set digest = (select max(digest) from versions)")
    with start(ALL).connect() as client:
        assert [soundly(client, name, name.encode() * 9) for name in "ab"].count(False) == 1


def test_a_large_object_never_sits_whole_in_the_kernel(start: Start) -> None:
    daemon = start(ALL)
    with daemon.connect() as client:
        part = random.Random(4).randbytes(4 * PART)
        client.call(StoWrite("warm", part))
        read(client, "warm")
        before = daemon.resident()
        for i in range(24):
            client.call(StoWrite("a", part, i * len(part), i == 23, "u"))
        assert daemon.resident() - before < 48 << 20  # of 96 MiB
        stored: StoredObject = client.call(StoHistory("a"))[0]
        assert stored.size == 24 * len(part)
        assert read(client, "a", offset=23 * len(part)) == part
