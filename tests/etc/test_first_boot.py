"""first-boot, the script of `make run`, with stand-ins for the three programs on its PATH.

What must hold: the daemon that it started is stopped whichever way it ends, a daemon that was
there before is left alone, and its exit status is the demo's.
"""

import os
import pty
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "etc" / "first-boot"
DEADLINE_SECONDS = 60.0  # a loaded machine starts a process in a second or more

# A daemon that is ready when its socket's place exists, and says how it ended.
DAEMON = """#!/bin/sh
trap 'rm -f "$AIOS_SOCKET"; echo stopped >> "$TRACE"; exit 0' TERM
echo $$ > "$TRACE.pid"
echo started >> "$TRACE"
[ ! -e "$TRACE.broken" ] || { echo "no such model" >&2; : > "$TRACE.told"; exit 1; }
: > "$AIOS_SOCKET"
while :; do sleep 0.05; done
"""

CONTROL = """#!/bin/sh
case "$1 $2" in
"info --wait")
    until [ -e "$AIOS_SOCKET" ]; do
        [ "$3" -gt 0 ] && [ ! -e "$TRACE.told" ] || exit 125
        sleep 0.05
    done ;;
"demo ")
    echo "demo $AIOS_STATE_DIR" >> "$TRACE"
    [ ! -e "$TRACE.slow" ] || sleep 30
    [ ! -e "$TRACE.fail" ] || exit 3 ;;
esac
"""

SHELL = """#!/bin/sh
echo shell >> "$TRACE"
"""


class Boot:
    """One place to run first-boot in, with the stand-ins on PATH."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.trace = home / "trace"
        self.environment = {
            "PATH": f"{home}/bin:{os.environ['PATH']}",
            "TRACE": str(self.trace),
            "AIOS_TEST_RUN": os.environ["AIOS_TEST_RUN"],
        }
        (home / "bin").mkdir()
        for name, text in (("aiosd", DAEMON), ("aiosctl", CONTROL), ("aiosh", SHELL)):
            program = home / "bin" / name
            program.write_text(text)
            program.chmod(0o755)

    def set(self, flag: str) -> None:
        """Make a stand-in behave as `flag` says: broken, slow or fail."""
        Path(f"{self.trace}.{flag}").touch()

    def start(self, terminal: int | None = None) -> "subprocess.Popen[str]":
        """Start the script, on a terminal's descriptor or without one."""
        return subprocess.Popen(
            ["sh", str(SCRIPT)],
            cwd=self.home,
            env=self.environment,
            stdin=subprocess.DEVNULL if terminal is None else terminal,
            stdout=subprocess.PIPE if terminal is None else terminal,
            stderr=subprocess.PIPE if terminal is None else terminal,
            text=True,
            start_new_session=True,
        )

    def run(self) -> tuple[int, str]:
        """Run the script to its end without a terminal: exit status, standard error."""
        with self.start() as script:
            _, errors = script.communicate(timeout=DEADLINE_SECONDS)
        return script.returncode, errors

    def events(self) -> list[str]:
        """Tell what the stand-ins did, in order, without arguments."""
        lines = self.trace.read_text().splitlines() if self.trace.exists() else []
        return [line.split()[0] for line in lines]


@pytest.fixture
def boot(state_dir: Path) -> Boot:
    return Boot(state_dir)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.01)


def test_without_a_terminal_it_runs_the_demo_and_stops_the_daemon(boot: Boot) -> None:
    status, errors = boot.run()
    assert (status, errors) == (0, "")
    assert boot.events() == ["started", "demo", "stopped"]
    assert f"demo {boot.home}/.aios/state" in boot.trace.read_text()


def test_on_a_terminal_the_shell_comes_last(boot: Boot) -> None:
    ours, theirs = pty.openpty()
    try:
        with boot.start(theirs) as script:
            assert script.wait(DEADLINE_SECONDS) == 0
    finally:
        os.close(theirs)
        os.close(ours)
    assert boot.events() == ["started", "demo", "shell", "stopped"]


def test_a_failed_demo_is_the_exit_status_and_the_daemon_is_stopped(boot: Boot) -> None:
    boot.set("fail")
    assert boot.run()[0] == 3
    assert boot.events() == ["started", "demo", "stopped"]


def test_a_daemon_that_never_gets_ready_is_explained(boot: Boot) -> None:
    boot.set("broken")
    status, errors = boot.run()
    assert status == 1
    assert "no such model" in errors
    assert "did not get ready" in errors


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_demo_stops_the_daemon(boot: Boot, sent: signal.Signals) -> None:
    boot.set("slow")
    with boot.start() as script:
        wait_until(lambda: "demo" in boot.events() or script.poll() is not None)
        assert script.poll() is None
        os.killpg(script.pid, sent)  # as a terminal does: the whole foreground group
        assert script.wait(DEADLINE_SECONDS) == 128 + sent
    assert boot.events() == ["started", "demo", "stopped"]


def test_a_daemon_that_was_there_before_is_left_running(boot: Boot) -> None:
    with boot.start() as first:
        assert first.wait(DEADLINE_SECONDS) == 0
    runtime = boot.home / ".aios" / "run"
    boot.environment["AIOS_SOCKET"] = f"{runtime}/aiosd.sock"
    with subprocess.Popen([boot.home / "bin" / "aiosd"], env=boot.environment) as daemon:
        wait_until((runtime / "aiosd.sock").exists)
        assert boot.run()[0] == 0
        assert daemon.poll() is None
        daemon.terminate()
        assert daemon.wait(DEADLINE_SECONDS) == 0
