"""Workloads for the simulator: what agents ask for and when, from a file or made by name.

    slots = 8
    [costs]
    prefill_s = 0.00246            # seconds for a token of a prompt
    grid = 64                      # tokens in a slice of it
    decode_s = {1 = 0.011, 8 = 0.028}   # seconds for a step, by how many take part
    switch_s = 0.0021              # seconds for putting a context into a slot
    [[agents]]
    count = 16                     # so many of them
    prompt = 1500
    output = 64
    turns = 3
    think = 1.0                    # seconds between an answer and the next request
    arrival = 0.0                  # seconds; each of `count` comes `every` seconds after the last
    every = 0.5
    nice = 0
    uid = 1000

The same as JSON is read too. Where something is not given, the value above is the default, except
for count, turns (1), think and every (0). `mixed` and others are made from a seed: see MAKERS.
"""

from __future__ import annotations

import errno
import json
import random
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from .policy import NICE_MAX, NICE_MIN


@dataclass(frozen=True, slots=True)
class Costs:
    """What a core takes, in seconds: for a token of a prompt, a step by its width, a switch.

    The defaults were measured: SmolLM2-135M-Instruct Q4_1 on 2 cores.
    """

    prefill_s: float = 0.00246
    grid: int = 64
    decode_s: tuple[tuple[int, float], ...] = ((1, 0.011), (8, 0.028))
    switch_s: float = 0.0021

    def step(self, width: int) -> float:
        """Seconds of a step in which so many sequences decode: between what was measured."""
        below = [each for each in self.decode_s if each[0] <= width]
        above = [each for each in self.decode_s if each[0] >= width]
        if not below or not above:
            measured, seconds = self.decode_s[0] if above else self.decode_s[-1]
            return seconds * width / measured if below else seconds
        (low, least), (high, most) = below[-1], above[0]
        return least if low == high else least + (most - least) * (width - low) / (high - low)


@dataclass(frozen=True, slots=True)
class Turn:
    """One request: tokens of prompt and reply, and seconds that the agent thinks afterwards."""

    prompt: int
    output: int
    think: float = 0.0


@dataclass(frozen=True, slots=True)
class Agent:
    """Who asks for its turns one after the other, the first at `arrival` seconds."""

    name: str
    arrival: float
    turns: tuple[Turn, ...]
    nice: int = 0
    uid: int = 1000


@dataclass(frozen=True, slots=True)
class Workload:
    """Agents, and the core that they share."""

    name: str
    agents: tuple[Agent, ...]
    slots: int = 8
    costs: Costs = field(default_factory=Costs)


def short(draw: random.Random) -> list[Agent]:
    """8 agents with a short prompt each."""
    return [Agent(f"a{n}", 0.0, (Turn(draw.randint(20, 60), 128),)) for n in range(8)]


def chat(draw: random.Random) -> list[Agent]:
    """24 agents with 3 turns, tools taking a while in between."""
    return [
        Agent(
            f"a{n}",
            draw.uniform(0, 2),
            tuple(Turn(600 if turn == 0 else 80, 48, draw.uniform(0.5, 3)) for turn in range(3)),
        )
        for n in range(24)
    ]


def background(draw: random.Random) -> list[Agent]:
    """16 long prompts at once, and one who asks for something short every second."""
    long = [Agent(f"long{n}", 0.0, (Turn(1500, 200),)) for n in range(16)]
    asks = tuple(Turn(draw.randint(20, 40), 16, 1.0) for _ in range(30))
    return [*long, Agent("person", 0.5, asks, uid=1001)]


def mixed(draw: random.Random) -> list[Agent]:
    """32 agents at once, every fourth with much to do."""
    return [
        Agent(
            f"a{n}",
            0.0,
            (
                Turn(draw.randint(300, 1000), draw.randint(200, 400))
                if n % 4 == 0
                else Turn(draw.randint(20, 60), draw.randint(8, 48)),
            ),
        )
        for n in range(32)
    ]


def steady(draw: random.Random) -> list[Agent]:
    """32 agents that get replies all the time; their prompts have been read."""
    return [Agent(f"a{n}", 0.0, (Turn(1, 150),)) for n in range(32)]


def backlog(draw: random.Random) -> list[Agent]:
    """12 agents that always have requests, with unequal prompts and nice."""
    return [
        Agent(
            f"a{n}",
            0.0,
            tuple(Turn(draw.randint(16, 400), draw.randint(16, 64)) for _ in range(12)),
            nice=draw.choice((0, 0, 0, 2)),
        )
        for n in range(12)
    ]


MAKERS: Final[dict[str, Callable[[random.Random], list[Agent]]]] = {
    maker.__name__: maker for maker in (short, chat, background, mixed, steady, backlog)
}


def make(name: str, seed: int = 0) -> Workload:
    """Make a workload of MAKERS; the same seed makes the same."""
    return Workload(name, tuple(MAKERS[name](random.Random(seed))))


def load(name: str, seed: int = 0) -> Workload:
    """Make a workload by name, or read the file of that name.

    Raises OSError: EINVAL with what is wrong in the file, or why it can't be read.
    """
    if name in MAKERS:
        return make(name, seed)
    path = Path(name)
    if not path.exists():
        known = ", ".join(MAKERS)
        raise OSError(errno.ENOENT, f"workload {name}: no such file, and none of {known}")
    try:
        text = path.read_text("utf-8")
        table = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        return read(path.stem, table)
    except (ValueError, TypeError) as error:
        raise OSError(errno.EINVAL, f"workload {name}: {error}") from None


def read(name: str, table: Mapping[str, Any]) -> Workload:
    """Turn a file's content into a workload. ValueError or TypeError where it makes no sense."""
    _known(table, ("slots", "costs", "agents"), "the file")
    agents = [agent for n, row in enumerate(table.get("agents", [])) for agent in _agents(n, row)]
    if not agents:
        raise ValueError("it has no [[agents]]")
    slots = table.get("slots", 8)
    if not isinstance(slots, int) or slots < 1:
        raise ValueError(f"slots {slots!r}: a core has 1 or more")
    return Workload(name, tuple(agents), slots, _costs(table.get("costs", {})))


def _costs(table: Mapping[str, Any]) -> Costs:
    _known(table, [each.name for each in fields(Costs)], "[costs]")
    given = dict(table)
    if "decode_s" in given:
        steps = sorted((int(width), float(s)) for width, s in given["decode_s"].items())
        given["decode_s"] = tuple(steps)
    costs = replace(Costs(), **given)
    seconds = [costs.prefill_s, costs.switch_s, *(s for _, s in costs.decode_s)]
    if costs.grid < 1 or not costs.decode_s or min(seconds) < 0 or costs.decode_s[0][0] < 1:
        raise ValueError("[costs]: grid and widths are 1 or more, seconds 0 or more")
    return costs


_DEFAULTS: Final = {
    "name": "", "count": 1, "prompt": 1500, "output": 64, "turns": 1, "think": 0.0,
    "arrival": 0.0, "every": 0.0, "nice": 0, "uid": 1000,
}  # fmt: skip


def _agents(number: int, row: Mapping[str, Any]) -> list[Agent]:
    _known(row, list(_DEFAULTS), f"[[agents]] {number + 1}")
    given = {**_DEFAULTS, "name": f"a{number}", **row}
    if not NICE_MIN <= given["nice"] <= NICE_MAX:
        raise ValueError(f"nice {given['nice']} is outside {NICE_MIN}..{NICE_MAX}")
    for key in ("output", "turns", "count"):
        if given[key] < 1:
            raise ValueError(f"{key} {given[key]}: 1 or more")
    if min(given["prompt"], given["think"], given["arrival"], given["every"]) < 0:
        raise ValueError(f"[[agents]] {number + 1}: nothing is less than 0 but nice")
    turns = (Turn(given["prompt"], given["output"], given["think"]),) * given["turns"]
    return [
        Agent(
            f"{given['name']}.{n}" if given["count"] > 1 else given["name"],
            given["arrival"] + n * given["every"],
            turns,
            given["nice"],
            given["uid"],
        )
        for n in range(given["count"])
    ]


def _known(table: Mapping[str, Any], keys: list[str] | tuple[str, ...], where: str) -> None:
    unknown = sorted(set(table) - set(keys))
    if unknown:
        raise ValueError(f"{where}: no key {unknown[0]!r}; there are {', '.join(keys)}")
