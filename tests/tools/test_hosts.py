"""Python tools in warm hosts: the same process for the same agent, and what becomes of bad ones."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from aiosd.abi.process import Exit, GetStatus
from aiosd.abi.tools import DescribeTool, ExecuteTool
from tests.conftest import World
from tests.daemon import PATIENCE, Client
from tests.tools.conftest import Bench
from tests.tools.test_calls import refused

MODULE = '''
"""Tools of a test."""
import os, sys, time
from aios.tools import tool

COUNT = 0

@tool()
def count() -> int:
    """Count the calls of this process."""
    global COUNT
    COUNT += 1
    return COUNT

@tool()
def speak(words: str) -> str:
    """Say words. words: what to say."""
    print("aside")
    print("trouble", file=sys.stderr)
    with open("said", "w") as file:
        file.write(words)
    return words

@tool()
def die() -> int:
    """End in the middle."""
    os._exit(9)

@tool()
def hang() -> int:
    """Never end."""
    time.sleep(600)
    return 1

@tool()
def fill() -> int:
    """Write many small files, for ever."""
    number = 0
    while True:
        number += 1
        with open(f"many{number}", "wb") as file:
            file.write(bytes(16384))

@tool()
def tidy() -> int:
    """Delete them; say whether there was one."""
    names = [name for name in os.listdir() if name.startswith("many")]
    for name in names:
        os.unlink(name)
    return len(names)

@tool()
def pid() -> int:
    """Say which process it is."""
    return os.getpid()
'''
NAMES = ("count", "speak", "die", "hang", "pid", "fill", "tidy")


@pytest.fixture(scope="module")
def hosts(world: World) -> Iterator[Bench]:
    """Give a daemon with Python tools, without sandbox."""
    bench = Bench(world)
    (bench.path / "own.py").write_text(MODULE)
    for name in NAMES:
        limits = "limits = {time = 1}\n" if name == "hang" else ""
        text = f'name = "{name}"\npython = "own:{name}"\nisolation = "none"\n{limits}'
        (bench.path / f"{name}.toml").write_text(text)
    with bench.daemon:
        yield bench


@pytest.fixture
def caller(hosts: Bench) -> Iterator[Client]:
    """Give a registered agent."""
    with hosts.agent() as client:
        yield client


def test_the_next_call_finds_the_same_process(hosts: Bench, caller: Client) -> None:
    results = [caller.call(ExecuteTool("count")) for _ in range(3)]
    assert [(result.value, result.warm) for result in results] == [
        (1, False), (2, True), (3, True),
    ]  # fmt: skip
    assert caller.call(DescribeTool("count")).warm == 1
    with hosts.agent() as other:
        assert other.call(ExecuteTool("count")).value == 1


def test_what_it_says_and_leaves_comes_back(caller: Client) -> None:
    for words in ("first", "second"):
        result = caller.call(ExecuteTool("speak", {"words": words}))
        assert (result.value, result.stdout, result.stderr) == (words, "aside\n", "trouble\n")
        assert result.artefacts == ["said"]
        assert Path(result.workspace, "said").read_text() == words


def test_one_that_dies_or_hangs_is_named_and_replaced(caller: Client) -> None:
    error = refused(caller, "die")
    assert (error.errno, "ended with status 9" in str(error)) == (errno.EREMOTEIO, True)
    error = refused(caller, "hang")
    assert (error.errno, "no result within 1 s" in str(error)) == (errno.ETIMEDOUT, True)
    assert refused(caller, "speak", words=3).errno == errno.EINVAL
    assert caller.call(ExecuteTool("count")).value == 1


def test_one_that_fills_its_workspace_is_ended_and_what_is_there_can_be_tidied(
    caller: Client,
) -> None:
    error = refused(caller, "fill")
    assert error.errno == errno.EDQUOT
    assert "holds more than 1048576 bytes ([tools] workspace_limit)" in str(error)
    assert caller.call(ExecuteTool("tidy")).value > 64
    assert caller.call(ExecuteTool("tidy")).value == 0


def test_hosts_end_with_their_agent(hosts: Bench) -> None:
    with hosts.agent("brief") as client:
        result = client.call(ExecuteTool("pid"))
        process = psutil.Process(result.value)
        folder = result.workspace
        assert os.path.isdir(folder)
        client.call(Exit())
    process.wait(PATIENCE)
    with hosts.daemon.connect() as person:
        person.call(GetStatus(hosts.aid(client)))
        assert person.call(DescribeTool("pid")).warm == 0
