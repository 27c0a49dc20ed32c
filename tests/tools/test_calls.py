"""execute_tool through the daemon: what comes back, and what becomes of tools that misbehave."""

from __future__ import annotations

import errno

import pytest

from aiosd.abi.tools import ExecuteTool
from tests.daemon import Client
from tests.tools.conftest import Bench


def refused(client: Client, name: str, **arguments: object) -> OSError:
    """Return the error of a call."""
    with pytest.raises(OSError, match=name) as caught:
        client.call(ExecuteTool(name, arguments))
    return caught.value


def test_arguments_go_in_and_the_result_comes_back(agent: Client) -> None:
    result = agent.call(ExecuteTool("echo", {"a": 7}))
    assert (result.value, result.exit_code, result.warm) == ({"a": 7}, 0, False)
    assert len(result.digest) == 64
    assert agent.call(ExecuteTool("text")).value == "words"
    assert agent.call(ExecuteTool("text")).stderr == "aside\n"
    assert agent.call(ExecuteTool("deaf", {"long": "x" * 200_000})).value is True
    assert agent.call(ExecuteTool("settled")).value == "here"


def test_files_that_it_leaves_are_named(bench: Bench, agent: Client) -> None:
    result = agent.call(ExecuteTool("file"))
    assert result.artefacts == ["left"]
    assert result.workspace.endswith(f"/tools/agent-{bench.aid(agent)}")


@pytest.mark.parametrize(
    ("name", "number", "words"),
    [
        ("nothing", errno.ENOENT, "there is no tool 'nothing'"),
        ("echo", errno.EINVAL, '"a" is a required property'),
        ("liar", errno.EPROTO, "its result is not what it declared: at 'a'"),
        ("broken", errno.EPROTO, "its result is no JSON"),
        ("crash", errno.EREMOTEIO, "was killed by SIGSEGV"),
        ("fail", errno.EREMOTEIO, "ended with status 3: why"),
        ("hang", errno.ETIMEDOUT, "no result within 0.3 s"),
        ("flood", errno.EMSGSIZE, "wrote more than its 65536 bytes"),
        ("fill", errno.EDQUOT, "agent's workspace holds more than 1048576 bytes"),
        ("needy", errno.ENOKEY, 'put NOWHERE = "..." into'),
        ("wrong", errno.ENOENT, "there is no tool"),
    ],
)
def test_what_fails_says_so_by_name(agent: Client, name: str, number: int, words: str) -> None:
    error = refused(agent, name)
    assert error.errno == number, error
    assert words in str(error) and name in str(error)
    assert agent.call(ExecuteTool("echo", {"a": 1})).value == {"a": 1}


def test_a_secret_reaches_the_tool_and_nobody_else(agent: Client) -> None:
    result = agent.call(ExecuteTool("secret"))
    assert (result.value, result.stderr) == ("[secret]", "[secret]\n")
