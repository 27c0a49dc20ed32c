"""tools against a real daemon: ls, show, run, register, remove, doctor."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from aiosh import offers
from tests.aiosh.conftest import Run
from tests.daemon import Daemon

pytestmark = pytest.mark.usefixtures("kernel")


def test_a_tool_from_declaring_to_taking_away(ctl: Run, tmp_path: Path) -> None:
    manifest = tmp_path / "cat.toml"
    manifest.write_text('name = "cat"\ncommand = ["cat"]\ndescription = "Say it again."\n')
    assert ctl("tools", "register", str(manifest)).status == 0
    again = ctl("tools", "register", str(manifest))
    assert again.status == 1 and "there is a tool 'cat' already (registered)" in again.err
    assert ctl("tools", "register", str(manifest), "--replace").status == 0
    own = ["storage_search", "1", "kernel"]
    assert [row[:3] for row in ctl("tools").rows()] == [["cat", "1", "registered"], own]
    assert json.loads(ctl("tools", "show", "cat").out)["description"] == "Say it again."
    assert ctl("tools", "remove", "cat").status == 0
    assert [tool["name"] for tool in json.loads(ctl("tools", "ls", "--json").out)] == own[:1]
    gone = ctl("tools", "run", "cat", "a=1")
    assert gone.status == 1 and "there is no tool 'cat'" in gone.err


def test_mistakes_are_named(ctl: Run, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text('name = "wrong"\ncommand = ["cat"]\nisolation = "none"\n')
    refused = ctl("tools", "register", str(wrong))
    assert refused.status == 1 and "field 'isolation'" in refused.err
    assert ctl("tools", "run", "cat", "a").status == 2


def test_what_keeps_tools_away_is_named(kernel: Daemon, ctl: Run, tmp_path: Path) -> None:
    (tmp_path / "wrong.toml").write_text('name = "wrong"\nlimits = {tim = 3}\n')
    needy = f'command = ["{sys.executable}"]\nsecrets = ["NOWHERE"]\n'
    kernel.configure(f'[tools]\npackages = []\npath = ["{tmp_path}"]\n[tools.mcp.needy]\n{needy}')
    kernel.send_signal(signal.SIGHUP)
    kernel.await_notice("READY=1")
    try:
        wrong, server = ctl("tools", "ls").err.splitlines()
        assert wrong.startswith(f"manifest:{tmp_path}/wrong.toml: ") and "tim" in wrong
        assert server.startswith("MCP server needy is ")
    finally:
        kernel.configure("")
        kernel.send_signal(signal.SIGHUP)
        kernel.await_notice("READY=1")


def test_names_of_tools_and_models_are_offered() -> None:
    offers.forget()
    assert [name for name, _ in offers.tools("storage")] == ["storage_search"]
    assert "smollm2" in [name for name, _ in offers.models("smol")]
