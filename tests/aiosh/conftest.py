"""A real daemon with a fake core, one for each module, and ways to drive the two doors."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aiosh import app, offers
from tests.daemon import PATIENCE, ROOT, Daemon

STEP_MS = 2.0  # of the fake core: fast, yet long enough for a key to come in the midst of a text


class Outcome:
    """What a command printed and its exit status."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    def rows(self) -> list[list[str]]:
        """Return the words of each line below a table's head."""
        return [line.split() for line in self.out.splitlines()[1:]]


Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def kernel(world: Any) -> Iterator[Daemon]:
    """Start a daemon with a fake core of four slots; the environment points at it."""
    places = [world.make(must_end_empty=empty) for empty in (False, True, True)]
    patch = pytest.MonkeyPatch()
    with Daemon(*places) as daemon:
        patch.setenv("AIOS_SOCKET", daemon.socket)
        add_core("fake", f'{{"step_ms": {STEP_MS}}}')
        yield daemon
    patch.undo()


def add_core(name: str, options: str) -> None:
    """Add a fake core."""
    words = ["cores", "add", options, "--name", name, "--driver", "fake", "--slots", "4"]
    assert app.execute(words) == 0


@pytest.fixture
def ctl(capfd: pytest.CaptureFixture[str]) -> Run:
    """Give a way to run a command as aiosctl does, in this process."""

    def run(*words: str) -> Outcome:
        capfd.readouterr()
        offers.forget()
        status = app.execute(list(words))
        out, err = capfd.readouterr()
        return Outcome(status, out, err)

    return run


@pytest.fixture
def aiosh() -> Run:
    """Give a way to run a script as aiosh does, in a process of its own."""

    def run(*arguments: str, stdin: str = "", cwd: Path | None = None) -> Outcome:
        return outcome(door("shell", *arguments), stdin, cwd)

    return run


def door(name: str, *arguments: str) -> list[str]:
    """Return the command line of aiosctl ("ctl") or aiosh ("shell")."""
    return [sys.executable, "-c", f"from aiosh.app import main_{name}; main_{name}()", *arguments]


def surroundings() -> dict[str, str]:
    """Return the environment for the doors: they find the source, and nobody colours."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "sdk")])
    environ = {**os.environ, "PYTHONPATH": path, "TERM": "xterm", "SHELL": "/bin/sh"}
    return {name: text for name, text in environ.items() if name not in ("FORCE_COLOR", "COLUMNS")}


def outcome(command: list[str], stdin: str = "", cwd: Path | None = None) -> Outcome:
    """Run a command to its end."""
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=3 * PATIENCE, check=False,
        env=surroundings(), cwd=cwd,
    )  # fmt: skip
    return Outcome(done.returncode, done.stdout, done.stderr)
