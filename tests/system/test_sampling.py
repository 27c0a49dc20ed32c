"""llm_generate at the door: log-probabilities, bias, min_tokens, going on with a context."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from aiosd.abi.inference import Chunk, DetectWatermark
from tests.conftest import World
from tests.daemon import PATIENCE, ROOT, Daemon, answer
from tests.system.agents import until
from tests.system.writer import Writer, core

CORE = """
[[cores]]
name = "c"
driver = "fake"
slots = 2
n_ctx = 1024
options = {eog = 0.0}

[[cores]]
name = "brief"
driver = "fake"
slots = 2
n_ctx = 1024
options = {eog = 1.0}
"""
SHAPED = {"temperature": 0.8, "seed": 4, "frequency_penalty": 0.5, "logit_bias": {7: 1.0}}


@pytest.fixture(scope="module")
def daemon(world: World) -> Iterator[Daemon]:
    state = world.make(must_end_empty=False)
    world.state_dirs.append(state)
    key = state / "watermark.key"  # a fixed one: how clear a mark is differs from key to key
    key.write_bytes(bytes(range(32)))
    key.chmod(0o600)
    places = state, world.make(must_end_empty=True), world.make(must_end_empty=True)
    with Daemon(*places, config=CORE) as daemon:
        until(lambda: core(daemon).state == "ready", "the core is ready")
        yield daemon


def test_log_probabilities_come_one_for_each_token(daemon: Daemon) -> None:
    with Writer(daemon) as a:
        plain = a.ask("tell", core="c", max_tokens=9)
        told = a.ask("tell", core="c", max_tokens=9, logprobs=True)
        assert told.token_ids == plain.token_ids
        assert plain.logprobs == [] and len(told.logprobs) == 9
        assert all(value < 0 for value in told.logprobs)
        wanted = a.begin("tell", core="c", max_tokens=9, logprobs=True)
        brought: list[float] = []
        while len(brought) < 9:
            chunk = answer(a.read(), Chunk)
            assert "".join(chunk.texts) == chunk.text
            assert len(chunk.texts) == len(chunk.logprobs)
            brought += chunk.logprobs
        assert brought == told.logprobs
        assert a.finish(wanted).logprobs == told.logprobs


def test_the_likeliest_tokens_come_with_each(daemon: Daemon) -> None:
    how: dict[str, Any] = {"core": "c", "max_tokens": 9, "logprobs": True, "top_logprobs": 3}
    with Writer(daemon) as a:
        told = a.ask("tell", **how)
        assert [len(row) for row in told.top_logprobs] == [3] * 9
        for row, token, logprob in zip(
            told.top_logprobs, told.token_ids, told.logprobs, strict=True
        ):
            assert (row[0].token_id, row[0].logprob) == (token, logprob)
            assert row[0].logprob > row[1].logprob > row[2].logprob
        whole = told.text.partition("\ufffd")[0]  # the last letter may be cut in two
        assert whole
        assert b"".join(row[0].data for row in told.top_logprobs).startswith(whole.encode())
        wanted = a.begin("tell", **how)
        brought: list[Any] = []
        while len(brought) < 9:
            brought += answer(a.read(), Chunk).top_logprobs
        assert brought == told.top_logprobs == a.finish(wanted).top_logprobs
        with pytest.raises(OSError, match="goes with logprobs"):
            a.ask("tell", core="c", top_logprobs=3)


def test_a_generation_that_is_continued_is_the_one_that_never_stopped(daemon: Daemon) -> None:
    with Writer(daemon) as a:
        for how in ({}, SHAPED):
            whole = a.ask("tell", core="c", max_tokens=30, **how).token_ids
            reply = a.ask("tell", core="c", max_tokens=10, **how)
            parts = list(reply.token_ids)
            for _ in range(2):
                reply = a.ask("", core="c", max_tokens=10, context=reply.context, raw=False, **how)
                assert reply.usage.cached_tokens == 4 + len(parts) - 1
                parts += reply.token_ids
            assert parts == whole


def test_a_context_that_came_to_its_end_ends_again(daemon: Daemon) -> None:
    with Writer(daemon) as a:
        first = a.ask("tell", core="brief")
        again = a.ask("", context=first.context)
        assert first.finish_reason == again.finish_reason == "stop"
        assert first.token_ids == again.token_ids
        more = a.ask("", context=first.context, min_tokens=5, max_tokens=9)
        assert (len(more.token_ids), more.finish_reason) == (5, "stop")


def test_without_a_prompt_a_context_must_be_named(daemon: Daemon) -> None:
    with Writer(daemon) as a, pytest.raises(OSError, match="none was named") as found:
        a.ask("")
    assert found.value.errno == errno.EINVAL


def test_stop_strings_count_from_min_tokens_on(daemon: Daemon) -> None:
    with Writer(daemon) as a:
        text = a.ask("tell", core="c", max_tokens=60).text
        stop = [letter for letter in "etaoin" if letter in text]
        first = min(text.index(letter) for letter in stop)
        assert a.ask("tell", core="c", max_tokens=60, stop=stop).text == text[:first]
        later = a.ask("tell", core="c", max_tokens=60, stop=stop, min_tokens=20)
        assert len(later.token_ids) >= 20
        assert text.startswith(later.text) and later.finish_reason == "stop"


def test_a_bias_for_a_token_that_does_not_exist_is_refused(daemon: Daemon) -> None:
    with Writer(daemon) as a, pytest.raises(OSError, match=r"logit_bias: .* 0\.\.259") as found:
        a.ask("tell", core="c", logit_bias={260: 1.0})
    assert found.value.errno == errno.EINVAL


def test_a_watermark_is_found_by_its_own_kernel(daemon: Daemon) -> None:
    with Writer(daemon) as a:
        how = {"core": "c", "max_tokens": 300, "temperature": 1.0}
        for seed in range(3):
            plain = a.ask("tell", seed=seed, **how)
            marked = a.ask("tell", seed=seed, watermark=True, **how)
            found = a.call(DetectWatermark(token_ids=marked.token_ids))
            assert found.marked and found.z > 4 and found.p < 1e-4 and found.core == "c"
            assert a.call(DetectWatermark(text=marked.text)).marked
            assert not a.call(DetectWatermark(token_ids=plain.token_ids)).marked
        with pytest.raises(OSError, match="either text or token_ids"):
            a.call(DetectWatermark())
    key = daemon.state_dir / "watermark.key"
    assert key.stat().st_mode & 0o777 == 0o600 and len(key.read_bytes()) == 32


def test_aiosctl_says_whether_a_text_is_marked(daemon: Daemon) -> None:
    with Writer(daemon) as a:
        marked = a.ask("tell", core="c", max_tokens=300, temperature=1.0, seed=0, watermark=True)
    command = [sys.executable, "-m", "aiosh", "--socket", daemon.socket, "watermark"]
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'sdk'}"}

    def said(text: str, *more: str) -> str:
        done = subprocess.run(
            [*command, *more], input=text, capture_output=True, text=True, env=environ,
            timeout=PATIENCE, check=True,
        )  # fmt: skip
        return done.stdout

    assert json.loads(said(marked.text, "--json"))["marked"] is True
    assert "no" in said("nobody has marked this text, which a person wrote").splitlines()[0]
