"""Completion in the system's shells: the scripts in etc/, and what they are told."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.aiosh.conftest import surroundings
from tests.daemon import ROOT

SCRIPTS = {"bash": "aiosctl.bash", "zsh": "_aiosctl", "fish": "aiosctl.fish"}


def asked(**environ: str) -> str:
    """Run aiosctl as a shell's completion does; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", "from aiosh.app import main_ctl; main_ctl()"],
        env=surroundings() | environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_scripts_are_those_of_this_typer(shell: str) -> None:
    """Written by `_AIOSCTL_COMPLETE=source_SHELL aiosctl`."""
    kept = (ROOT / "etc" / "completions" / SCRIPTS[shell]).read_text()
    assert kept.strip() == asked(_AIOSCTL_COMPLETE=f"source_{shell}").strip()


@pytest.mark.parametrize(
    ("line", "word", "offered"),
    [
        ("aiosctl susp", 1, ["suspend"]),
        ("aiosctl cores re", 2, ["remove"]),
        ("aiosctl sched --quan", 2, ["--quantum"]),
        ("aiosctl run mat", 2, ["math"]),
        ("aiosctl syscall suspend", 2, ["suspend_agent"]),
        ("aiosctl syscall wait ti", 3, ["timeout="]),
    ],
)
def test_what_is_offered(line: str, word: int, offered: list[str]) -> None:
    environ = {"COMP_WORDS": line, "COMP_CWORD": str(word), "AIOS_SOCKET": "/nowhere/sock"}
    assert asked(_AIOSCTL_COMPLETE="complete_bash", **environ).split() == offered
