"""Measure what the kernel promises: `python -m tests.bench [NAME...] [--rounds N] [--json FILE]`.

Each benchmark is a module here with a docstring that states its claims and a function `run(rounds)`
that yields ratios; rounds 0 stands for its own default. The table goes to standard output, all
figures as JSON to tests/bench/out/. Exit status: 0 all limits kept, 1 one missed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from tests.bench.ratio import Ratio, show

NAMES = (
    "boot", "ping", "switch", "fork", "restart", "many", "decode", "peer", "urgent", "agents",
    "background", "mixed", "where", "memory", "storage", "quota", "tools", "headline",
    "route", "copies", "gateway", "clients",
)  # fmt: skip
OUT = Path(__file__).parent / "out"


def main() -> int:
    """Run the benchmarks asked for."""
    options = _parse()
    signal.signal(signal.SIGTERM, _interrupt)
    messages, ratios = Console(stderr=True), []
    for name in options.names or NAMES:
        bench = importlib.import_module(f"tests.bench.{name}")
        messages.print(f"[bold]{(bench.__doc__ or name).splitlines()[0]}")
        began = time.monotonic()
        for ratio in bench.run(options.rounds):
            ratios.append(ratio)
            show([ratio], messages)
        messages.print(f"[dim]{name}: {time.monotonic() - began:.0f} s[/]")
    show(ratios, Console(width=None if sys.stdout.isatty() else 160))
    _write(ratios, Path(options.json) if options.json else OUT / "bench.json")
    return 0 if all(ratio.held for ratio in ratios) else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.bench", description="Measure the kernel.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--rounds", type=int, default=0, help="0: as many as each needs")
    parser.add_argument("--json", metavar="FILE", help="where the figures go")
    options = parser.parse_args()
    for name in options.names:
        if name not in NAMES:
            parser.error(f"no benchmark {name!r}; there are {', '.join(NAMES)}")
    return options


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _write(ratios: list[Ratio], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": f"{os.cpu_count()} processors, {platform.platform()}",
        "python": platform.python_version(),
        "ratios": [ratio.built() for ratio in ratios],
    }
    path.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
