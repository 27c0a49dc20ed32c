"""Tools of MCP servers through the daemon: what they answer, and servers that die, hang and lie."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import msgspec
import pytest

from aiosd.abi.tools import DescribeTool, ExecuteTool, ListTools
from tests.daemon import Client
from tests.mcp.conftest import Bench, Place, Watcher
from tests.system.agents import until

PIXEL = b"\x89PNG\r\n\x1a\n..."
both = pytest.mark.parametrize("server", ["plain", "web"])


def refused(client: Client, name: str, **arguments: object) -> OSError:
    """Return the error of a call."""
    with pytest.raises(OSError, match=f"tool {name}") as caught:
        client.call(ExecuteTool(name, arguments, timeout=60))
    return caught.value


def names(client: Client) -> set[str]:
    return {tool.name for tool in client.call(ListTools())}


@both
def test_its_tools_are_tools_like_any_other(agent: Client, server: str) -> None:
    tool = agent.call(DescribeTool(f"{server}:add"))
    assert (tool.source, tool.description) == (f"mcp:{server}", "Add two numbers.")
    assert tool.input["required"] == ["a", "b"]
    assert tool.idempotent  # it says that it only reads
    assert not agent.call(DescribeTool(f"{server}:write")).idempotent


@both
def test_results_of_every_kind_come_back(agent: Client, server: str) -> None:
    assert agent.call(ExecuteTool(f"{server}:add", {"a": 2, "b": 3})).value == {
        "total": 5,
        "said": "2+3",
    }
    assert agent.call(ExecuteTool(f"{server}:shout", {"text": "so"})).value == "SO"
    result = agent.call(ExecuteTool(f"{server}:mixed"))
    text, image, audio, memo, link = result.value
    assert (text, memo["text"]) == ({"type": "text", "text": "see"}, "memo")
    assert (image["media_type"], audio["media_type"]) == ("image/png", "audio/wav")
    assert result.artefacts == [image["artefact"], audio["artefact"]]
    assert Path(result.workspace, image["artefact"]).read_bytes() == PIXEL
    assert (link["type"], link["uri"]) == ("resource_link", "https://example.org/x")


@both
def test_errors_name_tool_and_server(agent: Client, server: str) -> None:
    error = refused(agent, f"{server}:fail", why="no more paper")
    assert error.errno == errno.EREMOTEIO
    assert f"MCP server {server}" in str(error) and "no more paper" in str(error)
    error = refused(agent, f"{server}:add", a="two", b=3)
    assert (error.errno, "not what it takes" in str(error)) == (errno.EINVAL, True)


def test_it_has_its_own_directory_its_secrets_and_nothing_else(bench: Bench, agent: Client) -> None:
    seen = agent.call(ExecuteTool("plain:environment", {"name": "KEY"})).value
    own = str(bench.daemon.state_dir / "mcp" / "plain")
    assert seen["value"] == "[secret]"
    assert seen["cwd"] == ("/workspace" if bench.isolation == "full" else own)
    inherited = agent.call(ExecuteTool("plain:environment", {"name": "AIOS_TEST_RUN"}))
    assert inherited.value["value"] is None
    agent.call(ExecuteTool("plain:write", {"name": "left"}))
    assert Path(own, "left").read_text() == "kept"


@both
def test_a_call_that_takes_too_long_is_cancelled_at_the_server(agent: Client, server: str) -> None:
    mark = {"mark": f"slow-{server}"}
    with pytest.raises(TimeoutError, match=f"MCP server {server} did not answer within"):
        agent.call(ExecuteTool(f"{server}:rest", {**mark, "seconds": 600}, timeout=1))
    cancelled = {**mark, "text": "cancelled"}
    assert agent.call(ExecuteTool(f"{server}:seen", cancelled)).value == {"result": "cancelled"}


def test_killed_in_the_middle_of_a_call(bench: Bench, agent: Client, watcher: Watcher) -> None:
    before = watcher.until("plain", "ready")
    with bench.daemon.connect() as other:
        other.send(ExecuteTool("plain:rest", {"mark": "kill", "seconds": 600}, timeout=600))
        agent.call(ExecuteTool("plain:seen", {"mark": "kill", "text": "begun"}))
        os.kill(before.pid, signal.SIGKILL)
        reply = other.read()
    assert reply.errno == errno.EREMOTEIO
    said = msgspec.msgpack.decode(reply.body)
    assert "MCP server plain ended in the middle of the call" in said
    assert "killed by SIGKILL" in said
    assert agent.call(ExecuteTool("plain:add", {"a": 1, "b": 1})).value["total"] == 2
    after = watcher.until("plain", "ready")
    assert (after.restarts, after.pid != before.pid) == (before.restarts + 1, True)


def test_one_that_kills_itself_in_a_call_answers_the_next(agent: Client) -> None:
    assert "MCP server plain" in str(refused(agent, "plain:die", mark="suicide"))
    assert agent.call(ExecuteTool("plain:die", {"mark": "suicide"})).value == {"result": "alive"}


def test_over_http_a_new_server_at_the_old_place_is_found(
    bench: Bench, agent: Client, watcher: Watcher
) -> None:
    served = bench.serve_http()  # beside the first: one of them takes the call
    try:
        with bench.daemon.connect() as other:
            pid = agent.call(ExecuteTool("web:environment", {"name": "x"})).value["pid"]
            other.send(ExecuteTool("web:rest", {"mark": "web", "seconds": 600}, timeout=600))
            agent.call(ExecuteTool("web:seen", {"mark": "web", "text": "begun"}))
            os.kill(pid, signal.SIGKILL)
            assert other.read().errno == errno.EREMOTEIO
    finally:
        served.kill()
        served.wait()


def begun(bench: Bench, client: Client, mark: str) -> None:
    """Have a call be in its middle at the server `lone`."""
    client.send(ExecuteTool("lone:rest", {"mark": mark, "seconds": 600}, timeout=600))
    place = bench.daemon.state_dir / mark
    until(lambda: place.exists() and place.read_text() == "begun", "the call has begun")


def waits(watcher: Watcher, why: str = "") -> None:
    """Return when the server `lone` has to be started again, for a reason."""
    while True:
        data = watcher.next().data
        if (data["name"], data["state"]) == ("lone", "waiting") and why in data["reason"]:
            return


def test_over_http_one_that_is_killed_or_hangs_in_a_call_is_named_and_comes_back(
    bench: Bench, agent: Client, watcher: Watcher
) -> None:
    with Place(bench) as place, bench.also(lone=place.table), bench.daemon.connect() as other:
        watcher.until("lone", "ready")
        begun(bench, other, "lone-killed")
        place.kill()
        reply = other.read()
        assert (reply.errno, b"MCP server lone" in bytes(reply.body)) == (errno.EREMOTEIO, True)
        waits(watcher)
        place.again()
        assert agent.call(ExecuteTool("lone:add", {"a": 1, "b": 1})).value["total"] == 2
        begun(bench, other, "lone-hung")
        place.server.send_signal(signal.SIGSTOP)
        with pytest.raises(TimeoutError, match=r"MCP server lone did not answer within 0\.2 s"):
            agent.call(ExecuteTool("lone:add", {"a": 1, "b": 1}, timeout=0.2))
        reply = other.read()
        assert (reply.errno, b"MCP server lone" in bytes(reply.body)) == (errno.EREMOTEIO, True)
        waits(watcher, "it answers nothing for 10 s")
        place.server.send_signal(signal.SIGCONT)
        assert agent.call(ExecuteTool("lone:add", {"a": 1, "b": 1})).value["total"] == 2
        assert agent.call(ExecuteTool("plain:add", {"a": 1, "b": 1})).value["total"] == 2


def test_a_list_that_changes_is_read_again(agent: Client, watcher: Watcher) -> None:
    assert "plain:louder" not in names(agent)
    agent.call(ExecuteTool("plain:grow"))
    while "plain:louder" not in names(agent):
        watcher.next()
    assert agent.call(ExecuteTool("plain:louder", {"text": "hi"})).value == "HI"


def test_servers_that_misbehave_are_named_and_hurt_nobody(
    bench: Bench, agent: Client, watcher: Watcher
) -> None:
    reasons = {
        "silent": "did not list its tools within 3 s",
        "dies": "it ended with status 1",
        "garbage": "101 lines that are no messages",
        "floods": "more than 5000 messages without an answer",
        "wide": "a message of more than 8388608 bytes",
    }
    tables = {way: bench.stdio("rogue", way) for way in reasons}
    tables["silent"]["start_timeout"] = "3s"
    heard: dict[str, str] = {}
    with bench.also(**tables):
        while len(heard) < len(reasons):
            data = watcher.next().data
            if data["state"] == "waiting" and data["name"] in reasons:
                heard.setdefault(data["name"], data["reason"])
        assert agent.call(ExecuteTool("plain:add", {"a": 1, "b": 1})).value["total"] == 2
    assert {name: reasons[name] in why for name, why in heard.items()} == dict.fromkeys(
        reasons, True
    ), heard
    log = Path(bench.daemon.state_dir, "mcp", "dies.log").read_text()
    assert "no licence found" in log


def test_one_that_answers_nothing_any_more_is_a_timeout(
    bench: Bench, agent: Client, watcher: Watcher
) -> None:
    with bench.also(mute=bench.stdio("rogue", "mute")):
        watcher.until("mute", "ready")
        with pytest.raises(TimeoutError, match="MCP server mute"):
            agent.call(ExecuteTool("mute:good", timeout=0.5))
        assert agent.call(ExecuteTool("plain:add", {"a": 1, "b": 1})).value["total"] == 2
    assert watcher.status("mute") is None
    assert "mute:good" not in names(agent)


def test_a_list_of_lies_is_refused_piece_by_piece(
    bench: Bench, agent: Client, watcher: Watcher
) -> None:
    with bench.also(liar=bench.stdio("rogue", "liar")):
        found = watcher.until("liar", "ready")
        assert found.tools == 255  # of 256 that were looked at, one has a schema that is none
        for name, why in {
            "twin": "2 tools have this name",
            "../../etc/passwd": "its name must have",
            "bad name??[31m": "its name must have",
            "wordy": "3145728 characters, the limit is 8192",
            "nested": "nests deeper than 20",
            "large": "the limit is 65536",
            "liar:schema": "field 'input'",
        }.items():
            assert why in found.refused[name], (name, found.refused)
        assert f"{'n' * 80}..." in found.refused
        assert agent.call(ExecuteTool("liar:good")).value == "good"
        for name in ("number", "odd", "deep", "huge"):
            assert refused(agent, f"liar:{name}").errno == errno.EPROTO
        assert agent.call(ExecuteTool("liar:good")).value == "good"
    assert "liar:good" not in names(agent)


def test_what_can_not_be_started_says_why(bench: Bench, watcher: Watcher) -> None:
    missing = bench.stdio("plain") | {"command": ["/no/such/program"], "isolation": "none"}
    needy = bench.stdio("plain") | {"secrets": ["NOWHERE"]}
    boxed = bench.stdio("plain", isolation="full") | {"network": []}
    with bench.also(missing=missing, needy=needy, **({"boxed": boxed} if bench.unboxable else {})):
        assert "/no/such/program" in watcher.until("missing", "waiting").reason
        assert 'put NOWHERE = "..." into' in watcher.until("needy", "failed").reason
        if bench.unboxable:
            assert bench.unboxable in watcher.until("boxed", "failed").reason
    assert set(watcher.all()) == {"plain", "web"}
