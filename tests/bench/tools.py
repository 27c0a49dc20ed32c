"""tools: what a call costs, in a warm host, in a fresh box, and 32 at once.

Claims: execute_tool of a no-op in a warm host takes at most 5 times a ping; in a host that has to
be started in its full sandbox at most 1.5 times as long as the same host takes bare, from its start
to its first word; 32 calls at once of a tool that sleeps 500 ms, in warm hosts, at most 1.5 times
one.

How: one blocking client and a real daemon, which runs without cores. The no-op and the sleeper are
Python functions. Warm calls and pings go in turns, one by one: two processes that only ping each
other may be put on one processor, where neither has to be woken, and that is no measure of a call
on which three work. Linux does that as well for the first tenths of a second after a pause, such as
the wait for quiet before a round: so a round's first calls are shown apart, without a limit. Cold:
a second daemon keeps no host for the next call; the bare side is the same program, module and
interpreter, started by this process and read to its end.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from statistics import median
from time import perf_counter

from aiosd.abi.call import Call
from aiosd.abi.system import Ping
from aiosd.abi.tools import ExecuteTool
from tests.bench.kernel import Kernel
from tests.bench.quiet import Rounds
from tests.bench.ratio import Ratio, divide, interleave
from tests.daemon import ROOT, Client, answer

ROUNDS = 5
FIRST = 300
CALLS = 2000
STARTS = 3
SLEEPERS = 32
MODULE = '''
import time
from aios.tools import tool

@tool(idempotent=True)
def noop() -> int:
    """Do nothing."""
    return 1

@tool(idempotent=True)
def nap() -> int:
    """Sleep for half a second."""
    time.sleep(0.5)
    return 1
'''


class Tools(Kernel):
    """A daemon with the two tools."""

    def __init__(self, warm: int) -> None:
        self._warm = warm
        super().__init__()
        self.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'sdk'}"

    def configure(self, text: str) -> None:
        """Write the configuration and the manifests."""
        folder = self.config.parent.parent / "tools"
        folder.mkdir(exist_ok=True)
        (folder / "own.py").write_text(MODULE)
        for name in ("noop", "nap"):
            manifest = f'name = "{name}"\npython = "own:{name}"\nidempotent = true\n'
            (folder / f"{name}.toml").write_text(manifest)
        self.module = folder / "own.py"
        super().configure(text)
        with self.config.open("a") as file:
            file.write(f'[tools]\npath = ["{folder}"]\npackages = []\nmax_warm = {self._warm}\n')


def run(rounds: int) -> Iterator[Ratio]:
    """Measure warm calls, cold ones, and many at once."""
    rounds = rounds or ROUNDS
    with Tools(2 * SLEEPERS) as kernel, kernel.client("caller") as client:
        yield from _warm(client, rounds)
        yield _parallel(client, rounds)
    with Tools(0) as kernel, kernel.client("caller") as client:
        yield _cold(client, kernel, rounds)


def _warm(client: Client, rounds: int) -> Iterator[Ratio]:
    client.call(ExecuteTool("noop"))
    taken = Rounds[list[list[float]]](rounds)
    for _ in taken:
        sides = ExecuteTool("noop"), Ping(b"0123456789abcdef")
        taken.add([_medians(client, number, *sides) for number in (FIRST, CALLS)])
    first, settled = zip(*taken.quietest(), strict=True)
    what = "execute_tool of a no-op, warm / ping"
    for label, values in ((what, settled), (f"{what}, first {FIRST} after a pause", first)):
        call, ping = zip(*values, strict=True)
        yield Ratio(
            bench="tools",
            what=label,
            rounds=divide(call, ping),
            limit=5.0 if label == what else None,
            noise=taken.noise,
            figures={"call µs": median(call) * 1e6, "ping µs": median(ping) * 1e6},
        )


def _medians(client: Client, number: int, *sides: Call) -> list[float]:
    """Return the seconds that each call takes, made `number` times one after the other in turns."""
    taken: list[list[float]] = [[] for _ in sides]
    for _ in range(number):
        for args, times in zip(sides, taken, strict=True):
            began = perf_counter()
            client.call(args)
            times.append(perf_counter() - began)
    return [median(times) for times in taken]


def _parallel(client: Client, rounds: int) -> Ratio:
    _at_once(client, SLEEPERS)  # starts the hosts
    (many, one), noise = interleave(
        rounds, lambda: _at_once(client, SLEEPERS), lambda: _at_once(client, 1)
    )
    return Ratio(
        bench="tools",
        what=f"{SLEEPERS} sleepers of 500 ms at once / one",
        rounds=divide(many, one),
        limit=1.5,
        noise=noise,
        figures={"many s": median(many), "one s": median(one)},
    )


def _at_once(client: Client, number: int) -> float:
    began = perf_counter()
    for _ in range(number):
        client.send(ExecuteTool("nap"))
    for _ in range(number):
        answer(client.read())
    return perf_counter() - began


def _cold(client: Client, kernel: Tools, rounds: int) -> Ratio:
    bare = [sys.executable, "-m", "aios.toolhost", "--declare", str(kernel.module)]
    environ = os.environ | kernel.environ

    def boxed() -> float:
        began = perf_counter()
        for _ in range(STARTS):
            client.call(ExecuteTool("noop"))
        return (perf_counter() - began) / STARTS

    def by_hand() -> float:
        began = perf_counter()
        for _ in range(STARTS):
            subprocess.run(bare, env=environ, check=True, stdout=subprocess.DEVNULL)
        return (perf_counter() - began) / STARTS

    (ours, theirs), noise = interleave(rounds, boxed, by_hand)
    return Ratio(
        bench="tools",
        what="execute_tool, cold in its sandbox / the same program bare",
        rounds=divide(ours, theirs),
        limit=1.5,
        noise=noise,
        figures={"cold ms": median(ours) * 1e3, "bare ms": median(theirs) * 1e3},
    )
