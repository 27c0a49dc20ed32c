"""memory: working memory beside ping, durable records beside bare SQLite, search beside its index.

Claims: mem_write and mem_read take at most 3 times as long as ping (medians); add_memory makes at
least half as many records durable per second as bare SQLite does with the same rows, tables and
batches; search_memory over RECORDS records takes at most 1 ms longer than embedding the query and
asking the index itself; the index's recall@10 against comparing all vectors is at least 0.95.

How: the embedder is the stand-in whose vectors come from hashed words, so that no model's time is
in the way (all-MiniLM-L6-v2 would add the same to both sides); its index is hnswlib's. The bare
side of add_memory inserts the kernel's own rows into a copy of its tables (indexes and full text
included), in transactions of IN_FLIGHT rows, which is what IN_FLIGHT requests in flight amount to.
The bare side of the search is the file that the embedder keeps, loaded here.
"""

from __future__ import annotations

import importlib.util
import os
import random
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from aiosd.abi.call import Call
from aiosd.abi.memory import AddMemory, MemRead, MemWrite, SearchMemory
from aiosd.abi.system import Ping
from tests.bench.kernel import Kernel
from tests.bench.ratio import Ratio, divide, interleave
from tests.daemon import Client

ROUNDS = 7
CALLS = 2000
VALUE = b"0123456789abcdef" * 4
IN_FLIGHT = 64
ADDED = 2000  # records a round
RECORDS = int(os.environ.get("AIOS_BENCH_RECORDS", "100000"))
SEARCHES = 100
QUERIES = 200  # for the recall
WORDS = [f"w{n:04}" for n in range(4000)]
CONFIG = (
    '[memory]\nembedder = "fake"\nembed_timeout = "10min"\nbytes = "4GiB"\nrecords = 10000000\n'
    "nice = 0\noptions = {dim = 384}\n"
)


class Memory(Kernel):
    """A kernel with the stand-in embedder."""

    def configure(self, text: str) -> None:
        """Write the configuration; `text` is not used."""
        super().configure(text)
        with self.config.open("a") as file:
            file.write(CONFIG)


def run(rounds: int) -> Iterator[Ratio]:
    """Measure working memory, then adding, then searching."""
    with Memory() as kernel:
        yield from _working(kernel, rounds or ROUNDS)
        yield _adding(kernel, rounds or ROUNDS)
    if importlib.util.find_spec("hnswlib") is None:
        print("memory: no hnswlib, so nothing to search: pip install 'aios[memory]'")
        return
    with Memory() as kernel:
        yield from _searching(kernel, rounds or ROUNDS)


# Working memory.


def _working(kernel: Kernel, rounds: int) -> Iterator[Ratio]:
    client = kernel.client("worker")
    client.call(MemWrite("key", VALUE))
    calls: dict[str, Call] = {"mem_write": MemWrite("key", VALUE), "mem_read": MemRead("key")}
    sides = [lambda call=call: _median(client, call) for call in (Ping(VALUE), *calls.values())]
    (ping, *ours), noise = interleave(rounds, *sides)
    for name, taken in zip(calls, ours, strict=True):
        yield Ratio(
            bench="memory",
            what=f"{name} p50 / ping p50",
            rounds=divide(taken, ping),
            limit=3.0,
            noise=noise,
            figures={f"{name} µs": median(taken) * 1e6, "ping µs": median(ping) * 1e6},
        )


def _median(client: Client, call: Call) -> float:
    taken = []
    for _ in range(CALLS):
        began = perf_counter()
        client.call(call)
        taken.append(perf_counter() - began)
    return median(taken)


# Adding.


def _adding(kernel: Kernel, rounds: int) -> Ratio:
    chance = random.Random(1)
    client = kernel.client()
    with (
        tempfile.TemporaryDirectory(prefix="aios-bench-") as place,
        closing(_bare(kernel, Path(place) / "bare.db")) as db,
    ):
        (ours, bare), noise = interleave(
            rounds,
            lambda: _add(client, _texts(chance, ADDED)),
            lambda: _insert(db, _texts(chance, ADDED)),
        )
    return Ratio(
        bench="memory",
        what=f"add_memory/s, {IN_FLIGHT} in flight / bare SQLite's rows/s, {IN_FLIGHT} a commit",
        rounds=divide(ours, bare),
        limit=0.5,
        at_most=False,
        noise=noise,
        figures={"add_memory/s": median(ours), "rows/s": median(bare)},
    )


def _texts(chance: random.Random, count: int) -> list[str]:
    """Return texts of some 40 words, drawn near one of some topics as real notes are."""
    found = []
    for _ in range(count):
        topic = chance.randrange(0, len(WORDS), 40)
        words = chance.choices(WORDS[topic : topic + 40], k=30) + chance.choices(WORDS, k=10)
        found.append(" ".join(words))
    return found


def _add(client: Client, texts: list[str]) -> float:
    """Add records with IN_FLIGHT requests in flight; return how many a second were durable."""
    began = perf_counter()
    rest, waiting = iter(texts), 0
    while more := [AddMemory(text) for text in islice(rest, IN_FLIGHT - waiting)]:
        client.send_all(more)
        waiting += len(more) - _answered(client)
    while waiting:
        waiting -= _answered(client)
    return len(texts) / (perf_counter() - began)


def _answered(client: Client) -> int:
    """Take the answers that have come; return how many."""
    replies = client.read_all()
    for reply in replies:
        if reply.errno:
            raise RuntimeError(f"add_memory: {bytes(reply.body)!r}")
    return len(replies)


def _bare(kernel: Kernel, path: Path) -> sqlite3.Connection:
    """Make an empty database with the kernel's own tables for records."""
    with closing(sqlite3.connect(kernel.state_dir / "aios.db")) as known:
        rows = known.execute(
            "select sql from sqlite_master where sql not null and (name = 'memories' or"
            " name = 'memories_words' or tbl_name = 'memories' or name = 'memories_vectors')"
            " and name not like 'sqlite_%'"
        ).fetchall()
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("pragma journal_mode = wal")
    db.execute("pragma synchronous = normal")
    for (sql,) in sorted(rows, key=lambda row: "trigger" in row[0].lower()[:15]):
        db.execute(sql)
    return db


def _insert(db: sqlite3.Connection, texts: list[str]) -> float:
    """Insert the same rows as the kernel does; return how many a second were durable."""
    sql = "insert into memories (owner, text, metadata, created, size) values (1, ?, '{}', ?, ?)"
    began = perf_counter()
    for start in range(0, len(texts), IN_FLIGHT):
        db.execute("begin immediate")
        rows = [(text, time.time(), len(text)) for text in texts[start : start + IN_FLIGHT]]
        db.executemany(sql, rows)
        db.execute("commit")
    return len(texts) / (perf_counter() - began)


# Searching.


def _searching(kernel: Kernel, rounds: int) -> Iterator[Ratio]:
    import numpy as np

    from aiosd.vectors.model import load

    chance = random.Random(2)
    client = kernel.client()
    client.sock.settimeout(600)
    for start in range(0, RECORDS, 10_000):
        _add(client, _texts(chance, min(10_000, RECORDS - start)))
    client.call(SearchMemory("warm up", mode="vector"))
    index = _kept(kernel, RECORDS)
    model = load("fake", {"dim": 384})
    queries = _texts(chance, max(SEARCHES, QUERIES))

    def ours() -> float:
        return _timed(lambda query: client.call(SearchMemory(query, mode="vector")), queries)

    def bare() -> float:
        def search(query: str) -> Any:
            return index.search(model.encode([query])[0][0], 10, None)

        return _timed(search, queries)

    (taken, alone), noise = interleave(rounds, ours, bare)
    yield Ratio(
        bench="memory",
        what=f"search_memory over {RECORDS} - (embedding + its index), ms",
        rounds=[(a - b) * 1e3 for a, b in zip(taken, alone, strict=True)],
        limit=1.0,
        noise=noise,
        figures={"search_memory ms": median(taken) * 1e3, "index ms": median(alone) * 1e3},
    )
    ids = np.fromiter(index.revs, dtype=np.int64)
    flat = np.asarray(index._graph.get_items(ids), dtype=np.float32)
    right = 0
    for query in queries[:QUERIES]:
        best = ids[np.argpartition(-(flat @ model.encode([query])[0][0]), 9)[:10]]
        found = client.call(SearchMemory(query, mode="vector", k=10))
        right += len({memory.id for memory in found} & set(best.tolist()))
    yield Ratio(
        bench="memory",
        what=f"recall@10 over {RECORDS}",
        rounds=[right / (10 * QUERIES)],
        limit=0.95,
        at_most=False,
    )


def _timed(deed: Any, queries: list[str]) -> float:
    taken = []
    for query in queries[:SEARCHES]:
        began = perf_counter()
        deed(query)
        taken.append(perf_counter() - began)
    return median(taken)


def _kept(kernel: Kernel, count: int) -> Any:
    """Return the index as the embedder has kept it, once it is complete."""
    from aiosd.vectors.index import open_index

    until = time.monotonic() + 120
    while time.monotonic() < until:
        index = open_index(str(kernel.state_dir / "indexes"), "memories-1", 384)
        if len(index) == count:
            return index
        time.sleep(0.5)
    raise RuntimeError(f"the embedder has kept {len(index)} of {count} vectors")
