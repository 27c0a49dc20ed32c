"""grant, revoke, grants, approve and audit against a real daemon."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from aiosh import rights
from aiosh.link import kernel as connect
from tests.aiosh.conftest import Run, door, surroundings
from tests.daemon import PATIENCE, Daemon
from tests.system.parties import register

pytestmark = pytest.mark.usefixtures("kernel")


def test_a_grant_from_giving_to_taking(ctl: Run, kernel: Daemon) -> None:
    (one, a), (two, b) = register(kernel, "giver"), register(kernel, "taker")
    id = ctl("grant", "taker", "observe", str(a), "--for", "10min").out.strip()
    row = json.loads(ctl("grants", "--json", f"agent:{b}").out)[0]
    assert (row["id"], row["subject"], row["object"]) == (int(id), f"agent:{b}", f"agent:{a}")
    assert row["expires"] - row["created"] == pytest.approx(600, abs=5)
    assert ctl("grants", "taker").rows()[0][:5] == [
        id, f"agent:{b}", "observe", f"agent:{a}", "allow",
    ]  # fmt: skip
    assert ctl("grant", "taker", "observe", str(a)).status == 1
    assert ctl("revoke", id).status == 0
    assert ctl("grants", "--json").out == "[]\n"
    result = ctl("revoke", id)
    assert (result.status, f"no grant {id}" in result.err) == (1, True)
    assert ctl("grant", "taker", "fly", str(a)).err.startswith("aiosctl: grant: capability: ")
    assert ctl("grant", "taker", "observe", str(a), "--for", "soon").status == 2
    group = ctl("grant", str(a), "member", "group:team", "--json")
    assert json.loads(group.out)["object"] == "group:team"
    (found,) = json.loads(ctl("ps", "--json", str(a)).out)
    assert found["groups"] == ["team"]
    assert ctl("revoke", str(json.loads(group.out)["id"])).status == 0
    for client in (one, two):
        client.close()


def test_approving_and_denying(ctl: Run, kernel: Daemon) -> None:
    one, a = register(kernel, "asker")
    ctl("grant", "asker", "spawn", "asker", "--ask")
    assert ctl("approve").rows() == []
    for words, status in (((), 0), (("--deny",), 1)):
        waiting = one.send_raw(20, b"\x81\xa4argv\x91\xa4true")
        with connect() as link:
            told: set[int] = set()
            lines: list[str] = []
            while not lines:
                lines = rights.notices(link, told)
            assert rights.notices(link, told) == []
        assert f"agent {a} asks for spawn" in lines[0]
        (row,) = ctl("approve").rows()
        assert row[1:5] == [f"agent:{a}", "spawn", "spawn", f"agent:{a}"]
        assert ctl("approve", row[0], *words).status == 0
        reply = one.read()
        assert (reply.id, bool(reply.errno)) == (waiting, bool(status))
    assert ctl("approve", "99999").status == 1
    one.close()


def test_the_audit_log_is_shown_followed_and_proved(ctl: Run, kernel: Daemon) -> None:
    one, _ = register(kernel, "seen")
    ctl("grant", "seen", "observe", "uid:0")
    lines = ctl("audit", "--kind", "grant.add").out.splitlines()
    assert "observe" in lines[-1]
    records = [json.loads(line) for line in ctl("audit", "--json", "-a", "seen").out.splitlines()]
    assert {record["kind"] for record in records} >= {"agent.spawn", "agent.start"}
    result = ctl("audit", "verify")
    assert re.fullmatch(r"\d+ records, 1 to \d+: the chain is whole\n", result.out), result.err
    last = json.loads(ctl("audit", "verify", "--json").out)["last"]
    follower = subprocess.Popen(
        door("ctl", "audit", "-f", "--json", "--after", str(last), "-k", "grant."),
        stdout=subprocess.PIPE, text=True, env=surroundings(),
    )  # fmt: skip
    assert follower.stdout is not None
    ctl("revoke", str(json.loads(ctl("grants", "--json").out)[-1]["id"]))
    assert json.loads(follower.stdout.readline())["kind"] == "grant.revoke"
    follower.terminate()
    follower.wait(PATIENCE)
    follower.stdout.close()
    one.close()


def test_a_broken_chain_is_told(ctl: Run, kernel: Daemon) -> None:
    file = max(Path(kernel.state_dir, "audit").iterdir())
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    lines[2] = lines[2].replace(b",0,", b",1,", 1)
    assert b"".join(lines) != whole
    file.write_bytes(b"".join(lines))
    try:
        result = ctl("audit", "verify")
        assert (result.status, "broken: record 3" in result.err) == (1, True)
    finally:
        file.write_bytes(whole)
