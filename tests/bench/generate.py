"""Writes the workloads of the benchmarks: `python -m tests.bench.generate`.

Each is a file in tests/bench/work/, in the simulator's form, so that the same can be tried in
simulated time: `aiosctl sched simulate --workload tests/bench/work/mixed.toml`. The same seed
writes the same; what is measured is what stands in the files.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from aiosd.sched.workload import Workload, load, mixed

WORK: Final = Path(__file__).parent / "work"
SEED: Final = 1


def background_rows(draw: random.Random) -> list[dict[str, Any]]:
    """16 long prompts at once, and somebody who asks for something short every second."""
    person = {"prompt": 30, "output": 16, "nice": -10, "arrival": 1.0, "every": 1.0}
    return [
        {"name": "long", "count": 16, "prompt": 1500, "output": 200},
        {"name": "person", "count": 50, **person},
    ]


def agents_rows(draw: random.Random) -> list[dict[str, Any]]:
    """24 agents with tools between their turns; a system prompt of 600 tokens comes on top."""
    return [
        {
            "name": f"a{n}",
            "prompt": draw.randint(40, 120),
            "output": draw.randint(32, 64),
            "turns": 3,
            "think": round(draw.uniform(0.5, 2), 2),
            "arrival": round(draw.uniform(0, 0.5), 2),
        }
        for n in range(24)
    ]


def mixed_rows(draw: random.Random) -> list[dict[str, Any]]:
    """32 agents at once, every fourth with much to do."""
    return [
        {"name": agent.name, "prompt": turn.prompt, "output": turn.output}
        for agent in mixed(draw)
        for turn in agent.turns
    ]


MAKERS: Final[dict[str, Callable[[random.Random], list[dict[str, Any]]]]] = {
    "agents": agents_rows,
    "background": background_rows,
    "mixed": mixed_rows,
}


def read(name: str) -> Workload:
    """Return one of the workloads."""
    return load(str(WORK / f"{name}.toml"))


def main() -> None:
    """Write all files."""
    WORK.mkdir(exist_ok=True)
    for name, maker in MAKERS.items():
        tables = [_table(row) for row in maker(random.Random(SEED))]
        head = f"# {(maker.__doc__ or '').strip()} Written by tests/bench/generate.py.\n"
        (WORK / f"{name}.toml").write_text("\n".join([head, *tables]), encoding="utf-8")


def _table(row: dict[str, Any]) -> str:
    lines = (
        f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}"
        for key, value in row.items()
    )
    return "\n".join(["[[agents]]", *lines, ""])


if __name__ == "__main__":
    main()
