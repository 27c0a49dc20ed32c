"""`python -m aiosd.sched.simulate`: try policies on a workload, in simulated time.

Prints a row for each policy, bars, and the fairness over time; or JSON; and writes a picture where
matplotlib is installed (the extra `plot`). `aiosctl sched simulate` is this.
"""

from __future__ import annotations

import argparse
import errno
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any, Final

from aiosd import sched

from . import workload
from .farm import Farm
from .simulation import WINDOW_S, Result, Simulation

COLUMNS: Final = (
    ("POLICY", "policy", ""),
    ("WAIT", "waiting_s", ".2f"),
    ("FIRST95", "first_p95_s", ".2f"),
    ("TURN", "turnaround_s", ".2f"),
    ("P50", "turnaround_p50_s", ".2f"),
    ("P95", "turnaround_p95_s", ".2f"),
    ("JAIN", "jain", ".3f"),
    ("MIN", "jain_min", ".3f"),
    ("TOK/S", "tokens_per_s", ".1f"),
    ("OUT/S", "out_per_s", ".1f"),
    ("PREEMPT", "preemptions", "d"),
)
EXPLAINED: Final = (
    "seconds until a slot, until the first token (95 %), and until the last (mean, 50 %, 95 %); "
    f"Jain's index over windows of {WINDOW_S:g} s"
)
MOST_CORES: Final = 10_000
_BAR: Final = 40
_SPARKS: Final = "▁▂▃▄▅▆▇█"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, 1 when something can't be done, 2 for wrong words."""
    args = _parser().parse_args(argv)
    try:
        results = simulate(args)
        if args.plot:
            draw(results, args.plot)
    except OSError as error:
        sys.stderr.write(f"{_parser().prog}: {error.strerror or error}\n")
        return 2 if error.errno in (errno.EINVAL, errno.ENOENT) else 1
    if args.json:
        sys.stdout.write(json.dumps([each.summary() for each in results], indent=2) + "\n")
    else:
        sys.stdout.write("\n".join(lines(results)) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sched simulate", description="Try scheduling policies on a workload, simulated."
    )
    add = parser.add_argument
    add("-p", "--policy", action="append", default=[], help="again for more; default: all")
    names = ", ".join(workload.MAKERS)
    add("-w", "--workload", default="mixed", metavar="FILE", help=f"TOML or JSON, or: {names}")
    add("--seed", type=int, default=0, help="of a workload that is made by name")
    add("--slots", type=int, default=0, help="of the core; default: the workload's")
    add("--cores", type=int, default=1, help="agents are spread over so many")
    add("--death", type=float, action="append", default=[], metavar="SECONDS",
        help="the busiest core's machine dies then; again for more")  # fmt: skip
    add("-q", "--quantum", type=int, default=sched.levels.DEFAULT_QUANTUM, help="tokens")
    add("--png", "--plot", dest="plot", default="", metavar="FILE", help="write a picture, too")
    add("--json", action="store_true", help="data as JSON on stdout")
    return parser


def simulate(args: argparse.Namespace) -> list[Result]:
    """Run the workload under each policy. OSError for a name or a file that is no good."""
    work = workload.load(args.workload, args.seed)
    if args.slots < 0:
        raise OSError(errno.EINVAL, f"--slots {args.slots}: a core has 1 or more")
    if args.slots:
        work = replace(work, slots=args.slots)
    if not 1 <= args.cores <= MOST_CORES:
        raise OSError(errno.EINVAL, f"--cores {args.cores}: 1 to {MOST_CORES}")
    names = args.policy or list(sched.POLICIES)
    return [_run(work, name, args) for name in names]


def _run(work: workload.Workload, name: str, args: argparse.Namespace) -> Result:
    policies = [sched.make(name, quantum=args.quantum) for _ in range(args.cores)]
    if args.cores == 1 and not args.death:
        return Simulation(work, policies[0]).run()
    return Farm(work, policies, args.death).run()


def lines(results: list[Result]) -> list[str]:
    """The table, bars of the mean turnaround and the fairness from window to window."""
    rows = [each.summary() for each in results]
    work = results[0].workload
    head = f"{work.name}: {len(work.agents)} agents, {rows[0]['requests']} requests"
    where = f"{work.slots} slots" + f" on each of {results[0].cores} cores" * (results[0].cores > 1)
    out = [f"{head}, {where}", *_table(rows), EXPLAINED]
    if again := [f"{row['again']} ({row['policy']})" for row in rows if row["again"]]:
        out.append(f"computed again: {', '.join(again)} tokens")
    out += ["", "mean turnaround, seconds"]
    longest = max(float(row["turnaround_s"]) for row in rows) or 1.0
    for row in rows:
        seconds = float(row["turnaround_s"])
        out.append(f"{row['policy']:<9}{bar(seconds / longest)} {seconds:.2f}")
    out += ["", "fairness by window (full: 1)"]
    for result in results:
        indices = [index for _, index in result.fairness()]
        out.append(f"{result.policy:<9}{spark(indices, 60) or 'nobody had to share'}")
    return out


def _table(rows: list[dict[str, float | int | str]]) -> list[str]:
    cells = [[head for head, _, _ in COLUMNS]]
    cells += [[format(row[key], form) for _, key, form in COLUMNS] for row in rows]
    widths = [max(len(line[n]) for line in cells) for n in range(len(COLUMNS))]
    return [
        " ".join(
            cell.rjust(width) if n else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]


def bar(part: float, width: int = _BAR) -> str:
    """A bar of this part of the width, to an eighth of a character."""
    whole, eighths = divmod(round(part * width * 8), 8)
    return "█" * whole + (" ▏▎▍▌▋▊▉"[eighths] if eighths else "")


def spark(values: Sequence[float], width: int) -> str:
    """Values from 0 to 1 as small columns, each the mean of as many as must share one."""
    each = -(-len(values) // width) or 1
    parts = [values[n : n + each] for n in range(0, len(values), each)]
    means = [sum(part) / len(part) for part in parts]
    return "".join(_SPARKS[min(7, int(mean * 8))] for mean in means)


def draw(results: list[Result], path: str) -> None:
    """Write a picture of turnaround and fairness. OSError(ENOSYS) without matplotlib."""
    try:
        matplotlib: Any = import_module("matplotlib")
        matplotlib.use("Agg")
        pyplot: Any = import_module("matplotlib.pyplot")
    except ImportError:
        reason = "--png takes matplotlib: pip install 'aios[plot]', or leave --png out"
        raise OSError(errno.ENOSYS, reason) from None
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4))
    for result in results:
        rounds = sorted(each.turnaround for each in result.requests)
        shares = [(n + 1) / len(rounds) for n in range(len(rounds))]
        left.step(rounds, shares, where="post", label=result.policy)
        windows = result.fairness()
        right.plot([w * WINDOW_S for w, _ in windows], [index for _, index in windows])
    left.set(xlabel="turnaround, seconds", ylabel="part of the requests", ylim=(0, 1))
    right.set(xlabel="seconds", ylabel="Jain's index", ylim=(0, 1.02))
    left.legend()
    figure.tight_layout()
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise OSError(errno.EIO, f"--png {path}: {error.strerror}") from None
    finally:
        pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
