"""One trial of the demo: the paper's agents alone, one after the other, or all at once.

An agent is spawned with --json and prints one line per reply; those lines are all that is read of
it. What must hold: whatever ends a trial early, no agent that it started is left running.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from aiosh import link, signals

if TYPE_CHECKING:
    from aios import AsyncKernel


@dataclass(frozen=True)
class Reply:
    """One answer of the model's to one of an agent's requests; times in seconds."""

    text: str
    token_ids: tuple[int, ...]
    waiting_s: float
    turnaround_s: float


@dataclass
class Part:
    """What one agent does in a trial, for whoever watches: its aid (0: not begun), its replies."""

    agent: str
    aid: int = 0
    replies: list[Reply] = field(default_factory=list)
    done: bool = False


@dataclass
class Trial:
    """The parts of a trial, in the paper's order, and how long all of it took in seconds."""

    kind: str
    parts: list[Part]
    seconds: float = 0.0


Begun = Callable[[Trial], None]
"""Is told of a trial when it begins; the trial's parts change while it runs."""


@dataclass(frozen=True)
class Setting:
    """What all agents of a demo are told: the core to run on, the most tokens of a reply."""

    agents: Sequence[str]
    core: str
    max_tokens: int

    def argv(self, agent: str) -> list[str]:
        """Return the command line of an agent."""
        return [agent, "--json", "--max-tokens", str(self.max_tokens), "--core", self.core]


async def alone(kernel: AsyncKernel, setting: Setting, begun: Begun) -> Trial:
    """Run each agent alone: its replies are what all others are compared with."""
    return await _one_by_one(kernel, setting, begun, "alone", submitted_together=False)


async def sequential(kernel: AsyncKernel, setting: Setting, begun: Begun) -> Trial:
    """Run the agents in order, submitted together: each waits until those before it are done.

    The paper's non-scheduled execution: a request's waiting and turnaround time count from the
    moment at which all agents were submitted, so they hold the time its agent was held back.
    """
    return await _one_by_one(kernel, setting, begun, "sequential", submitted_together=True)


async def _one_by_one(
    kernel: AsyncKernel, setting: Setting, begun: Begun, kind: str, *, submitted_together: bool
) -> Trial:
    trial = Trial(kind, [Part(agent) for agent in setting.agents])
    begun(trial)
    submitted = time.monotonic()
    for part in trial.parts:
        held_back = time.monotonic() - submitted if submitted_together else 0.0
        await _run(kernel, setting, part)
        part.replies = [_later(reply, held_back) for reply in part.replies]
    trial.seconds = time.monotonic() - submitted
    return trial


def _later(reply: Reply, seconds: float) -> Reply:
    return replace(
        reply,
        waiting_s=reply.waiting_s + seconds,
        turnaround_s=reply.turnaround_s + seconds,
    )


async def concurrent(kernel: AsyncKernel, setting: Setting, begun: Begun) -> Trial:
    """Run all agents at once and let the kernel schedule their requests."""
    trial = Trial("concurrent", [Part(agent) for agent in setting.agents])
    begun(trial)
    submitted = time.monotonic()
    try:
        async with asyncio.TaskGroup() as group:
            for part in trial.parts:
                group.create_task(_run(kernel, setting, part))
    except ExceptionGroup as several:
        # The first that failed took the others along: what they say of that helps nobody.
        raise several.exceptions[0] from None
    trial.seconds = time.monotonic() - submitted
    return trial


async def _run(kernel: AsyncKernel, setting: Setting, part: Part) -> None:
    """Run one agent to its end and collect its replies. Raises Failure when it failed."""
    started = await kernel.spawn(setting.argv(part.agent), name=part.agent)
    part.aid = started.aid
    try:
        complaint = await _replies(kernel, part)
        ended = await kernel.wait(started.aid)
    except BaseException:
        # Ctrl-C or another agent's failure: take this one along before leaving.
        with suppress(OSError):
            await asyncio.shield(kernel.kill(started.aid, signal="KILL"))
        raise
    part.done = True
    if ended is None or ended.code != 0:
        how = signals.described(ended.code, ended.signal) if ended else "lost"
        last = f": {complaint[-1]}" if complaint else ""
        raise link.Failure(f"agent {part.agent} ({started.aid}) ended with {how}{last}")
    if not part.replies:
        raise link.Failure(f"agent {part.agent} ({started.aid}) got no reply")


async def _replies(kernel: AsyncKernel, part: Part) -> deque[str]:
    """Read an agent's output to its end; return the last lines of its stderr."""
    rest, errors = "", deque[str](maxlen=5)
    async for record in kernel.read_log(part.aid, follow=True):
        if record.stream != "out":
            errors.extend(line for line in record.text.splitlines() if line.strip())
            continue
        *lines, rest = (rest + record.text).split("\n")
        part.replies += [reply for line in lines if (reply := _reply(line)) is not None]
    return errors


def _reply(line: str) -> Reply | None:
    """Return what a line of an agent's output says of a reply, None when it is another line."""
    try:
        said: Any = json.loads(line)["reply"]
        return Reply(
            text=said["text"],
            token_ids=tuple(said["token_ids"]),
            waiting_s=float(said["timing"]["waiting_s"]),
            turnaround_s=float(said["timing"]["turnaround_s"]),
        )
    except (ValueError, KeyError, TypeError):
        return None
