"""A full window on a real model: what shifts, moves or is scaled is what it is in a solo run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from aiosd.abi.inference import ExpContext, GetContext, ListContexts
from tests.conftest import World
from tests.daemon import Daemon
from tests.system.writer import Writer, core, kill_worker

WINDOW = 256
REAL = f"""
[sched]
policy = "rr"
quantum = 8
[[cores]]
name = "c"
slots = 2
n_ctx = {WINDOW}
"""
STORY = "Once upon a time there was a small boat on a very wide sea, and in it sat a girl. " * 8

pytestmark = [pytest.mark.model, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def daemon(world: World) -> Iterator[Daemon]:
    """Run a daemon whose core has two short slots; it is probed once."""
    state = world.make(must_end_empty=False)
    world.state_dirs.append(state)
    places = state, world.make(must_end_empty=True), world.make(must_end_empty=True)
    with Daemon(*places, config=REAL) as running:
        yield running


@pytest.mark.parametrize("policy", ["slide", "expand"])
def test_it_equals_the_solo_run(daemon: Daemon, policy: str) -> None:
    """Preempted, pushed out of its slot, and its worker killed, before and after the edge."""
    how: dict[str, Any] = {"temperature": 0.8, "seed": 4, "window": policy, "core": "c"}
    with Writer(daemon) as a:
        a.sock.settimeout(600)  # the worker is being probed
        solo = a.ask(STORY, max_tokens=200, **how)
        now = a.call(GetContext(solo.context))
        assert (now.slid >= 1) if policy == "slide" else (now.core == "c@512")
        assert now.exact
    with Writer(daemon, "b") as b, Writer(daemon, "x") as x, Writer(daemon, "y") as y:
        for each in (b, x, y):
            each.sock.settimeout(300)
        wanted = b.begin(STORY, max_tokens=200, **how)
        for count in (20, 70, 110):
            b.read_tokens(wanted, count)
            others = [(each, each.submit("Tell me", max_tokens=9, core="c")) for each in (x, y)]
            for each, asked in others:
                each.finish(asked)
        with daemon.connect() as person:
            [row] = person.call(ListContexts(b.aid))
        kill_worker(daemon, row.core)
        reply = b.finish(wanted)
        assert b.seen[wanted] == reply.token_ids == solo.token_ids


def test_beyond_the_trained_length_by_yarn(daemon: Daemon) -> None:
    """The tokens are computed anew under scaled positions; the model still writes words."""
    with Writer(daemon) as a:
        a.sock.settimeout(600)
        reply = a.ask("The capital of France is", max_tokens=4, core="c")
        trained = core(daemon).n_ctx_train
        moved = a.call(ExpContext(reply.context, trained + 1, yarn=True))
        assert moved.limit > trained and moved.core.endswith("-yarn") and moved.kv == 0
        more = a.ask(" The capital of Italy is", context=reply.context, max_tokens=8)
        assert "Rome" in more.text and more.exact
