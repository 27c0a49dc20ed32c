"""`aiosctl demo`: the paper's Tables 4 and 5, reproduced on this machine.

The agents math, narrative and rec run alone, then one after the other, then all at once under the
scheduler, several times each; waiting and turnaround times make Table 5, the comparison of every
reply with the one given alone makes Table 4.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final

import typer

from aiosh import link, offers, tables
from aiosh.arguments import Json

if TYPE_CHECKING:
    from aios import AsyncKernel, Core, Sched
    from aiosh.progress import Progress
    from aiosh.results import Block

app = typer.Typer()

AGENTS: Final = ("math", "narrative", "rec")
"""In the paper's order."""

LOADING_SECONDS: Final = 300.0
"""How long a core may take to load and to be probed before the demo gives up."""


@app.command()
def demo(
    trials: Annotated[int, typer.Option("--trials", "-t", min=1, help="times of each")] = 5,
    policy: Annotated[
        str, typer.Option("--policy", "-p", help="for the time", autocompletion=offers.policies)
    ] = "",
    quantum: Annotated[int, typer.Option("--quantum", "-q", min=0, help="tokens, for rr")] = 0,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="of each reply")] = 48,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="GGUF file to add as a core; any number"),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="one trial of short replies")] = False,
    json: Json = False,
) -> None:
    """Run the paper's agents alone, in sequence and concurrently: its Tables 4 and 5.

    Without --model on the first core that is ready; the policy is the daemon's unless told.
    """
    if quick:
        trials, max_tokens = 1, min(max_tokens, 12)
    paths = [os.path.abspath(os.path.expanduser(path)) for path in model or []]
    from aiosh import results

    blocks, sched = asyncio.run(_demo(trials, policy, quantum, max_tokens, paths))
    if json:
        head = {"policy": sched.policy, "quantum": sched.quantum, "trials": trials}
        tables.print_json({**head, "max_tokens": max_tokens, "cores": [asdict(b) for b in blocks]})
    else:
        results.report(blocks, sched, trials)
    results.judge(blocks)


async def _demo(
    trials: int, policy: str, quantum: int, max_tokens: int, paths: Sequence[str]
) -> tuple[list[Block], Sched]:
    from aiosh.progress import Progress

    blocks: list[Block] = []
    async with (
        _connected() as kernel,
        _policy(kernel, policy, quantum) as sched,
        Progress(kernel, trials) as progress,
    ):
        # "" stands for the core that is there already.
        for path in paths or [""]:
            async with _core(kernel, path, progress) as core:
                blocks.append(await _on_core(kernel, core, trials, max_tokens, progress))
    return blocks, sched


@asynccontextmanager
async def _connected() -> AsyncIterator[AsyncKernel]:
    import aios

    kernel = aios.connect_async()
    try:
        await kernel
    except OSError as error:
        raise link.Unreachable(link.sentence(error)) from error
    async with kernel:
        yield kernel


@asynccontextmanager
async def _policy(kernel: AsyncKernel, policy: str, quantum: int) -> AsyncIterator[Sched]:
    """Set the policy for the length of the block, where one is asked for."""
    before = await kernel.get_sched()
    if not policy and not quantum:
        yield before
        return
    try:
        yield await kernel.set_sched(policy=policy, quantum=quantum)
    finally:
        with suppress(ConnectionError):
            await kernel.set_sched(policy=before.policy, quantum=before.quantum)


@asynccontextmanager
async def _core(kernel: AsyncKernel, path: str, progress: Progress) -> AsyncIterator[Core]:
    """Give the core to run on: the first that is ready, or one made of a file and removed after."""
    if not path:
        yield await _first_ready(kernel, progress)
        return
    stem = re.sub(r"[^A-Za-z0-9._:-]", "-", os.path.basename(path).removesuffix(".gguf"))
    progress.say(f"loading {stem}")
    core = await kernel.add_core(path, name=f"demo-{stem}"[:64])
    try:
        if core.state == "failed":
            raise link.Failure(f"core {core.name} failed: {link.trouble(core)}")
        yield core
    finally:
        with suppress(ConnectionError):
            await kernel.remove_core(core.name)


async def _first_ready(kernel: AsyncKernel, progress: Progress) -> Core:
    until = time.monotonic() + LOADING_SECONDS
    while True:
        cores = [core for core in await kernel.list_cores() if core.kind != "tool"]
        ready = [core for core in cores if core.state == "ready"]
        if ready:
            return ready[0]
        if not cores:
            raise link.Failure("the daemon has no core; `cores add FILE.gguf` adds one")
        coming = [core for core in cores if core.state in ("loading", "restarting")]
        if not coming or time.monotonic() > until:
            why = "; ".join(f"{core.name} is {core.state} {core.error}".strip() for core in cores)
            raise link.Failure(f"no core is ready: {why}")
        progress.say(f"waiting for core {coming[0].name}: {coming[0].state}")
        await asyncio.sleep(0.2)


async def _on_core(
    kernel: AsyncKernel, core: Core, trials: int, max_tokens: int, progress: Progress
) -> Block:
    """Run all trials on one core."""
    from aiosh import results, trial

    setting = trial.Setting(AGENTS, core.name, max_tokens)
    solo = await trial.alone(kernel, setting, progress.begin)
    sequential = [await trial.sequential(kernel, setting, progress.begin) for _ in range(trials)]
    concurrent = [await trial.concurrent(kernel, setting, progress.begin) for _ in range(trials)]
    return results.block(core, solo, sequential, concurrent)
