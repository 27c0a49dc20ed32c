"""storage: a large object into storage and out again, beside copying a file.

Claims: sto_write and sto_read of SIZE bytes reach at least half the rate of plainly copying a file
of that size (read, written, synced), and the kernel's memory stays flat meanwhile: it grows by no
more than GROWTH, whatever the size.

How: parts of PART bytes, as the shell sends them, with AHEAD more requests in flight, on the same
disk as the copy; the client reads and sends by way of the same two buffers. Larger parts are
slower: their memory is fresh each time in the kernel, in page faults. The object's bytes are
random, and a fresh version each round; the copy is synced too, as what sto_write acknowledges is.
What is read comes from the page cache on both sides.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import msgspec

from aiosd.abi.storage import StoDelete, StoRead, StoWrite
from aiosd.abi.table import BY_ARGS
from aiosd.abi.wire import HEADER
from tests.bench.kernel import Kernel
from tests.bench.ratio import Ratio, divide, interleave
from tests.daemon import Client

ROUNDS = 3
SIZE = int(os.environ.get("AIOS_BENCH_BYTES", str(1 << 30)))
PART = 1 << 20
AHEAD = 3
GROWTH = 64 << 20

_encoder = msgspec.msgpack.Encoder()


def run(rounds: int) -> Iterator[Ratio]:
    """Measure writing, reading and copying in turns."""
    with Kernel() as kernel, kernel.client("keeper") as client:
        base = kernel.state_dir / "bench"
        base.mkdir()
        source = base / "source"
        _fill(source)
        _write(client, source, 4 * PART)  # the kernel's threads and buffers are there
        before = kernel.resident()
        with Watch(kernel) as watch:
            (wrote, read, copied), noise = interleave(
                rounds or ROUNDS,
                lambda: _write(client, source, SIZE),
                lambda: _read(client),
                lambda: _copy(source, base / "copy"),
            )
        for name, rates in (("sto_write", wrote), ("sto_read", read)):
            yield Ratio(
                bench="storage",
                what=f"{name} of {SIZE >> 20} MiB / file copy, MB/s",
                rounds=divide(rates, copied),
                limit=0.5,
                at_most=False,
                noise=noise,
                figures={f"{name} MB/s": median(rates), "copy MB/s": median(copied)},
            )
        yield Ratio(
            bench="storage",
            what="the kernel's growth meanwhile, MiB",
            rounds=[(watch.most - before) / (1 << 20)],
            limit=GROWTH >> 20,
            worst=True,
            figures={"at rest MiB": before / (1 << 20)},
        )


class Watch:
    """Notes the most memory that a kernel holds, looking ten times a second."""

    def __init__(self, kernel: Kernel) -> None:
        self.most = 0
        self._kernel = kernel
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._end.wait(0.1):
            self.most = max(self.most, self._kernel.resident())

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def _fill(path: Path) -> None:
    chance = random.Random(1)
    with path.open("wb") as file:
        for _ in range(SIZE // PART):
            file.write(chance.randbytes(PART))


def _write(client: Client, source: Path, size: int) -> float:
    """Store the file's bytes as a new object; return MB/s."""
    client.send(StoDelete("large"))
    client.read()
    began = perf_counter()
    waiting, frame = 0, bytearray()
    part: Any = memoryview(bytearray(PART))  # a request encodes it as it does bytes
    with source.open("rb", buffering=0) as file:
        for at in range(0, size, PART):
            read = part[: file.readinto(part)]
            _send(client, StoWrite("large", read, at, at + PART >= size, "upload"), frame)
            waiting += 1
            if waiting > AHEAD:
                _check(client)
                waiting -= 1
    for _ in range(waiting):
        _check(client)
    return size / (perf_counter() - began) / 1e6


def _send(client: Client, call: StoWrite, frame: bytearray) -> None:
    """Send a request by way of a buffer that is there already."""
    body = (client.next_id, BY_ARGS[StoWrite].number, call)
    client.next_id += 1
    _encoder.encode_into(body, frame, HEADER)
    frame[:HEADER] = (len(frame) - HEADER).to_bytes(HEADER, "little")
    client.sock.sendall(frame)


def _check(client: Client) -> None:
    reply = client.read()
    if reply.errno:
        raise RuntimeError(f"sto_write: {bytes(reply.body)!r}")


def _read(client: Client) -> float:
    """Read the object; return MB/s."""
    began, size = perf_counter(), 0
    client.send(StoRead("large"))
    while (reply := client.read()).more:
        size += len(bytes(reply.body))
    if reply.errno:
        raise RuntimeError(f"sto_read: {bytes(reply.body)!r}")
    return size / (perf_counter() - began) / 1e6


def _copy(source: Path, target: Path) -> float:
    """Copy the file in the same parts, synced; return MB/s."""
    began = perf_counter()
    with source.open("rb") as file, target.open("wb") as copy:
        while part := file.read(PART):
            copy.write(part)
        copy.flush()
        os.fsync(copy.fileno())
    taken = perf_counter() - began
    target.unlink()
    return source.stat().st_size / taken / 1e6
