"""The tool host as a program, spoken to as the kernel does: over a socketpair and two pipes."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aiosd.abi import toolwire
from aiosd.abi.wire import frame
from tests.toolhost import PATIENCE_S, Host, environment

SAMPLE = str(Path(__file__).with_name("sample_tools.py"))
PICTURE = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """One host for all calls that must leave it alive."""
    host = Host(tmp_path_factory.mktemp("workspace"), SAMPLE, SAMPLE_URL="http://sample")
    ready = host.event()
    assert isinstance(ready, toolwire.Ready)
    assert {tool["name"] for tool in ready.tools} >= {"add", "later", "hang"}
    yield host
    assert isinstance(host.call("add", a=1), toolwire.Done), "a test has ended the host"
    assert host.close() == 0


def test_a_call_is_converted_carried_out_and_measured(warm: Host) -> None:
    done = warm.call("add", a=40, b=2)
    assert isinstance(done, toolwire.Done)
    assert (done.ticket, done.value, done.artefacts) == (7, 42, [])
    assert done.metrics["memory"] > 1 << 20 and done.metrics["cpu_s"] >= 0
    done = warm.call("later", text="soon")
    assert isinstance(done, toolwire.Done) and done.value == "soon"


def test_what_is_printed_lies_in_the_pipes_when_the_call_has_ended(warm: Host) -> None:
    warm.printed()
    assert isinstance(warm.call("say", out="hello", err="trouble"), toolwire.Done)
    assert warm.printed() == (b"hello", b"trouble")


def test_files_that_a_call_writes_are_its_artefacts(warm: Host) -> None:
    (warm.workspace / "old").write_text("not touched")
    done = warm.call("write", name="new.txt", text="1")
    assert isinstance(done, toolwire.Done)
    assert (done.value, done.artefacts) == ({"artefact": "new.txt"}, ["new.txt", "beside/log"])
    done = warm.call("write", name=str(warm.workspace / "new.txt"), text="22")
    assert isinstance(done, toolwire.Done)
    assert (done.value, done.artefacts) == ({"artefact": "new.txt"}, ["new.txt", "beside/log"])
    done = warm.call("add", a=1)
    assert isinstance(done, toolwire.Done) and done.artefacts == []


def test_media_arrive_as_base64(warm: Host) -> None:
    done = warm.call("picture")
    assert isinstance(done, toolwire.Done)
    assert base64.b64decode(done.value["data"]) == PICTURE
    assert done.value["media_type"] == "image/png"


@pytest.mark.parametrize(
    ("tool", "arguments", "kind", "message"),
    [
        ("add", {}, "arguments", "missing required field `a`"),
        ("add", {"a": "1"}, "arguments", "$.a"),
        ("add", {"a": 1, "b": 101}, "arguments", "<= 100"),
        ("add", {"a": 1, "c": 1}, "arguments", "unknown field `c`"),
        ("no_such", {}, "unavailable", "no tool no_such"),
        ("lie", {}, "result", "Expected `int`, got `str`"),
        ("outside", {}, "result", "is no file in the workspace"),
        ("write", {"name": "a\0b", "text": ""}, "arguments", "NUL"),
        ("fail", {"how": "raise"}, "error", "IndexError: list index out of range"),
        ("fail", {"how": "exit"}, "error", "SystemExit"),
        ("fail", {"how": "interrupt"}, "error", "KeyboardInterrupt"),
        ("fail", {"how": "cancelled"}, "error", "CancelledError"),
        ("fail", {"how": "unavailable"}, "unavailable", "the secret SAMPLE_KEY is missing"),
        ("fail", {"how": "missing"}, "unavailable", "no_such_library"),
        ("fail", {"how": "arguments"}, "arguments", "how: not so"),
        ("fail", {"how": "setting"}, "unavailable", "http://sample"),
        ("fail", {"how": "object"}, "result", "object has no JSON form"),
        ("fail", {"how": "surrogate"}, "result", "surrogates not allowed"),
        ("fail", {"how": "huge"}, "result", "can't be sent"),
        ("fail", {"how": "long"}, "result", "the limit is"),
        ("fail", {"how": "deep"}, "result", "nests deeper"),
    ],
)
def test_a_failure_has_its_kind_and_a_sentence(
    warm: Host, tool: str, arguments: dict[str, Any], kind: str, message: str
) -> None:
    failed = warm.call(tool, **arguments)
    assert isinstance(failed, toolwire.Failed)
    assert (failed.ticket, failed.kind) == (7, kind)
    assert message in failed.message


def test_an_exception_is_printed_with_its_place(warm: Host) -> None:
    warm.printed()
    assert isinstance(warm.call("fail", how="raise"), toolwire.Failed)
    _, err = warm.printed()
    assert b"sample_tools.py" in err and b"IndexError" in err and b"toolhost.py" not in err


def test_a_fork_that_comes_back_answers_once(warm: Host) -> None:
    done = warm.call("fail", how="fork")
    assert isinstance(done, toolwire.Done) and done.value > 0
    done = warm.call("add", a=5)
    assert isinstance(done, toolwire.Done) and done.value == 6


def test_a_cancelled_call_is_interrupted_or_never_begun(warm: Host) -> None:
    warm.send(toolwire.Cancel(99))  # unknown: nothing happens
    warm.send(toolwire.Call(1, "hang", {}, str(warm.workspace)))
    warm.send(toolwire.Call(2, "hang", {}, str(warm.workspace)))
    warm.send(toolwire.Call(3, "add", {"a": 1}, str(warm.workspace)))
    warm.send(toolwire.Cancel(2))
    warm.send(toolwire.Cancel(1))
    answers = [warm.event() for _ in range(3)]
    assert answers[:2] == [
        toolwire.Failed(ticket, "error", "hang was cancelled") for ticket in (1, 2)
    ]
    assert isinstance(answers[2], toolwire.Done) and answers[2].value == 2


def test_the_host_ends_with_its_kernel_in_the_middle_of_a_call(tmp_path: Path) -> None:
    host = Host(tmp_path, f"{SAMPLE}:hang")
    ready = host.event()
    assert isinstance(ready, toolwire.Ready)
    assert [tool["name"] for tool in ready.tools] == ["hang"]
    host.send(toolwire.Call(1, "hang", {}, str(tmp_path)))
    assert host.close() == 0


def test_a_host_leaves_when_told_after_the_call(tmp_path: Path) -> None:
    host = Host(tmp_path, SAMPLE)
    assert isinstance(host.event(), toolwire.Ready)
    assert isinstance(host.call("fail", how="close"), toolwire.Done)
    host.send(toolwire.Call(1, "add", {"a": 1}, str(tmp_path)))
    host.send(toolwire.Quit())
    assert isinstance(host.event(), toolwire.Done)
    assert host.event() is None
    assert host.close() == 0


def test_a_tool_that_takes_its_process_along_ends_the_socket(tmp_path: Path) -> None:
    host = Host(tmp_path, SAMPLE)
    assert isinstance(host.event(), toolwire.Ready)
    assert host.call("fail", how="die") is None
    assert host.close() == 9


def test_a_host_that_can_not_begin_says_why(tmp_path: Path) -> None:
    host = Host(tmp_path, "no_such_module")
    failed = host.event()
    assert isinstance(failed, toolwire.Failed)
    assert (failed.ticket, failed.kind) == (0, "unavailable")
    assert "No module named 'no_such_module'" in failed.message
    assert host.close() == 1


def test_junk_from_the_kernel_ends_the_host(tmp_path: Path) -> None:
    host = Host(tmp_path, SAMPLE)
    assert isinstance(host.event(), toolwire.Ready)
    host.ours.sendall(frame(b"\xc1"))
    assert host.process.wait(PATIENCE_S) == 76
    assert b"aios.toolhost: " in host.printed()[1]
    host.close()


def test_declarations_are_printed_beside_what_failed(tmp_path: Path) -> None:
    noisy = tmp_path / "noisy.py"
    noisy.write_text("import os; os.system('echo noise'); from sample import *\n")
    empty = tmp_path / "empty.py"
    empty.write_text("print('noise')\n")
    command = [sys.executable, "-m", "aios.toolhost", "--declare", str(noisy), str(empty), SAMPLE]
    run = subprocess.run(command, capture_output=True, env=environment(), check=True)
    said = json.loads(run.stdout)
    assert said["failed"][str(noisy)].endswith("No module named 'sample'")
    assert "declared by aios.tools" in said["failed"][str(empty)]
    add = next(tool for tool in said["tools"] if tool["name"] == "add")
    assert add["python"] == f"{SAMPLE}:add"
    assert run.stderr.count(b"noise") == 2
