"""The gateway's door: its process, its addresses, keys, and whom it refuses."""

from __future__ import annotations

import os
import signal
import socket
import stat
import sys

import psutil
import pytest

from aiosd.abi.process import Exit, RegisterAgent, Spawn, Wait
from tests.daemon import PATIENCE
from tests.gateway.conftest import Host, Registered

PROGRAM = """
import json, os, urllib.request, aios
url, key = os.environ["OPENAI_BASE_URL"], os.environ["OPENAI_API_KEY"]
ask = urllib.request.Request(url + "/models", headers={"Authorization": "Bearer " + key})
names = [row["id"] for row in json.load(urllib.request.urlopen(ask))["data"]]
assert "fake" in names and os.environ["OPENAI_API_BASE"] == url, names
with aios.connect() as kernel:  # its one-time credential is still good
    assert kernel.aid == AID or not AID
    with aios.connect(credential=key) as same:
        assert same.aid == kernel.aid
"""


def test_its_process_is_started_by_the_first_connection(host: Host) -> None:
    before = host.gateway
    assert (before.state, before.pid) == ("listening", 0)
    assert stat.S_IMODE(os.stat(before.socket).st_mode) == 0o600
    assert host.ask("/health").body == b"aios gateway\n"
    after = host.gateway
    assert after.state == "ready" and after.pid
    assert after.http == before.http


def test_one_that_was_killed_is_started_again_at_the_same_address(
    host: Host, agent: Registered
) -> None:
    assert host.ask("/v1/models", agent.key).status == 200
    before = host.gateway
    process = psutil.Process(before.pid)
    os.kill(before.pid, signal.SIGKILL)
    process.wait(PATIENCE)
    assert host.ask("/v1/models", agent.key).status == 200
    after = host.gateway
    assert (after.http, after.restarts) == (before.http, before.restarts + 1)
    assert after.pid != before.pid


def test_a_spawned_program_finds_it_and_its_key(host: Host, agent: Registered) -> None:
    argv = [sys.executable, "-c", PROGRAM.replace("AID", "0")]
    aid = agent.client.call(Spawn(argv=argv)).aid
    status = agent.client.call(Wait(aid=aid, timeout=PATIENCE))
    assert status is not None and status.code == 0


def test_what_the_caller_of_spawn_says_comes_first(host: Host, agent: Registered) -> None:
    program = (
        "import os; env = os.environ; assert env['OPENAI_BASE_URL'] == 'https://example.org/v1'; "
        "assert 'OPENAI_API_KEY' not in env and 'OPENAI_API_BASE' not in env"
    )
    env = {"OPENAI_BASE_URL": "https://example.org/v1"}
    aid = agent.client.call(Spawn(argv=[sys.executable, "-c", program], env=env)).aid
    status = agent.client.call(Wait(aid=aid, timeout=PATIENCE))
    assert status is not None and status.code == 0


def test_a_key_ends_with_its_agent(host: Host) -> None:
    with host.daemon.connect() as client:
        key = client.call(RegisterAgent(name="brief")).credential
        assert host.ask("/v1/models", key).status == 200
        client.call(Exit())
    refused = host.ask("/v1/models", key)
    assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize("key", ["", "wrong", "x" * 500])
def test_without_a_good_key_there_is_no_service(host: Host, key: str) -> None:
    refused = host.ask("/v1/models", key)
    assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")


def test_pages_of_others_may_not_ask(host: Host, agent: Registered) -> None:
    assert host.ask("/v1/models", agent.key, Host="evil.example").status == 421
    assert host.ask("/v1/models", agent.key, Host="127.0.0.1.evil.example:80").status == 421
    assert host.ask("/v1/models", agent.key, Origin="https://evil.example").status == 403
    assert host.ask("/v1/models", agent.key, Origin="null").status == 403
    assert host.ask("/v1/models", agent.key, Origin="http://localhost:3000").status == 200


def test_models_are_cores_by_name(host: Host, agent: Registered) -> None:
    listed = host.ask("/v1/models", agent.key).json["data"]
    assert [row["id"] for row in listed] == ["aios", "fake"]
    assert host.ask("/v1/models/fake", agent.key).json["object"] == "model"
    refused = host.ask("/v1/models/none", agent.key)
    assert (refused.status, refused.error["code"]) == (404, "model_not_found")


def test_what_is_not_there_is_said_in_json(host: Host, agent: Registered) -> None:
    refused = host.ask("/v1/nothing", agent.key)
    assert refused.status == 404 and "/v1/nothing" in refused.error["message"]
    for path, allow in (("/v1/chat/completions", "POST"), ("/mcp", "POST")):
        refused = host.ask(path, agent.key)
        assert (refused.status, refused.headers["allow"]) == (405, allow)
        assert "POST" in refused.error["message"]
    assert host.ask("/v1/models", agent.key, b"{}").status == 405


def test_other_settings_hold_after_a_reload(host: Host, agent: Registered) -> None:
    address = host.gateway.http
    host.reload('max_body = 1024\nrequest_timeout = "500ms"\n[gateway.models]\nbig = "fake"')
    assert host.ask("/v1/models/big", agent.key).status == 200
    assert host.ask("/v1/models", agent.key, b"x" * 2000, method="GET").status == 413
    with host.raw() as slow:  # the head never ends, and the connection does
        slow.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        assert slow.recv(1) == b""
    with host.raw() as endless:
        endless.sendall(b"GET /health HTTP/1.1\r\n")
        with pytest.raises(ConnectionError):
            flood(endless)
    host.reload("")
    assert host.gateway.http == address
    assert host.ask("/v1/models/big", agent.key).status == 404


def flood(peer: socket.socket) -> None:
    while True:
        peer.sendall(b"a: b\r\n" * 10_000)
