"""A program on a pseudo-terminal, for tests that type and read as a person does.

    with Terminal(command, environ) as terminal:
        terminal.expect("aios(0)> ")
        terminal.press("ps\\r")

Every wait is for a pattern and has a deadline.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from types import TracebackType

from tests.aiosh.screen import Screen
from tests.daemon import PATIENCE

TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    "os.execvp(sys.argv[1], sys.argv[1:])"
)
"""Makes stdin the terminal of this session, so that Ctrl-C is a signal, and becomes the command."""
ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07|\x1b[=>()][0-9A-B]?|\x0f")


class Terminal:
    """The terminal's end that a person sits at; `seen` is all that was read and not yet passed."""

    def __init__(self, command: list[str], environ: dict[str, str], size: tuple[int, int]) -> None:
        self._master, slave = pty.openpty()
        self._slave = slave  # kept open: what a dead program left there can still be read
        self.resize(size)
        self.before = termios.tcgetattr(slave)
        self.seen = ""
        self.screen = Screen(*size)
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", TAKE_TERMINAL, *command],
            stdin=slave, stdout=slave, stderr=slave, env=environ, start_new_session=True,
        )  # fmt: skip

    def resize(self, size: tuple[int, int]) -> None:
        """Make the terminal so many (lines, columns)."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))

    def press(self, text: str) -> None:
        """Press keys."""
        os.write(self._master, text.encode())

    def front(self) -> int:
        """Return the process group that keys reach."""
        return os.tcgetpgrp(self._master)

    def expect(self, pattern: str) -> re.Match[str]:
        """Read until a pattern shows, without escape sequences; pass over all up to its end."""
        deadline = time.monotonic() + PATIENCE
        while True:
            plain = ESCAPES.sub("", self.seen)
            match = re.search(pattern, plain)
            if match is not None:
                self.seen = plain[match.end() :]
                return match
            self._read(deadline, pattern)

    def see(self, pattern: str, seconds: float = PATIENCE) -> None:
        """Read until the screen as a whole shows a pattern; AssertionError when it never does."""
        deadline = time.monotonic() + seconds
        while re.search(pattern, self.screen.text()) is None:
            self._read(deadline, pattern)

    def _read(self, deadline: float, pattern: str) -> None:
        ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise AssertionError(f"{pattern!r} never came; seen:\n{self.screen.text()}")
        text = os.read(self._master, 1 << 16).decode(errors="replace")
        self.seen += text
        self.screen.feed(text)
        for _ in range(text.count("\x1b[6n")):
            self.press("\x1b[1;1R")  # where the cursor is: prompt-toolkit asks

    def restored(self) -> bool:
        """Whether the terminal's modes are as they were before the program."""
        return termios.tcgetattr(self._slave) == self.before

    def ended(self) -> int:
        """Wait for the program's end and return its status."""
        return self.process.wait(PATIENCE)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self._master)
        os.close(self._slave)
