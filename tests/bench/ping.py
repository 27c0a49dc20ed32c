"""ping: what a system call costs beside a bare echo of the same frame on the same event loop.

Claims: the median round trip of `ping` is at most 1.5 times that of the echo; with 32 requests in
flight at least 3 times as many are answered per second as one at a time; and both hold as well
while two cores decode.

How: one blocking client, the same code for both servers, each server a process of its own. All
three are bound to one processor: waking another one takes longer than either answer, and whether
the scheduler does so is chance. A round times PINGS round trips one by one (their median) and then
as many in windows of 32. While cores decode, two workers at nice 19, of one thread each, are kept
busy by eight agents.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from time import perf_counter

from aiosd.abi import wire
from aiosd.abi.cores import Core, ListCores
from aiosd.abi.inference import LlmGenerate
from aiosd.abi.system import Ping
from aiosd.abi.table import BY_ARGS
from tests.bench.echo import Echo
from tests.bench.kernel import Kernel, core
from tests.bench.ratio import Ratio, divide, interleave
from tests.daemon import Client

ROUNDS = 9
PINGS = 2000
WINDOW = 32
PAYLOAD = b"0123456789abcdef"
AGENTS = 8  # that generate in the background


class Pinger:
    """A client that sends one frame again and again and counts bytes of answers."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._frame = wire.request(1, BY_ARGS[Ping].number, Ping(PAYLOAD))
        sock.sendall(self._frame)
        self._size = len(sock.recv(1 << 16))  # of an answer

    def one_by_one(self) -> float:
        """Return the median seconds of a round trip."""
        send, receive, frame, size = self._sock.sendall, self._sock.recv, self._frame, self._size
        taken = []
        for _ in range(PINGS):
            began = perf_counter()
            send(frame)
            got = len(receive(4096))
            taken.append(perf_counter() - began)
            assert got == size, "an answer came in pieces"
        return median(taken)

    def rate(self, window: int) -> float:
        """Return answers per second with `window` requests in flight."""
        frames, wanted = self._frame * window, self._size * window
        turns = PINGS // window
        began = perf_counter()
        for _ in range(turns):
            self._sock.sendall(frames)
            left = wanted
            while left:
                left -= len(self._sock.recv(1 << 16))
        return turns * window / (perf_counter() - began)


def run(rounds: int) -> Iterator[Ratio]:
    """Measure on a quiet kernel, then on one whose cores are busy."""
    with Echo() as echo, Kernel() as kernel:
        yield from _measure(echo, kernel, rounds or ROUNDS, "")
    busy = (core(name, slots=4, threads=1) for name in "ab")
    with Echo() as echo, Kernel(*busy) as kernel:
        kernel.cores()
        load = [kernel.client(f"load{n}") for n in range(AGENTS)]
        for n, client in enumerate(load):
            _generate(client, "ab"[n % 2])
        yield from _measure(echo, kernel, rounds or ROUNDS, ", two cores decoding")
        _check_busy(load[0], kernel)


def _measure(echo: Echo, kernel: Kernel, rounds: int, where: str) -> Iterator[Ratio]:
    ours, theirs = Pinger(kernel.client().sock), Pinger(echo.connect())
    ours.one_by_one()
    with _bound(0, kernel.process.pid, echo.pid):
        (ping, bare, slow, fast), noise = interleave(
            rounds,
            ours.one_by_one,
            theirs.one_by_one,
            lambda: ours.rate(1),
            lambda: ours.rate(WINDOW),
        )
    yield Ratio(
        bench="ping",
        what=f"ping p50 / bare echo p50{where}",
        rounds=divide(ping, bare),
        limit=1.5,
        noise=noise,
        figures={"ping µs": median(ping) * 1e6, "echo µs": median(bare) * 1e6},
    )
    yield Ratio(
        bench="ping",
        what=f"pings/s, {WINDOW} in flight / one at a time{where}",
        rounds=divide(fast, slow),
        limit=3.0,
        at_most=False,
        noise=noise,
        figures={"pipelined/s": median(fast), "one at a time/s": median(slow)},
    )


@contextmanager
def _bound(*pids: int) -> Iterator[None]:
    """Bind the main threads of these processes to one processor; 0 is this process."""
    before = {pid: os.sched_getaffinity(pid) for pid in pids}
    try:
        for pid in pids:
            os.sched_setaffinity(pid, {min(before[0])})
        yield
    finally:
        for pid, processors in before.items():
            os.sched_setaffinity(pid, processors)


def _generate(client: Client, name: str) -> None:
    """Ask for more text than the measurement takes to time, and don't wait for it."""
    client.send(
        LlmGenerate(prompt="Once upon a time", raw=True, max_tokens=2000, core=name, temperature=1)
    )


def _check_busy(client: Client, kernel: Kernel) -> None:
    with kernel.client() as asker:
        cores: list[Core] = asker.call(ListCores())
    if not all(one.running for one in cores):
        raise RuntimeError("the cores fell idle during the measurement; ask for more tokens")
