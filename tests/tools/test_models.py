"""Tools that are models: one host for all agents, its queue, its batches, and what may go wrong."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from aiosd.abi.cores import Core, ListCores
from aiosd.abi.process import ResumeAgent, SetPriority, SuspendAgent
from aiosd.abi.tools import DescribeTool, ExecuteTool, RegisterTool, ToolResult
from tests.conftest import World
from tests.daemon import Client, answer
from tests.system.agents import until
from tests.tools.conftest import Bench, toml
from tests.tools.test_calls import refused

MODULE = '''
"""Models of a test."""
import os, sys
from pathlib import Path
from aios.tools import tool

HERE = Path(__file__).parent

def _all(calls):
    words = [call["word"] for call in calls]
    if "die" in words:
        os._exit(9)
    if "wait" in words:
        (HERE / "begun").write_text("begun")
        (HERE / "gate").read_text()
    print("aside of", words)
    return [ValueError("not this") if word == "bad" else [os.getpid(), words] for word in words]

@tool(model=True, batch=3, together=_all, idempotent=True)
def sort(word: str) -> list:
    """Tell with which words a word was computed."""
    return _all([{"word": word}])[0]

@tool(model=True, idempotent=True)
def upper(text: Path, beside: list[Path] = []) -> Path:
    """Write a text in capitals."""
    seen = " ".join(sorted(os.listdir())) + str(len(os.listdir("..")))
    Path("made.txt").write_text(text.read_text().upper() + seen)
    return Path("made.txt")
'''


@pytest.fixture(scope="module")
def models(world: World) -> Iterator[Bench]:
    """Give a daemon with models, without sandbox; there is memory for one at a time."""
    bench = Bench(world, more='model_memory = "1MiB"')
    bench.pipes()
    (bench.path / "own.py").write_text(MODULE)
    declared: dict[str, dict[str, Any]] = {
        "sort": {"batch": 3},
        "upper": {"files": ["text", "beside"]},
    }
    for name, more in declared.items():
        known = {"python": f"own:{name}", "isolation": "none", "model": True, "idempotent": True}
        arguments = {
            "sort": {"word": {"type": "string"}},
            "upper": {"text": {"type": "string"}, "beside": {"type": "array"}},
        }[name]
        kind = {"kind": "file"} if name == "upper" else {}
        whole = {"name": name, **known, **more, **kind, "input": {"properties": arguments}}
        (bench.path / f"{name}.toml").write_text(toml(whole))
    with bench.daemon:
        yield bench


@pytest.fixture
def caller(models: Bench) -> Iterator[Client]:
    with models.agent() as client:
        yield client


def row(client: Client, name: str) -> Core:
    (found,) = [core for core in client.call(ListCores()) if core.name == f"tool:{name}"]
    assert isinstance(found, Core)
    return found


def asked(client: Client, word: str, **more: Any) -> None:
    client.send(ExecuteTool("sort", {"word": word}, **more))


def came(client: Client) -> ToolResult:
    result = answer(client.read(), ToolResult)
    assert isinstance(result, ToolResult)
    return result


class Held:
    """A batch that lasts until it is let go, and agents that ask meanwhile."""

    def __init__(self, models: Bench) -> None:
        self.models = models
        self.first = models.agent("first")
        asked(self.first, "wait")
        assert (models.path / "begun").read_text() == "begun"

    def ask(self, client: Client, word: str, queued: int, **more: Any) -> None:
        asked(client, word, **more)
        until(lambda: row(self.watcher, "sort").queued == queued, f"{queued} wait")

    def __enter__(self) -> Held:
        self.watcher = self.models.daemon.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.watcher.close()
        self.first.close()


def test_one_host_computes_for_all_the_most_urgent_first(models: Bench) -> None:
    others = [models.agent(f"a{number}") for number in range(5)]
    for client, nice in zip(others, (0, 5, 5, 0, 10), strict=True):
        client.call(SetPriority(models.aid(client), nice))
    with Held(models) as held, contextlib.ExitStack() as stack:
        for client in others:
            stack.enter_context(client)
        for at, client in enumerate(others):
            held.ask(client, f"w{at}", at + 1)
        shown = row(held.watcher, "sort")
        assert (shown.kind, shown.state, shown.slots) == ("tool", "ready", 3)
        assert (shown.running, shown.queued, shown.requests) == (1, 5, 6)
        described = held.watcher.call(DescribeTool("sort"))
        assert (described.running, described.queued, described.warm) == (1, 5, 1)
        assert (described.model, described.batch) == (True, 3)
        (models.path / "gate").write_text("go")
        pid, words = came(held.first).value
        results = [came(client) for client in others]
        assert words == ["wait"]
        urgent, rest = ["w0", "w3", "w1"], ["w2", "w4"]
        expected = [urgent, urgent, rest, urgent, rest]
        assert [result.value for result in results] == [[pid, words] for words in expected]
        assert all(result.warm and result.waiting_s > 0 for result in results)
        assert all(result.stdout == "" for result in results)  # it was of several agents


def test_a_call_that_kills_the_host_takes_no_other_with_it(models: Bench) -> None:
    others = [models.agent(name) for name in ("good", "poison", "fine")]
    with Held(models) as held, contextlib.ExitStack() as stack:
        for client in others:
            stack.enter_context(client)
        before = row(held.watcher, "sort").restarts
        for at, (client, word) in enumerate(zip(others, ("a", "die", "bad"), strict=True)):
            held.ask(client, word, at + 1)
        (models.path / "gate").write_text("go")
        assert came(held.first).value[1] == ["wait"]
        assert came(others[0]).value[1] == ["a"]
        with pytest.raises(OSError, match="sort: ended with status 9") as died:
            came(others[1])
        assert died.value.errno == errno.EREMOTEIO
        with pytest.raises(OSError, match="sort: ValueError: not this"):
            came(others[2])
        shown = row(held.watcher, "sort")
        assert shown.restarts == before + 2  # the batch, and the one alone


def test_a_call_gives_up_in_the_queue_and_in_the_middle(models: Bench, caller: Client) -> None:
    with Held(models) as held:
        asked(caller, "late", timeout=0.2)
        with pytest.raises(TimeoutError, match=r"sort: no result within 0\.2 s"):
            came(caller)
        assert row(held.watcher, "sort").queued == 0
        pid = row(held.watcher, "sort").pid
        held.first.close()  # nobody waits any more: the host is interrupted, or ended
        until(lambda: row(held.watcher, "sort").running == 0, "the batch has ended")
    assert caller.call(ExecuteTool("sort", {"word": "next"})).value[1] == ["next"]
    assert pid


def test_the_time_of_a_suspended_agent_does_not_count_in_the_queue(
    models: Bench, caller: Client
) -> None:
    with Held(models) as held, models.agent("awake") as awake:
        aid = models.aid(caller)
        held.watcher.call(SuspendAgent(aid))
        held.ask(caller, "frozen", 1, timeout=0.001)
        asked(awake, "late", timeout=0.001)
        with pytest.raises(TimeoutError, match="sort: no result within"):
            came(awake)
        assert row(held.watcher, "sort").queued == 1  # of two that had the same time
        (models.path / "gate").write_text("go")
        assert came(held.first).value[1] == ["wait"]
        assert came(caller).value[1] == ["frozen"]
        held.watcher.call(ResumeAgent(aid))


def test_files_are_lent_and_what_is_made_comes_back(models: Bench, caller: Client) -> None:
    space = Path(caller.call(ExecuteTool("sort", {"word": "x"})).workspace)
    (space / "notes").mkdir()
    (space / "notes" / "a.txt").write_text("first ")
    (space / "a.txt").write_text("second ")
    given = {"text": "notes/a.txt", "beside": ["a.txt"]}
    result = caller.call(ExecuteTool("upper", given))
    assert (result.value, result.artefacts) == ({"artefact": "made.txt"}, ["made.txt"])
    assert (space / "made.txt").read_text() == "FIRST 1-a.txt a.txt1"
    assert sorted(os.listdir(space)) == ["a.txt", "made.txt", "notes"]
    assert list((space.parent / "model-upper").iterdir()) == []
    (space / "made.txt").unlink()
    (space / "made.txt").symlink_to("/etc/hostname")
    before = Path("/etc/hostname").read_bytes()
    caller.call(ExecuteTool("upper", given))
    assert not (space / "made.txt").is_symlink() and Path("/etc/hostname").read_bytes() == before


def test_a_file_that_is_not_the_callers_is_not_lent(models: Bench, caller: Client) -> None:
    space = Path(caller.call(ExecuteTool("sort", {"word": "x"})).workspace)
    (space / "link").symlink_to("/etc/passwd")
    os.mkfifo(space / "pipe")
    for name, why in {
        "link": "symbolic link is not followed", "../x": "no relative path", "none": "No such file",
        "/etc/passwd": "no relative path", "pipe": "no regular file",
    }.items():  # fmt: skip
        error = refused(caller, "upper", text=name)
        assert error.errno == errno.EINVAL and "argument text: " in str(error), error
        assert why in str(error), error


def test_a_host_goes_where_another_one_needs_its_memory(models: Bench, caller: Client) -> None:
    pid = caller.call(ExecuteTool("sort", {"word": "x"})).value[0]
    process = psutil.Process(pid)
    space = Path(caller.call(ExecuteTool("sort", {"word": "x"})).workspace)
    (space / "t").write_text("t")
    caller.call(ExecuteTool("upper", {"text": "t"}))
    process.wait(60)
    assert (row(caller, "sort").state, row(caller, "upper").state) == ("dropped", "ready")
    loads = row(caller, "sort").switches
    assert caller.call(ExecuteTool("sort", {"word": "x"})).value[0] != pid
    assert row(caller, "sort").switches == loads + 1
    assert row(caller, "upper").state == "dropped"


def test_a_busy_one_gives_way_to_one_that_is_more_urgent(models: Bench, caller: Client) -> None:
    space = Path(caller.call(ExecuteTool("sort", {"word": "x"})).workspace)
    (space / "t").write_text("t")
    caller.call(ExecuteTool("upper", {"text": "t"}))  # their sizes are known now
    with Held(models) as held, models.agent("patient") as patient:
        before = row(held.watcher, "sort")
        patient.call(SetPriority(models.aid(patient), 10))
        held.ask(patient, "later", 1)
        caller.send(ExecuteTool("upper", {"text": "t"}))
        until(lambda: row(held.watcher, "upper").state == "waiting", "it waits for memory")
        (models.path / "gate").write_text("go")
        first, _ = came(held.first).value
        assert came(caller).value == {"artefact": "made.txt"}
        pid, words = came(patient).value
        assert words == ["later"] and pid != first
        assert row(held.watcher, "sort").switches == before.switches + 1


def test_only_an_operator_or_a_package_declares_a_model(models: Bench) -> None:
    declaration = {"name": "sly", "python": "own:sort", "model": True, "idempotent": True}
    with models.daemon.connect() as person, pytest.raises(OSError, match="its host is shared"):
        person.call(RegisterTool(declaration))


def test_a_model_of_a_tool_is_none_that_answers_prompts(models: Bench, caller: Client) -> None:
    space = Path(caller.call(ExecuteTool("sort", {"word": "x"})).workspace)
    (space / "t").write_text("t")
    caller.call(ExecuteTool("upper", {"text": "t"}))  # now the first is dropped
    (model,) = (core for core in caller.call(ListCores()) if core.name == "tool:sort")
    assert (model.kind, model.state) == ("tool", "dropped")
    env = {**os.environ, **models.daemon.environ, "AIOS_SOCKET": models.daemon.socket}
    code = "import sys; from aiosh.app import main_ctl; main_ctl()"
    ctl = [sys.executable, "-c", code, "info", "--wait", "5"]
    subprocess.run(ctl, env=env, check=True, capture_output=True)
