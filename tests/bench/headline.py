"""headline: agents under AIOS, and the same programs around one model behind a lock.

Claim: with 8 or more agents at once, agents are done at 2.1 times the rate at least, with weights
of type Q4_0 on both sides. Shown for 1 to 32 agents, and without a claim for 8 with the packaged
file as it is.

Why Q4_0: what agents gain by running at once they gain in batches. The packaged file is Q4_1, for
which llama.cpp has no kernels on a CPU that compute rows together: 8 rows take it 4.4 times as long
as one, 8 of Q4_0 3.4 times, 16 only 4.7 times. The core's own setting `quantize` converts it, and
the other side opens the very file that comes of that.

How: math, narrative and rec, the agents that come with aios, in turns. Here each is a process that
`aiosctl run` starts, follows and reports on: two programs of Python for each agent, whose start
counts. There they are threads of one process that share a llama_cpp.Llama behind a lock
(locked.py), as agent frameworks do; it is loaded before. Same model file, threads, window and
prompts, at most TOKENS tokens a reply. The core has 8 slots, for more agents 16. Seconds run until
the last agent is done. A round is long, so each side is measured once in it, and after WHOLE_S no
round is taken again because of noise.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Final

from aiosd.config import PACKAGED_MODEL, find_model
from tests.bench.kernel import N_CTX, Kernel, core
from tests.bench.locked import AGENTS
from tests.bench.quiet import Rounds
from tests.bench.ratio import Ratio, divide
from tests.daemon import ROOT

COUNTS: Final = {8: (1, 2, 4, 8), 16: (16, 32)}  # of agents, by slots
CLAIMED: Final = 8  # agents from which on the limit holds
TOKENS: Final = 128
LIMIT: Final = 2.1
ROUNDS: Final = 1
QUANTIZE: Final = "q4_0"
WHOLE_S: Final = 300.0


class Locked:
    """The bare side: a process that runs so many agents when it is told to."""

    def __init__(self, model: str, threads: int) -> None:
        numbers = [str(number) for number in (N_CTX, threads, TOKENS)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.locked", model, *numbers],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def rate(self, count: int) -> float:
        """Run so many agents at once; return how many were done a second."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return count / float(self._process.stdout.readline())

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def _locked(model: str, threads: int) -> Iterator[Locked]:
    locked = Locked(model, threads)
    try:
        yield locked
    finally:
        locked.close()


def run(rounds: int) -> Iterator[Ratio]:
    """Measure both sides in turns, with more and more agents."""
    until = perf_counter() + WHOLE_S
    with tempfile.TemporaryDirectory(prefix="aios-bench-") as cache:
        for slots, counts in COUNTS.items():
            with _kernel(cache, slots, QUANTIZE) as kernel:
                model = next(Path(cache, "aios", "weights").glob("*.gguf"))
                for count, taken in _measured(kernel, str(model), counts, rounds, until):
                    yield _ratio(taken, count, f", {slots} slots", claimed=count >= CLAIMED)
        with _kernel(cache, CLAIMED) as kernel:
            packaged = str(find_model(PACKAGED_MODEL))
            for count, taken in _measured(kernel, packaged, (CLAIMED,), rounds, until):
                yield _ratio(taken, count, ", the packaged file", claimed=False)


@contextmanager
def _kernel(cache: str, slots: int, quantize: str = "") -> Iterator[Kernel]:
    kernel = Kernel(core("c", slots=slots, quantize=quantize))
    kernel.environ["XDG_CACHE_HOME"] = cache
    with kernel:
        kernel.cores()
        yield kernel


def _measured(
    kernel: Kernel, model: str, counts: Iterable[int], rounds: int, until: float
) -> Iterator[tuple[int, Rounds[tuple[float, float]]]]:
    """Give each number of agents with its rounds: ours a second, and theirs."""
    with _locked(model, os.cpu_count() or 1) as locked:
        _ours(kernel, 3)  # modules are compiled and pages are read once
        locked.rate(3)
        for count in counts:
            taken = Rounds[tuple[float, float]](rounds or ROUNDS)
            for _ in taken:
                taken.add((_ours(kernel, count), locked.rate(count)))
                if perf_counter() > until:
                    break
            yield count, taken


def _ratio(taken: Rounds[tuple[float, float]], count: int, where: str, *, claimed: bool) -> Ratio:
    ours, theirs = zip(*taken.quietest(), strict=True)
    return Ratio(
        bench="headline",
        what=f"{count} agents done a second, aiosctl run / Llama behind a lock{where}",
        rounds=divide(ours, theirs),
        limit=LIMIT if claimed else None,
        at_most=False,
        noise=taken.noise,
        figures={"ours/s": median(ours), "theirs/s": median(theirs)},
    )


def _ours(kernel: Kernel, count: int) -> float:
    argv = [sys.executable, "-c", "from aiosh.app import main_ctl; main_ctl()", "run"]
    argv += ["--env", f"AIOS_MAX_TOKENS={TOKENS}"]
    paths = {"AIOS_SOCKET": kernel.socket, "PYTHONPATH": f"{ROOT}:{ROOT}/sdk"}
    began = perf_counter()
    running = [
        subprocess.Popen(
            [*argv, AGENTS[number % len(AGENTS)]],
            stdout=subprocess.DEVNULL,
            env=os.environ | paths,
            cwd=ROOT,
        )
        for number in range(count)
    ]
    codes = [each.wait() for each in running]
    if any(codes):
        raise RuntimeError(f"agents ended with {codes}; see {kernel.log}")
    return count / (perf_counter() - began)
