"""Beam search at the daemon's door: what it finds, whatever else runs, and what is refused."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from aiosd.abi.inference import Beam, GenRestore, GenSnapshot, GetContext, ListContexts
from aiosd.abi.process import Fork, ResumeAgent, SuspendAgent
from tests.conftest import World
from tests.daemon import Daemon
from tests.system.agents import until
from tests.system.writer import Writer, core, kill_worker

CORE = """
[[cores]]
name = "c"
driver = "fake"
slots = 5
n_ctx = 40960
options = {step_ms = 1, eog = 0.0}

[sched]
policy = "rr"
quantum = 6
"""
SLOW = CORE.replace("step_ms = 1,", "step_ms = 100,")
"""On which a search of a dozen steps takes longer than a test to come to its middle."""
WIDE: dict[str, Any] = {"beams": 4, "max_tokens": 40}


@pytest.fixture(scope="module")
def daemon(world: World) -> Iterator[Daemon]:
    state = world.make(must_end_empty=False)
    world.state_dirs.append(state)
    places = state, world.make(must_end_empty=True), world.make(must_end_empty=True)
    with Daemon(*places, config=CORE) as daemon:
        until(lambda: core(daemon).state == "ready", "the core is ready")
        yield daemon


@pytest.fixture(scope="module")
def slow(world: World) -> Iterator[Daemon]:
    """A daemon whose searches last; for tests that do something in their middle."""
    state = world.make(must_end_empty=False)
    world.state_dirs.append(state)
    places = state, world.make(must_end_empty=True), world.make(must_end_empty=True)
    with Daemon(*places, config=SLOW) as daemon:
        until(lambda: core(daemon).state == "ready", "the core is ready")
        yield daemon


def test_the_reply_has_the_beams_and_the_best_one_is_the_text(daemon: Daemon) -> None:
    with Writer(daemon) as a:
        reply = a.ask("tell me", logprobs=True, **WIDE)
        assert len(reply.beams) == 4 and all(isinstance(beam, Beam) for beam in reply.beams)
        scores = [beam.logprob for beam in reply.beams]
        assert scores == sorted(scores, reverse=True)
        best = reply.beams[0]
        assert (reply.text, reply.token_ids) == (best.text, best.token_ids)
        assert reply.finish_reason == best.finish_reason
        assert reply.logprobs == best.logprobs[: len(best.token_ids)]
        assert sum(best.logprobs) == pytest.approx(best.logprob)
        assert len({tuple(beam.token_ids) for beam in reply.beams}) == 4
        assert a.ask("tell me", **WIDE).beams == reply.beams
        held = a.call(GetContext(reply.context))
        assert held.tokens == len("tell me") + len(best.token_ids)
        more = a.ask(" more", context=reply.context, max_tokens=5)
        again = a.ask(" more", context=a.ask("tell me", **WIDE).context, max_tokens=5)
        assert more.token_ids == again.token_ids
    until(lambda: core(daemon).running == 0, "nothing runs")


def test_searches_and_others_say_what_they_say_alone(daemon: Daemon) -> None:
    with Writer(daemon) as a, Writer(daemon, "b") as b:
        prompts = [f"number {i} " * (3 + 5 * i) for i in range(4)]
        solo = [a.ask(prompt, **WIDE).beams for prompt in prompts]
        plain = [b.ask(prompt, max_tokens=60).token_ids for prompt in prompts]
        searches = [a.submit(prompt, **WIDE) for prompt in prompts]
        others = [b.begin(prompt, max_tokens=60) for prompt in prompts]
        random = Random(3)
        with daemon.connect() as person:
            for _ in range(25):
                b.read_tokens(random.choice(others), random.randint(1, 50))
                person.call(SuspendAgent(a.aid))
                person.call(ResumeAgent(a.aid))
        assert [a.finish(wanted).beams for wanted in searches] == solo
        assert [b.finish(wanted).token_ids for wanted in others] == plain


def test_a_search_outlives_its_worker(daemon: Daemon) -> None:
    with Writer(daemon) as a:
        expected = a.ask("a long way " * 9, **WIDE).beams
        for _ in range(2):
            enough = core(daemon).tokens_out + 8
            wanted = a.submit("a long way " * 9, **WIDE)
            until(lambda enough=enough: core(daemon).tokens_out > enough, "it searches")  # type: ignore[misc]
            kill_worker(daemon)
            assert a.finish(wanted).beams == expected


def test_a_search_that_is_cancelled_gives_its_slots_back(slow: Daemon) -> None:
    with Writer(slow) as a:
        expected = a.ask("go on", max_tokens=3).token_ids
        late = a.ask("go on", deadline=0.005, beams=5, max_tokens=300)
        assert (late.finish_reason, late.reason, late.beams) == ("cancelled", "deadline", [])
        before = core(slow).tokens_out
        wanted = a.submit("go on", beams=5, max_tokens=40_000)
        until(lambda: core(slow).tokens_out > before, "it searches")
        a.cancel(wanted)
        cut = a.finish(wanted)
        assert cut.finish_reason == "cancelled"
        assert a.ask("go on", max_tokens=3).token_ids == expected
        assert a.ask("go on", beams=4, max_tokens=3).beams


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"beams": 6}, "beams: 6 take as many slots, core c has 5"),
        ({"stream": True}, "beams don't go with stream"),
        ({"temperature": 0.5}, "beams don't go with temperature"),
        ({"schema": {}}, "beams don't go with schema"),
        ({"stop": ["x"]}, "beams don't go with stop"),
        ({"watermark": True}, "beams don't go with watermark"),
        ({"min_tokens": 3}, "beams don't go with min_tokens"),
    ],
)
def test_what_a_search_cant_heed_is_refused(daemon: Daemon, asked: Any, words: str) -> None:
    with Writer(daemon) as a:
        with pytest.raises(OSError, match=words) as found:
            a.ask("go", **{"beams": 2, **asked})
        assert found.value.errno == errno.EINVAL


def test_a_search_outlives_the_kernel(state_dir: Path, runtime_dir: Path, kv_dir: Path) -> None:
    with Daemon(state_dir, runtime_dir, kv_dir, config=CORE) as daemon:
        until(lambda: core(daemon).state == "ready", "the core is ready")
        with Writer(daemon) as a:
            expected = a.ask("on and on " * 9, **WIDE).beams
            before = core(daemon).tokens_out
            a.submit("on and on " * 9, key="k", **WIDE)
            until(lambda: core(daemon).tokens_out > before + 8, "it searches")
            daemon.stop(signal.SIGKILL)
            credential = a.credential
        daemon.start()
        until(lambda: core(daemon).state == "ready", "the core is ready")
        with Writer(daemon, credential=credential) as a:
            assert a.ask("on and on " * 9, key="k", **WIDE).beams == expected


def test_a_fork_and_a_snapshot_in_the_middle_of_a_search_begin_at_its_prompt(
    daemon: Daemon, slow: Daemon
) -> None:
    prompt = "halfway there " * 9
    with Writer(daemon) as quick:
        expected = quick.ask(prompt, **WIDE).beams
    with Writer(slow) as a:
        enough = core(slow).tokens_out + 8
        wanted = a.submit(prompt, **WIDE)
        until(lambda: core(slow).tokens_out > enough, "it searches")
        with slow.connect() as person:
            person.call(SuspendAgent(a.aid))
            [row] = [row for row in person.call(ListContexts(a.aid)) if row.busy]
            person.call(GenSnapshot(row.cid, name="middle"))
            child = person.call(Fork(a.aid))
            person.call(ResumeAgent(a.aid))
        assert a.finish(wanted).beams == expected
        with Writer(slow, credential=child.credential) as c:
            mine = [row for row in c.call(ListContexts(child.aid)) if row.tokens == len(prompt)]
            assert mine
            assert c.ask("", context=mine[0].cid, raw=False, beams=4, max_tokens=3).beams
        with slow.connect() as person:
            person.call(GenRestore(row.cid))
        assert a.ask("", context=row.cid, raw=False, max_tokens=5).token_ids


def test_what_is_refused_leaves_its_context_as_it_was(daemon: Daemon) -> None:
    with Writer(daemon) as a:
        said = a.ask("hello", max_tokens=9)
        before = a.call(GetContext(said.context, 1, 9))
        with pytest.raises(OSError, match="beams: 6 take as many slots"):
            a.ask("and now", context=said.context, beams=6)
        after = a.call(GetContext(said.context, 1, 9))
        assert (after.turns, after.length) == (before.turns, before.length)
