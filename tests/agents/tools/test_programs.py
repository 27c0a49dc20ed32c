"""Programs that an agent writes, run by the host as a tool: their limits, and what is left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aiosd.abi import toolwire
from tests.toolhost import Host


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """The host of both tools, with something in its environment that is not for programs."""
    workspace = tmp_path_factory.mktemp("workspace")
    host = Host(workspace, "agents.tools.programs", SOME_KEY="12345")
    assert isinstance(host.event(), toolwire.Ready)
    yield host
    assert host.close() == 0


def run(host: Host, tool: str, **arguments: Any) -> dict[str, Any]:
    done = host.call(tool, **{"timeout": 120, **arguments})
    assert isinstance(done, toolwire.Done), done
    value: dict[str, Any] = done.value
    return value


def test_python_runs_in_the_workspace(host: Host) -> None:
    (host.workspace / "mine.py").write_text("three = 3\n")
    code = "import mine, sys\nprint(mine.three, input())\nopen('out', 'w')\nsys.exit(4)"
    ran = run(host, "python_exec", code=code, stdin="grün")
    assert (ran["stdout"], ran["stderr"], ran["exit_code"]) == ("3 grün\n", "", 4)
    assert ran["stopped"] == ""
    assert (host.workspace / "out").exists()
    ran = run(host, "python_exec", code="1/0")
    assert ran["exit_code"] == 1 and "ZeroDivisionError" in ran["stderr"]


def test_a_shell_command_runs_with_an_environment_of_its_own(host: Host) -> None:
    ran = run(host, "shell_exec", command="pwd; cat; env; kill -9 $$", stdin="in\n")
    assert ran["stdout"].startswith(f"{host.workspace}\nin\n") and ran["exit_code"] == 137
    assert "12345" not in ran["stdout"] and f"HOME={host.workspace}" in ran["stdout"]


def test_what_takes_too_long_is_ended(host: Host) -> None:
    ran = run(host, "shell_exec", command="sleep 1000", timeout=0.3)
    assert (ran["stdout"], ran["stopped"], ran["exit_code"]) == ("", "time", 137)


def test_a_flood_is_cut_and_ended(host: Host) -> None:
    ran = run(host, "shell_exec", command="yes")
    assert ran["stopped"] == "output" and ran["truncated"] and len(ran["stdout"]) == 100_000
    ran = run(host, "shell_exec", command="head -c 200000 /dev/zero >&2")
    assert ran["stopped"] == "" and ran["truncated"] and len(ran["stderr"]) == 100_000


DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if pid := os.fork():
        print(pid, flush=True)
        os._exit(0)
    time.sleep(1000)
os.wait()
"""


def test_nothing_of_a_program_outlives_it(host: Host) -> None:
    ran = run(host, "python_exec", code=DAEMON)
    assert ran["stopped"] == ""
    with pytest.raises(ProcessLookupError):
        os.kill(int(ran["stdout"]), 0)
    ran = run(host, "shell_exec", command="sleep 1000 & sleep 1000 | sleep 1000 & echo $!")
    with pytest.raises(ProcessLookupError):
        os.kill(int(ran["stdout"]), 0)


def test_a_cancelled_program_is_killed(host: Host, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    command = f"echo $$ > {fifo}; sleep 1000"
    host.send(toolwire.Call(9, "shell_exec", {"command": command}, str(host.workspace)))
    pid = int(fifo.read_text())
    host.send(toolwire.Cancel(9))
    assert host.event() == toolwire.Failed(9, "error", "shell_exec was cancelled")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_command_that_can_not_be_run_is_the_caller_s_mistake(host: Host) -> None:
    for command in ("a\0b", "x" * 100_001):
        failed = host.call("shell_exec", command=command)
        assert isinstance(failed, toolwire.Failed) and failed.kind == "arguments"
