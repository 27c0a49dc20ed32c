"""`sched simulate`: scheduling policies tried on a workload, in simulated time; takes no daemon.

The simulator belongs to the kernel, which the shell doesn't import: it runs as a program of its
own, with the words given here.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated

import typer

from aiosh import link, offers
from aiosh.arguments import Json

app = typer.Typer()


@app.command()
def simulate(
    policy: Annotated[
        list[str] | None,
        typer.Option("--policy", "-p", help="again for more", autocompletion=offers.policies),
    ] = None,
    workload: Annotated[
        str, typer.Option("--workload", "-w", metavar="FILE", help="TOML, JSON, or a name")
    ] = "mixed",
    seed: Annotated[int, typer.Option("--seed", help="of a workload made by name")] = 0,
    slots: Annotated[int, typer.Option("--slots", min=0, help="0: as the workload says")] = 0,
    cores: Annotated[
        int, typer.Option("--cores", min=1, help="agents are spread over so many")
    ] = 1,
    death: Annotated[
        list[float] | None,
        typer.Option("--death", metavar="SECONDS", help="a machine dies then; again for more"),
    ] = None,
    quantum: Annotated[int, typer.Option("--quantum", "-q", min=1, help="tokens")] = 64,
    plot: Annotated[
        str, typer.Option("--png", "--plot", metavar="FILE", help="write a picture (extra plot)")
    ] = "",
    json: Json = False,
) -> None:
    """Try scheduling policies on a workload in simulated time: `sched simulate`."""
    words = [f"--policy={name}" for name in policy or []]
    words += [f"--workload={workload}", f"--seed={seed}", f"--slots={slots}"]
    words += [f"--cores={cores}", *(f"--death={when}" for when in death or [])]
    words += [f"--quantum={quantum}", *([f"--png={plot}"] if plot else [])]
    words += ["--json"] if json else []
    done = subprocess.run(
        [sys.executable, "-m", "aiosd.sched.simulate", *words],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    sys.stdout.write(done.stdout)
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2].removeprefix("sched simulate: ")
        raise link.Failure(reason, done.returncode)
