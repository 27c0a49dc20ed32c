"""The shell outlives the daemon: its agent goes on being followed, its prompt comes back."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.aiosh.conftest import door, surroundings
from tests.aiosh.terminal import Terminal
from tests.daemon import Daemon


def test_a_daemon_that_comes_back_finds_the_shell_as_it_was(
    state_dir: Path,
    runtime_dir: Path,
    kv_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = tmp_path / "gate"
    script = f"echo be''gun; while [ ! -e {gate} ]; do sleep 0.05; done; echo t''wo; exit 9"
    with Daemon(state_dir, runtime_dir, kv_dir) as daemon:
        monkeypatch.setenv("AIOS_SOCKET", daemon.socket)
        environ = surroundings() | {"XDG_STATE_HOME": str(tmp_path), "NO_COLOR": "1"}
        with Terminal(door("shell"), environ, (24, 200)) as shell:
            shell.expect(r"aios\(0\)> ")
            shell.press(f'run -- sh -c "{script}"\r')
            shell.expect("begun")
            daemon.stop(signal.SIGKILL)
            shell.expect("aiosd is away; agent 2 goes on")
            daemon.start()
            gate.touch()
            shell.expect("two")
            shell.expect(r"aios\(0\)> ")
            daemon.stop()
            shell.press("\r")
            shell.expect(r"aios\(down\)> ")
            daemon.start()
            shell.press("\r")
            shell.expect(r"aios\(0\)> ")
            shell.press("exit\r")
            assert shell.ended() == 9
