"""The two doors as a person at a terminal meets them."""

from __future__ import annotations

import os
import re
import signal
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from aiosh import link
from tests.aiosh.conftest import Run, door, surroundings
from tests.aiosh.terminal import Terminal
from tests.daemon import PATIENCE

pytestmark = pytest.mark.usefixtures("kernel")
SIZE = (24, 80)
# What is typed is seen too, so it is written otherwise than what it prints.
SLEEPER = "run --name sleeper -- sh -c 'echo be\"\"gun; exec sleep 1000'"
CTRL_C, CTRL_D, CTRL_R, CTRL_Z, TAB = "\x03", "\x04", "\x12", "\x1a", "\t"


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Terminal]:
    """Start aiosh on a terminal and wait for its first prompt."""
    with open_shell(tmp_path) as terminal:
        yield terminal
    with link.kernel() as kernel:
        for agent in kernel.list_agents():
            kernel.kill(agent.aid, signal="KILL")
            kernel.wait(agent.aid)


def open_shell(home: Path) -> Terminal:
    environ = surroundings() | {"XDG_STATE_HOME": str(home), "NO_COLOR": "1"}
    terminal = Terminal(door("shell"), environ, SIZE)
    terminal.expect(r"aios\(0\)> ")
    return terminal


def kinds(kind: str) -> list[Any]:
    """Return what is recorded of the youngest agent."""
    with link.kernel() as kernel:
        return kernel.query_history(aid=agents()[-1].aid, kind=kind)


def agents() -> list[Any]:
    with link.kernel() as kernel:
        return kernel.list_agents()


def test_commands_and_how_to_leave(shell: Terminal) -> None:
    shell.press("ps\r")
    shell.expect(r"AID +PPID")
    shell.expect(r"aios\(0\)> ")
    shell.press("exit 3\r")
    assert shell.ended() == 3
    assert shell.restored()


def test_a_background_job_comes_to_the_front_stops_and_ends(shell: Terminal) -> None:
    shell.press(SLEEPER + " &\r")
    shell.expect(r"\[1\] \d+")
    shell.expect(r"aios\(1\)> ")
    shell.press("fg\r")
    shell.expect("begun")
    shell.press(CTRL_Z)
    shell.expect(r"\[1\]\+ Stopped")
    shell.expect(r"aios\(1\)> ")
    assert [agent.state for agent in agents()] == ["T"]
    shell.press("bg %1\r")
    wait_for(lambda: [agent.state for agent in agents()] == ["S"])
    shell.press("fg\r")
    shell.expect(r"fg\s+run --name sleeper")
    shell.press(CTRL_C)
    shell.expect(r"aios\(0\)> ")
    shell.press("jobs\r")
    shell.expect(r"jobs\s+aios\(0\)> ")


def test_ctrl_z_makes_a_job_of_the_foreground(shell: Terminal) -> None:
    shell.press(SLEEPER + "\r")
    shell.expect("begun")
    shell.press(CTRL_Z)
    shell.expect(r"\[1\]\+ Stopped +aid \d+ +run")
    shell.expect(r"aios\(1\)> ")
    shell.press("kill -9 %1; wait %1\r")
    shell.expect(r"aios\(0\)> ")


def test_ctrl_c_ends_the_agent_not_the_shell(shell: Terminal) -> None:
    shell.press(SLEEPER + " | cat\r")
    shell.expect("begun")
    shell.press(CTRL_C)
    shell.expect(r"\^C\r?\n(?s:.*)aios\(0\)> ")
    shell.press("ps -a sleeper\r")
    shell.expect("sig:INT")


def test_ctrl_c_ends_what_only_watches(shell: Terminal) -> None:
    shell.press(SLEEPER + " & logs -f sleeper\r")
    shell.expect("begun")
    shell.press(CTRL_C)
    shell.expect(r"\^C\r?\n(?s:.*)aios\(1\)> ")


def test_a_job_that_ended_is_announced(shell: Terminal) -> None:
    shell.press(SLEEPER + " &\r")
    shell.expect(r"aios\(1\)> ")
    (agent,) = agents()
    with link.kernel() as kernel:
        kernel.kill(agent.aid, signal="KILL")
        kernel.wait(agent.aid, reap=False)
    shell.press("\r")
    shell.expect(r"\[1\]\+ sig:KILL +aid")


def test_completion_of_commands_options_signals_and_live_agents(shell: Terminal) -> None:
    complete(shell, "", "sch", "ed")
    complete(shell, "sched", " --quan", "tum")
    shell.press(" 33\r")
    shell.expect("quantum 33 tokens")
    shell.expect(r"aios\(0\)> ")
    shell.press(SLEEPER + " &\r")
    shell.expect(r"aios\(1\)> ")
    (agent,) = agents()
    complete(shell, "", "susp", "end")
    complete(shell, "suspend", " sle", "eper")
    shell.press("\r")
    wait_for(lambda: [agent.state for agent in agents()] == ["T"])
    shell.see(r"suspend sleeper\n(?s:.*)aios\(1\)>\s*\Z")
    complete(shell, "", "kill -CO", "NT")
    complete(shell, "kill -CONT", " ", str(agent.aid))
    shell.press("\r")
    wait_for(lambda: [agent.state for agent in agents()] == ["S"])


def complete(shell: Terminal, before: str, typed: str, rest: str) -> None:
    """Type the beginning of a word, and Tab; wait for the rest of it on the line.

    Not anywhere: below the line the words are offered that could follow. A Tab that comes while
    those are looked for is lost, and pressed again.
    """
    shell.press(typed)
    shell.see(r"aios\(\d\)> " + re.escape((before + typed).rstrip()))
    for _ in range(9):
        shell.press(TAB)
        with suppress(AssertionError):
            shell.see(r"aios\(\d\)> " + re.escape(before + typed + rest), seconds=PATIENCE / 9)
            return
    raise AssertionError(f"{typed!r} was not completed:\n{shell.screen.text()}")


def test_history_is_kept_private_and_searched(tmp_path: Path) -> None:
    with open_shell(tmp_path) as shell:
        shell.press("sched --quantum 34\r")
        shell.expect("quantum 34 tokens")
        shell.expect(r"aios\(0\)> ")
        shell.press(CTRL_D)
        assert shell.ended() == 0
    file = tmp_path / "aios" / "history"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "sched --quantum 34" in file.read_text()
    with open_shell(tmp_path) as shell:
        shell.press(CTRL_R + "sche")
        shell.expect("sched --quantum 34")


def test_the_prompt_says_when_the_daemon_is_away(tmp_path: Path) -> None:
    environ = surroundings() | {"XDG_STATE_HOME": str(tmp_path), "AIOS_SOCKET": "/nowhere/sock"}
    with Terminal(door("shell"), environ, SIZE) as shell:
        shell.expect(r"aios\(down\)> ")
        shell.press("ps\r")
        shell.expect("aiosd is not running")
        shell.expect(r"aios\(down\)> ")


def test_ctrl_c_in_aiosctl_reaches_the_agent() -> None:
    script = "trap 'echo caught; exit 7' INT; echo begun; while :; do sleep 0.1; done"
    command = door("ctl", "run", "--", "bash", "-c", script)
    with Terminal(command, surroundings(), SIZE) as terminal:
        terminal.expect("begun")
        terminal.press(CTRL_C)
        terminal.expect("caught")
        assert terminal.ended() == 7


def test_ctrl_c_twice_ends_one_that_does_not_listen() -> None:
    command = door("ctl", "run", "--", "sh", "-c", "trap '' INT; echo begun; exec sleep 1000")
    with Terminal(command, surroundings(), SIZE) as terminal:
        terminal.expect("begun")
        terminal.press(CTRL_C)
        terminal.expect(r"\^C")
        wait_for(lambda: kinds("agent.signal"))
        terminal.press(CTRL_C)
        assert terminal.ended() == 143


def test_ctrl_z_stops_aiosctl_with_its_agent(ctl: Run) -> None:
    with Terminal(door("ctl", *SLEEPER.split(" ")[:4], "sh", "-c", "echo begun; exec sleep 1000"),
                  surroundings(), SIZE) as terminal:  # fmt: skip
        terminal.expect("begun")
        terminal.press(CTRL_Z)
        os.waitpid(terminal.process.pid, os.WUNTRACED)
        assert psutil.Process(terminal.process.pid).status() == psutil.STATUS_STOPPED
        assert [agent.state for agent in agents()] == ["T"]
        terminal.process.send_signal(signal.SIGCONT)
        (agent,) = agents()
        assert ctl("kill", "-KILL", str(agent.aid)).status == 0
        assert terminal.ended() == 137


def test_ctrl_c_ends_the_demo_and_what_it_started(ctl: Run) -> None:
    command = door("ctl", "demo", "--policy", "fifo", "--trials", "50")
    with Terminal(command, surroundings() | {"NO_COLOR": "1"}, SIZE) as terminal:
        terminal.see(r"concurrent|sequential 2/50")
        terminal.see(r"math +\d+ +[RQS]")
        terminal.press(CTRL_C)
        assert terminal.ended() == 130
        assert terminal.restored()
    assert agents() == []
    assert "policy rr" in ctl("sched").out


class TestTop:
    """top on a terminal."""

    @pytest.fixture
    def top(self, ctl: Run) -> Iterator[Terminal]:
        for name in ("first", "second"):
            assert ctl("run", "-d", "--name", name, "--", "sleep", "1000").status == 0
        environ = surroundings() | {"NO_COLOR": "1"}
        with Terminal(door("ctl", "top", "-d", "0.2"), environ, SIZE) as terminal:
            terminal.see("policy rr")
            terminal.see("second")
            yield terminal
            if terminal.process.poll() is None:
                terminal.press("q")
                assert terminal.ended() == 0
            assert terminal.restored()
        for agent in agents():
            ctl("kill", "-9", str(agent.aid))
            ctl("wait", str(agent.aid))

    def state(self, name: str) -> Any:
        (agent,) = [agent for agent in agents() if agent.name == name]
        return agent

    def test_it_shows_cores_and_agents_and_gives_the_terminal_back(self, top: Terminal) -> None:
        top.press("q")

        assert top.ended() == 0
        assert top.restored()

    def test_renice_asks_for_the_value(self, top: Terminal) -> None:
        top.press("Nr")
        top.see(r"renice agent \d+ \(first\) from 0 to:")
        top.press("7\r")
        wait_for(lambda: self.state("first").nice == 7)

    def test_suspend_resume_and_kill_the_chosen_one(self, top: Terminal) -> None:
        top.press("N\x1b[B" + "s")  # down: the second
        wait_for(lambda: self.state("second").state == "T")
        top.press("c")
        wait_for(lambda: self.state("second").state == "S")
        top.press("k")
        top.see(r"kill agent \d+ \(second\) with signal \[TERM\]:")
        top.press("\x07")  # never mind
        top.see(r"^(?s:(?!kill agent).)*$")
        top.press("k")
        top.see(r"kill agent \d+ \(second\)")
        top.press("NOSUCH\r")
        top.see("agents know no signal")
        top.press("k")
        top.press("\r")
        wait_for(lambda: [agent.name for agent in agents()] == ["first"])

    def test_help_and_ctrl_c(self, top: Terminal) -> None:
        top.press("h")
        top.see("sort by tokens per second")
        top.press("q")  # any key goes back, this one too
        top.see("policy rr")
        top.press(CTRL_C)
        assert top.ended() == 0


def wait_for(condition: Any) -> None:
    """Ask until something is so; fail when it takes too long."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline


def test_keys_reach_the_shell_and_not_what_started_it(tmp_path: Path) -> None:
    script = '"$@"; echo "left $?"; read wait'  # as make and its scripts do, in one group with it
    command = ["/bin/sh", "-c", script, "sh", *door("shell")]
    environ = surroundings() | {"XDG_STATE_HOME": str(tmp_path), "NO_COLOR": "1"}
    with Terminal(command, environ, SIZE) as terminal:
        terminal.expect(r"aios\(0\)> ")
        assert terminal.front() != terminal.process.pid
        terminal.press("exit 3\r")
        terminal.expect("left 3")
        assert terminal.front() == terminal.process.pid
        terminal.press("\r")
        assert terminal.ended() == 0
