"""Storage through the daemon: whole or not at all, versioned, bounded, verified, found again."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aiosd.abi.process import RegisterAgent
from aiosd.abi.storage import (
    StoAlloc,
    StoDelete,
    StoHistory,
    StoList,
    StoRead,
    StoredObject,
    StoRollback,
    StoSearch,
    StoWrite,
)  # fmt: skip
from aiosd.passages import SIZE, cut
from aiosd.storage import leaving
from aiosd.uploads import MAX_OF_ONE
from tests.daemon import PATIENCE, Client, Daemon, answer
from tests.stores.conftest import FAKE, Start
from tests.stores.test_working import code

PART = 1 << 20
TEXT = "text/plain"


def read(client: Client, name: str, **more: Any) -> bytes:
    """Return an object's bytes."""
    client.send(StoRead(name, **more))
    found = b""
    while (reply := client.read()).more:
        found += answer(reply, bytes)
    answer(reply, StoredObject)
    return found


def send(client: Client, name: str, data: bytes, upload: str = "u", **more: Any) -> StoredObject:
    """Write an object in parts."""
    for at in range(0, len(data), PART):
        last = at + PART >= len(data)
        call = StoWrite(name, data[at : at + PART], at, last, upload, **more)
        stored: StoredObject = client.call(call)
    return stored


def blobs(daemon: Daemon) -> list[Path]:
    """Return the files of blobs, drafts too."""
    return [file for file in (daemon.state_dir / "blobs").rglob("*") if file.is_file()]


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that the daemon does by itself."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_versions_are_written_read_listed_and_rolled_back(agent: Client) -> None:
    first = agent.call(StoWrite("notes/a", b"one", content_type=TEXT, metadata={"n": 1}))
    assert (first.version, first.size, first.metadata) == (1, 3, {"n": 1})
    assert first.digest == hashlib.sha256(b"one").hexdigest()
    agent.call(StoWrite("notes/a", b"three"))
    agent.call(StoWrite("other", b""))
    assert (read(agent, "notes/a"), read(agent, "notes/a", version=1)) == (b"three", b"one")
    assert read(agent, "other") == b""
    assert [o.name for o in agent.call(StoList())] == ["notes/a", "other"]
    assert [o.version for o in agent.call(StoList("notes/"))] == [2]
    back = agent.call(StoRollback("notes/a", 1))
    assert (back.version, back.digest, back.content_type) == (3, first.digest, TEXT)
    assert read(agent, "notes/a") == b"one"
    assert [o.version for o in agent.call(StoHistory("notes/a"))] == [3, 2, 1]
    agent.call(StoDelete("notes/a"))
    for call in (StoRead("notes/a"), StoHistory("notes/a"), StoDelete("notes/a")):
        assert code(agent, call) == errno.ENOENT
    assert code(agent, StoRollback("other", 7)) == errno.ENOENT


def test_large_objects_go_in_parts_and_come_in_any_piece(daemon: Daemon, agent: Client) -> None:
    data = random.Random(1).randbytes(5 * PART + 12345)
    stored = send(agent, "large", data)
    assert (stored.size, stored.digest) == (len(data), hashlib.sha256(data).hexdigest())
    assert read(agent, "large") == data
    for offset, size in ((0, 1), (PART - 1, 2), (3 * PART, PART), (len(data) - 5, 0), (7, 9999)):
        wanted = data[offset : offset + size] if size else data[offset:]
        assert read(agent, "large", offset=offset, size=size) == wanted
    assert read(agent, "large", offset=len(data)) == b""
    assert code(agent, StoRead("large", offset=len(data) + 1)) == errno.EINVAL


def test_a_write_in_parts_is_there_with_its_last_part_alone(daemon: Daemon, agent: Client) -> None:
    agent.call(StoWrite("a", b"old"))
    assert agent.call(StoWrite("a", b"new ", 0, False, "u")).version == 0
    assert read(agent, "a") == b"old"
    assert code(agent, StoWrite("a", b"x", 7, False, "u")) == errno.EINVAL  # a gap
    agent.call(StoWrite("a", b"new ", 0, False, "u"))  # sent again: fine
    assert code(agent, StoWrite("a", b"x", 4, False, "other")) == errno.EINVAL
    assert code(agent, StoWrite("a", b"x", 0, False)) == errno.EINVAL  # without a name
    assert agent.call(StoWrite("a", b"bytes", 4, True, "u")).version == 2
    assert read(agent, "a") == b"new bytes"
    until(lambda: len(blobs(daemon)) == 2)


def test_parts_may_be_sent_ahead_and_writes_under_way_are_bounded(agent: Client) -> None:
    for n in range(20):
        agent.send(StoWrite("a", bytes([n]) * 1000, n * 1000, n == 19, "u"))
    assert not any(agent.read().errno for _ in range(20))
    assert read(agent, "a") == b"".join(bytes([n]) * 1000 for n in range(20))
    for n in range(MAX_OF_ONE):
        agent.call(StoWrite(f"open{n}", b"x", 0, False, "u"))
    assert code(agent, StoWrite("one more", b"x", 0, False, "u")) == errno.EAGAIN
    agent.call(StoWrite("open0", b"x", 1, True, "u"))
    agent.call(StoWrite("one more", b"x"))


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "..", "a/../b", "a/./b", "a//b", "a/", "a\0b", "a\nb", "é" * 600]
)
def test_names_are_names(agent: Client, name: str) -> None:
    assert code(agent, StoWrite(name, b"x")) == errno.EINVAL
    for call in (StoRead(name), StoDelete(name), StoHistory(name), StoRollback(name, 1)):
        assert code(agent, call) == errno.ENOENT


def test_objects_are_the_owners_own(daemon: Daemon, agent: Client) -> None:
    agent.call(StoWrite("secret", b"text of mine", content_type=TEXT))
    with daemon.connect() as other:
        other.call(RegisterAgent(name="keeper"))
        for call in (
            StoRead("secret"), StoDelete("secret"), StoHistory("secret"), StoRollback("secret", 1),
        ):  # fmt: skip
            assert code(other, call) == errno.ENOENT
        assert other.call(StoList()) == []
        assert other.call(StoSearch("text mine")) == []
        assert code(other, StoWrite("x", b"", pool="club")) == errno.EPERM
        other.call(StoWrite("secret", b"another"))
    assert read(agent, "secret") == b"text of mine"


def test_limits_count_what_is_under_way(start: Start) -> None:
    daemon = start(FAKE + "[storage]\nbytes = 1000\nobjects = 2\nkeep_versions = 2\n")
    with daemon.connect() as client:
        client.call(RegisterAgent(name="a"))
        assert code(client, StoWrite("a", b"x" * 1001)) == errno.EDQUOT
        client.call(StoWrite("a", b"x" * 600, 0, False, "u"))
        assert code(client, StoWrite("b", b"y" * 401)) == errno.EDQUOT
        assert code(client, StoWrite("a", b"z" * 401, 600, True, "u")) == errno.EDQUOT
        client.call(StoWrite("b", b"y" * 401))  # what was given up is given back
        client.call(StoWrite("c", b""))
        assert code(client, StoWrite("d", b"")) == errno.EDQUOT
        client.call(StoWrite("b", b"y" * 401))
        assert code(client, StoWrite("c", b"z" * 300)) == errno.EDQUOT
        client.call(StoWrite("b", b""))  # the oldest version goes
        space = client.call(StoAlloc(500))
        assert (space.limit, space.used, space.objects) == (500, 401, 2)
        assert code(client, StoWrite("c", b"z" * 100)) == errno.EDQUOT
        assert code(client, StoAlloc(400)) == errno.EDQUOT
        assert code(client, StoAlloc(1001)) == errno.EDQUOT
        client.call(StoDelete("b"))
        assert client.call(StoAlloc(0)).used == 0


def test_what_nobody_refers_to_is_collected(daemon: Daemon, agent: Client) -> None:
    for name in ("a", "b"):  # the same bytes are kept once
        agent.call(StoWrite(name, b"x" * 1000))
    agent.call(StoWrite("c", b"y"))
    assert len(blobs(daemon)) == 2
    agent.call(StoDelete("a"))
    agent.call(StoDelete("c"))
    until(lambda: len(blobs(daemon)) == 1)
    assert read(agent, "b") == b"x" * 1000
    agent.call(StoDelete("b"))
    agent.call(StoWrite("b", b"x" * 1000))  # while it is being collected, perhaps
    until(lambda: len(blobs(daemon)) == 1)
    assert read(agent, "b") == b"x" * 1000


def test_damage_is_found_before_a_byte_of_it_is_sent(daemon: Daemon, agent: Client) -> None:
    data = random.Random(2).randbytes(3 * PART)
    send(agent, "a", data)
    agent.call(StoWrite("gone", b"soon"))
    (large,) = [file for file in blobs(daemon) if file.stat().st_size == len(data)]
    (small,) = [file for file in blobs(daemon) if file.stat().st_size == 4]
    with large.open("r+b") as file:
        file.seek(PART + 17)
        file.write(b"damage")
    small.unlink()
    assert read(agent, "a", size=PART) == data[:PART]
    assert read(agent, "a", offset=2 * PART) == data[2 * PART :]
    agent.send(StoRead("a"))
    parts = []
    while (reply := agent.read()).more:
        parts.append(answer(reply, bytes))
    assert (reply.errno, b"".join(parts)) == (errno.EUCLEAN, data[:PART])
    assert code(agent, StoRead("gone")) == errno.EUCLEAN
    send(agent, "a", data)  # written again, it is whole again, in every version
    assert read(agent, "a", version=1) == data


def test_acknowledged_objects_outlive_sigkill_at_any_moment(start: Start) -> None:
    chance = random.Random(3)
    kept: dict[str, bytes] = {}
    for life in range(4):
        daemon = start()
        with daemon.connect() as client:
            for name, data in kept.items():
                assert read(client, name) == data
            objects = {o.name for o in client.call(StoList())}
            assert kept.keys() <= objects
            for name in objects:
                assert read(client, name) == b"x" * len(read(client, name))  # none is half there
            sent = {}
            for n in range(chance.randrange(5, 60)):
                name, data = f"{life}/{n}", b"x" * chance.randrange(100_000)
                sent[client.send(StoWrite(name, data))] = (name, data)
            for _ in range(chance.randrange(len(sent))):
                reply = client.read()
                if not reply.errno:
                    name, data = sent[reply.id]
                    kept[name] = data
        daemon.stop(signal.SIGKILL)
    daemon = start()
    until(lambda: not list((daemon.state_dir / "blobs/drafts").iterdir()))


def test_a_full_disk_is_told_and_takes_nothing_down(
    start: Start, tmp_path: Path, world: Any
) -> None:
    place = tmp_path / "small"
    place.mkdir()
    if os.system(f"mount -t tmpfs -o size=1m,mode=700 none {place} 2>/dev/null"):
        pytest.skip("a small file system can't be mounted here")
    try:
        daemon = start(FAKE + f'[storage]\ndir = "{place}"\n')
        with daemon.connect() as client:
            client.call(StoWrite("small", b"x" * 1000))
            with pytest.raises(OSError, match="no space") as caught:
                client.call(StoWrite("large", b"y" * 2_000_000))
            assert caught.value.errno == errno.ENOSPC
            assert read(client, "small") == b"x" * 1000
            assert not list((place / "drafts").iterdir())
            client.call(StoWrite("other", b"z" * 1000))
            assert [o.name for o in client.call(StoList())] == ["other", "small"]
        daemon.stop()
    finally:
        os.system(f"umount {place}")


@pytest.mark.parametrize("mode", ["keyword", "vector", "hybrid"])
def test_passages_of_texts_are_found(agent: Client, mode: str) -> None:
    filler = "Nothing of interest stands here at all. " * 60
    needle = "The zebra crossed the violet bridge."
    agent.call(StoWrite("book/one", (filler + needle + filler).encode(), content_type=TEXT))
    agent.call(StoWrite("book/two", filler.encode(), content_type=TEXT))
    agent.call(StoWrite("binary", needle.encode()))
    (found,) = agent.call(StoSearch("zebra violet bridge", k=1, mode=mode))
    assert (found.name, found.version) == ("book/one", 1) and needle in found.text
    assert read(agent, "book/one")[found.start :].decode().startswith(found.text)
    assert all(p.name == "book/two" for p in agent.call(StoSearch("zebra", prefix="book/two")))
    agent.call(StoWrite("book/one", b"Quite another text.", content_type=TEXT))
    assert all(needle not in p.text for p in agent.call(StoSearch("zebra", mode=mode)))
    assert agent.call(StoRollback("book/one", 1)).version == 3
    (found,) = agent.call(StoSearch("zebra violet bridge", k=1, mode=mode))
    assert found.version == 3 and needle in found.text
    agent.call(StoDelete("book/one"))
    assert all(p.name == "book/two" for p in agent.call(StoSearch("zebra", mode=mode)))


def test_passages_cover_a_text_and_know_their_places() -> None:
    chance = random.Random(4)
    words = ["Straße", "naïve", "日本", "plain", "a.", "end!\n\n"]
    text = " ".join(chance.choice(words) for _ in range(3000))
    data = text.encode()
    covered = 0
    for start, piece in cut(data):
        assert data[start:].decode().startswith(piece) and len(piece) <= SIZE
        assert start <= covered
        covered = start + len(piece.encode())
    assert covered == len(data)
    assert cut(b"") == [] and cut(b" \n ") == []
    assert cut(b"x" * (2 * SIZE))[1][0] == SIZE


def test_seldom_used_blobs_leave_for_the_cold_directory(start: Start, tmp_path: Path) -> None:
    cold = tmp_path / "cold"
    settings = f'[storage]\ncold_dir = "{cold}"\ncold_after = "1ms"\nsweep = "50ms"\n'
    daemon = start(FAKE + settings)
    with daemon.connect() as client:
        client.call(StoWrite("a", b"x" * 1000))
        until(lambda: len([f for f in cold.rglob("*") if f.is_file()]) == 1)
        until(lambda: not blobs(daemon))
        assert read(client, "a") == b"x" * 1000
        client.call(StoDelete("a"))
        until(lambda: not [f for f in cold.rglob("*") if f.is_file()])


def test_what_leaves_is_decided_by_age_and_use() -> None:
    rows = [("a", 10, 1.0), ("b", 10, 50.0), ("c", 10, 90.0)]
    assert leaving(rows, 100.0, 60.0, 0) == ["a"]
    assert leaving(rows, 100.0, 20.0, 0) == ["a", "b"]
    assert leaving(rows, 100.0, 1000.0, 10) == ["a", "b"]
    assert leaving(rows, 100.0, 1000.0, 0) == []


def test_a_write_asked_again_by_its_key_is_done_once(start: Start) -> None:
    daemon = start()
    with daemon.connect() as client:
        first = client.call(StoWrite("a", b"one", key="k"))
    daemon.stop(signal.SIGKILL)
    daemon = start()
    with daemon.connect() as client:
        assert client.call(StoWrite("a", b"one", key="k")) == first
        assert len(client.call(StoHistory("a"))) == 1


def test_what_a_request_used_up_does_not_refuse_it_the_second_time(start: Start) -> None:
    limits = FAKE + "[storage]\nbytes = 1500\nkeep_versions = 2\n"
    daemon = start(limits)
    with daemon.connect() as client:
        client.call(StoWrite("gone", b"x"))
        client.call(StoDelete("gone", key="d"))
        client.call(StoWrite("a", b"1" * 300))
        client.call(StoWrite("a", b"2" * 300))
        rolled = client.call(StoRollback("a", 1, key="r"))  # version 1 goes
        client.call(StoWrite("b", b"x" * 400, 0, False, "u"))
        written = client.call(StoWrite("b", b"y" * 400, 400, True, "u", key="w"))
    daemon.stop(signal.SIGKILL)
    daemon = start(limits)
    with daemon.connect() as client:
        assert client.call(StoDelete("gone", key="d")) is None
        assert client.call(StoRollback("a", 1, key="r")) == rolled
        assert client.call(StoWrite("b", b"y" * 400, 400, True, "u", key="w")) == written
        assert code(client, StoWrite("b", b"z" * 400, key="z")) == errno.EDQUOT
        assert len(client.call(StoHistory("b"))) == 1
