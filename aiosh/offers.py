"""What completion offers for an argument: live aids, names, signals, cores, calls and fields.

Each function takes the word begun and returns (word, explanation) pairs. What must hold: they
answer fast and never fail; with no daemon there is just nothing to offer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import typer

if TYPE_CHECKING:
    from aios import Kernel

T = TypeVar("T")
Offers = list[tuple[str, str]]

FRESH: Final = 1.0
"""Seconds for which an answer of the kernel's is offered again without asking."""

_kept: Final[dict[str, tuple[float, Any]]] = {}


def _asked(name: str, question: Callable[[Kernel], list[T]]) -> list[T]:
    from aiosh import link

    answer: list[T]
    when, answer = _kept.get(name, (-FRESH, []))
    if time.monotonic() - when < FRESH:
        return answer
    try:
        with link.kernel() as kernel:
            answer = question(kernel)
    except (OSError, link.Failure):
        answer = []
    _kept[name] = (time.monotonic(), answer)
    return answer


def forget() -> None:
    """Ask the kernel anew next time."""
    _kept.clear()


def _matching(offers: Offers, begun: str) -> Offers:
    return [offer for offer in offers if offer[0].startswith(begun)]


def agents(incomplete: str) -> Offers:
    """Offer the aids of living agents, with their names; names too once a letter is typed."""
    rows = _asked("agents", lambda kernel: kernel.list_agents())
    if incomplete and not incomplete.isdecimal():
        names = [row.name for row in rows]
        return _matching(
            [(row.name, f"aid {row.aid}") for row in rows if names.count(row.name) == 1], incomplete
        )
    return _matching([(str(row.aid), f"{row.name} {row.state}") for row in rows], incomplete)


def all_agents(incomplete: str) -> Offers:
    """Offer agents that have ended too, for what was kept of them."""
    rows = _asked("ended", lambda kernel: kernel.list_agents(all=True))
    if incomplete and not incomplete.isdecimal():
        return _matching(sorted({(row.name, "") for row in rows}), incomplete)
    return _matching([(str(row.aid), f"{row.name} {row.state}") for row in rows], incomplete)


def kill_words(incomplete: str) -> Offers:
    """Offer signals after a dash, living agents otherwise."""
    from aiosh import signals

    if incomplete.startswith("-"):
        return _matching(
            [("-" + name, text) for name, text in signals.MEANINGS.items()], incomplete
        )
    return agents(incomplete)


def cores(incomplete: str) -> Offers:
    """Offer the names of the cores."""
    rows = _asked("cores", lambda kernel: kernel.list_cores())
    return _matching([(row.name, row.state) for row in rows if row.kind != "tool"], incomplete)


def models(incomplete: str) -> Offers:
    """Offer the names of the models of this machine."""
    rows = _asked("models", lambda kernel: kernel.list_models())
    return _matching([(row.name, row.kind) for row in rows], incomplete)


def tools(incomplete: str) -> Offers:
    """Offer the names of the tools."""
    rows = _asked("tools", lambda kernel: kernel.list_tools())
    return _matching([(row.name, row.description.partition("\n")[0]) for row in rows], incomplete)


def policies(incomplete: str) -> Offers:
    """Offer the scheduling policies that the kernel has."""
    names = _asked("policies", lambda kernel: kernel.get_sched().policies)
    return _matching([(name, "") for name in names], incomplete)


def windows(incomplete: str) -> Offers:
    """Offer what a context can do when its window is full."""
    from aiosd.abi.inference import POLICIES

    return _matching([(name, "") for name in POLICIES], incomplete)


def calls(incomplete: str) -> Offers:
    """Offer the system calls."""
    from aiosd.abi.table import BY_NAME

    return _matching(
        [(name, call.doc.splitlines()[0]) for name, call in BY_NAME.items()], incomplete
    )


def fields(ctx: typer.Context, incomplete: str) -> Offers:
    """Offer the fields of the system call that was typed before, as `name=`."""
    from aiosd.abi.table import BY_NAME

    call = BY_NAME.get(str(ctx.params.get("name")))
    if call is None or "=" in incomplete:
        return []
    given = {word.partition("=")[0] for word in ctx.params.get("words") or []}
    required = set(call.args.__struct_fields__[: -len(call.args.__struct_defaults__) or None])
    names = [field for field in call.args.__struct_fields__ if field not in given]
    return _matching(
        [(f"{name}=", "required" if name in required else "") for name in names], incomplete
    )


def programs(incomplete: str) -> Offers:
    """Offer the agent programs that come with this installation, and those that ran before."""
    rows = _asked("ended", lambda kernel: kernel.list_agents(all=True))
    names = {row.name: "ran before" for row in rows if row.kind == "spawned"}
    names |= dict.fromkeys(bundled(), "agent program")
    return _matching(sorted(names.items()), incomplete)


def bundled() -> list[str]:
    """Return the names of the agent programs installed beside the kernel, or in the checkout."""
    import importlib.util
    import os

    spec = importlib.util.find_spec("aiosd")
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    for place in places:
        for folder in (os.path.join(place, "agents"), os.path.join(place, "..", "agents")):
            if os.path.isdir(folder):
                files = sorted(os.listdir(folder))
                return [f[:-3] for f in files if f.endswith(".py") and not f.startswith("_")]
    return []
