"""boot: how soon the daemon serves, and what it holds before a core is loaded.

Claims: from its start to its first answer the daemon takes at most 3 times what Python takes to
import what the kernel imports; and it holds under 80 MB before a core is loaded.

How: a round starts Python with the kernel's imports alone, then the daemon on an empty state
directory, and polls its socket until a hello is answered. Memory is the resident set then.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from statistics import median

from tests.bench.kernel import Kernel
from tests.bench.ratio import Ratio, divide, interleave
from tests.daemon import ROOT

ROUNDS = 5
LIMIT_MB = 80.0


def run(rounds: int) -> Iterator[Ratio]:
    """Measure starts and imports in turns."""
    held: list[float] = []

    def boot() -> float:
        kernel = Kernel()
        began = time.perf_counter()
        with kernel:
            kernel.client().close()
            seconds = time.perf_counter() - began
            held.append(kernel.resident() / 1e6)
        return seconds

    (ours, theirs), noise = interleave(rounds or ROUNDS, boot, _import)
    yield Ratio(
        bench="boot",
        what="start to first answer / Python importing the kernel",
        rounds=divide(ours, theirs),
        limit=3.0,
        noise=noise,
        figures={"start s": median(ours), "imports s": median(theirs)},
    )
    yield Ratio(
        bench="boot",
        what=f"resident before a core is loaded / {LIMIT_MB:.0f} MB",
        rounds=[size / LIMIT_MB for size in held],
        limit=1.0,
        figures={"resident MB": median(held)},
    )


def _import() -> float:
    """Return seconds until a fresh Python has imported all of it; its exit doesn't count."""
    program = "import os, uvloop, aiosd.main, aiosd.kernel; os.write(1, b'.')"
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout is not None
        done = process.stdout.read(1)
        seconds = time.perf_counter() - began
    if not done:
        raise RuntimeError("the kernel can't be imported")
    return seconds
