"""The agent programs, as processes: what they ask for, what they print, how they end."""

from __future__ import annotations

import ast
import errno
import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from aiosd.abi.inference import Generation, Timing, TokenUsage
from tests.sdk.fake_kernel import DEADLINE, Connection, FakeKernel

ROOT = Path(__file__).parents[2]
AGENTS = {"math": 3, "narrative": 3, "rec": 2, "travel": 3}


def answering(connection: Connection, id: int, args: Any) -> None:
    """Answer every request with a text that tells which one it was."""
    number = sum(name == "llm_generate" for name, _ in connection.kernel.seen.queue)
    connection.reply(
        id,
        Generation(
            text=f"answer {number}",
            token_ids=[number],
            finish_reason="stop",
            usage=TokenUsage(10, 1),
            timing=Timing(0.5, 1.5),
            context=args.context or 40 + number,
            core="fake",
        ),
    )


def start(agent: str, *options: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", ROOT / f"agents/{agent}.py", *options],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'sdk'}", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(agent: str, *options: str, **environment: str) -> tuple[int, str, str]:
    with start(agent, *options, **environment) as process:
        out, err = process.communicate(timeout=DEADLINE)
    return process.returncode, out, err


def requests(fake: FakeKernel) -> list[Any]:
    return [args for name, args in fake.seen.queue if name == "llm_generate"]


@pytest.mark.parametrize("agent", AGENTS)
def test_an_agent_asks_and_prints(fake: FakeKernel, agent: str) -> None:
    fake.answers["llm_generate"] = answering
    status, out, err = run(agent)
    assert (status, err) == (0, "")
    asked = requests(fake)
    assert len(asked) == AGENTS[agent]
    assert {each.temperature for each in asked} == {0.0}
    assert {each.max_tokens for each in asked} == {64}
    assert all(f"answer {number}" in out for number in range(1, len(asked) + 1))
    assert not any("{" in each.prompt for each in asked)
    names = [name for name, _ in fake.seen.queue]
    assert names[:2] == ["hello", "register_agent"]
    assert names[-1] == "exit"


@pytest.mark.parametrize("agent", AGENTS)
def test_later_requests_build_on_earlier_ones(fake: FakeKernel, agent: str) -> None:
    fake.answers["llm_generate"] = answering
    run(agent)
    for number, request in enumerate(requests(fake)[1:], 1):
        continued = request.context in range(41, 41 + number)
        assert continued or f"answer {number}" in request.prompt


def test_options_and_json(fake: FakeKernel) -> None:
    fake.answers["llm_generate"] = answering
    status, out, _ = run("math", "--json", "--core", "big", "What is 2 + 2?", AIOS_MAX_TOKENS="17")
    assert status == 0
    first, *_ = requests(fake)
    assert (first.max_tokens, first.core) == (17, "big")
    assert "What is 2 + 2?" in first.prompt
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["step"] for line in lines] == ["solve", "check", "answer"]
    assert lines[0]["agent"] == "math"
    assert lines[0]["aid"] == 7
    reply = lines[0]["reply"]
    assert (reply["text"], reply["token_ids"]) == ("answer 1", [1])
    assert (reply["timing"]["waiting_s"], reply["timing"]["turnaround_s"]) == (0.5, 1.5)
    assert (reply["usage"]["prompt_tokens"], reply["usage"]["dollars"]) == (10, 0.0)


def test_a_refused_request_ends_it_with_1(fake: FakeKernel) -> None:
    fake.answers["llm_generate"] = OSError(errno.ENODEV, "core: there is no core that is ready")
    status, out, err = run("rec")
    assert (status, out) == (1, "")
    assert err == "rec: core: there is no core that is ready\n"


def test_a_cancelled_generation_is_printed_and_ends_it_with_1(fake: FakeKernel) -> None:
    fake.answers["llm_generate"] = Generation(
        text="half an",
        token_ids=[],
        finish_reason="cancelled",
        usage=TokenUsage(1, 1),
        timing=Timing(0, 0),
        context=1,
        core="c",
        reason="interrupted",
    )
    status, out, err = run("travel")
    assert status == 1
    assert "half an" in out
    assert err == "travel: preferences: cancelled (interrupted)\n"


def test_without_a_kernel_it_ends_with_125(tmp_path: Path) -> None:
    status, _, err = run("narrative", AIOS_SOCKET=str(tmp_path / "none"))
    assert status == 125
    assert err.startswith("narrative: aiosd is not running at")


def test_wrong_options_end_it_with_2(fake: FakeKernel) -> None:
    assert run("math", "--max-tokens", "0")[0] == 2
    assert run("math", "--max-tokens", "many")[0] == 2


def test_an_interrupt_ends_it_with_130_and_no_traceback(fake: FakeKernel) -> None:
    fake.answers["llm_generate"] = lambda connection, id, args: None
    with start("math") as process:
        for name in ("hello", "register_agent", "llm_generate"):
            fake.expect(name)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out, err) == (130, "", "")


@pytest.mark.parametrize("agent", AGENTS)
def test_an_agent_is_one_short_file_that_imports_only_aios(agent: str) -> None:
    source = (ROOT / f"agents/{agent}.py").read_text("utf-8")
    assert len(source.splitlines()) < 40
    imported = {
        name.split(".")[0] for node in ast.walk(ast.parse(source)) for name in _imports(node)
    }
    assert imported == {"sys", "aios"}


def _imports(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


@pytest.mark.parametrize("agent", AGENTS)
def test_every_prompt_is_used(agent: str) -> None:
    prompts = tomllib.loads((ROOT / f"agents/prompts/{agent}.toml").read_text("utf-8"))
    source = (ROOT / f"agents/{agent}.py").read_text("utf-8")
    steps = [name for name in prompts if name != "task"]
    assert len(steps) == AGENTS[agent]
    assert all(f'agent.ask("{step}"' in source for step in steps)
