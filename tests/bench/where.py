"""where: where a decode step's time goes when eight agents generate: informs, judges nothing.

How: eight agents at once through the socket; the core reports, for every step, the time inside
llama.cpp and the time of the whole step in the worker; what the wall clock shows beyond that is the
pipe and the kernel. The kernel's own share is the CPU time of its process.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import psutil

from tests.bench.crowd import Crowd, prompts
from tests.bench.kernel import Kernel, core
from tests.bench.ratio import Ratio

ROUNDS = 3
COUNT = 8


def run(rounds: int) -> Iterator[Ratio]:
    """Take the shares over several rounds of answers."""
    shares: dict[str, list[float]] = {"llama.cpp": [], "worker": [], "kernel CPU": [], "rest": []}
    with Kernel(core("local")) as kernel:
        kernel.cores()
        with Crowd(kernel, COUNT) as crowd:
            crowd.together(prompts(99, COUNT))
            for turn in range(rounds or ROUNDS):
                for name, share in _round(kernel, crowd, turn).items():
                    shares[name].append(share)
    for name, taken in shares.items():
        yield Ratio(bench="where", what=f"time in {name} / wall time", rounds=taken)


def _round(kernel: Kernel, crowd: Crowd, turn: int) -> dict[str, float]:
    process = psutil.Process(kernel.process.pid)
    (before,) = kernel.cores()
    cpu, began = sum(process.cpu_times()[:2]), time.perf_counter()
    crowd.together(prompts(turn, COUNT))
    wall = time.perf_counter() - began
    cpu = sum(process.cpu_times()[:2]) - cpu
    (after,) = kernel.cores()
    device, step = after.device_s - before.device_s, after.step_s - before.step_s
    return {
        "llama.cpp": device / wall,
        "worker": (step - device) / wall,
        "kernel CPU": cpu / wall,
        "rest": (wall - step) / wall,
    }
