"""aiosh: reads lines and runs them, from a terminal, a file, -c or stdin.

A line's commands are those of aiosctl, run in this process, and a few that only a shell has:
jobs fg bg cd help exit, and `!COMMAND` for the system's shell. What must hold: nothing that a
command does, and no daemon that goes away, ends the shell.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import IO, Final

from aiosh import app, follow, link
from aiosh.jobs import Jobs
from aiosh.line import BadLine, Redirection, Step, parse

NAME: Final = "aiosh"


class Leave(Exception):
    """The shell is to end with a status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Shell:
    """One shell: its jobs and the status of its last command."""

    def __init__(self) -> None:
        self.jobs = Jobs()
        self.status = 0
        self._warned = False
        self.own: dict[str, tuple[Callable[[list[str]], int], str]] = {
            "jobs": (self._jobs, "list the agents that were started here and still run"),
            "fg": (self._fg, "[%N] bring a job to the foreground, resuming it"),
            "bg": (self._bg, "[%N] let a stopped job go on in the background"),
            "cd": (self._cd, "[DIR] change the directory that programs start in"),
            "help": (self._help, "[COMMAND] say what there is"),
            "exit": (self._exit, "[STATUS] leave; running agents go on"),
        }

    def names(self) -> list[str]:
        """Return every command's name."""
        return sorted({*app.group().commands, *self.own, "quit"})

    def run(self, line: str) -> int:
        """Run one line; return the status of its last command. Raises Leave on `exit`."""
        try:
            steps = parse(line)
        except BadLine as error:
            self.status = app.complain(NAME, str(error), 2)
            return self.status
        for step in steps:
            if step.joint == "&&" and self.status != 0:
                continue
            if step.joint == "||" and self.status == 0:
                continue
            self.status = self._step(step)
        return self.status

    def _step(self, step: Step) -> int:
        if step.system:
            return system(step.system)
        try:
            with _output(step) as piped:
                status = self._command(step)
        except follow.Suspended as stopped:
            job = self.jobs.add(stopped.aid, step.text, stopped.shown, stopped=True)
            print(f"\n[{job.number}]+ Stopped    aid {job.aid:<4} {job.text}")
            return 128 + signal.SIGTSTP
        except OSError as error:
            return app.complain(NAME, link.sentence(error), 1)
        except link.Failure as error:
            return app.complain(NAME, str(error), error.status)
        return status if piped is None or piped.returncode == 0 else piped.returncode

    def _command(self, step: Step) -> int:
        words = step.words
        if step.background:
            return self._background(step)
        if words[0] in self.own or words[0] == "quit":
            return self.own["exit" if words[0] == "quit" else words[0]][0](words[1:])
        if words[0] not in app.group().commands and not words[0].startswith("-"):
            return self._unknown(words[0])
        return app.execute(self._aids(words), NAME)

    def _aids(self, words: list[str]) -> list[str]:
        """Put aids in the place of %N, for commands that take agents."""
        if words[0] in ("run", "nice", "fork", "syscall"):
            return words
        return [str(self.jobs.find(word).aid) if word.startswith("%") else word for word in words]

    def _background(self, step: Step) -> int:
        words = step.words
        if words[0] not in ("run", "nice"):
            raise link.Failure("only `run` and `nice` go to the background: the rest is short")
        if step.filter:
            raise link.Failure("a job's output is kept: see it with `logs`, without a pipe")
        caught = _Caught()
        with contextlib.redirect_stdout(caught):
            status = app.execute([words[0], "--detach", *words[1:]], NAME)
        if status == 0:
            job = self.jobs.add(int(caught.text), step.text)
            print(f"[{job.number}] {job.aid}")
        return status

    def _unknown(self, word: str) -> int:
        if word.startswith("!"):
            return app.complain(NAME, f"{word}: ! is for a whole line, from its beginning", 127)
        near = get_close_matches(word, self.names(), 1)
        hint = f"did you mean {near[0]!r}?" if near else "`help` lists the commands"
        return app.complain(NAME, f"there is no command {word!r}; {hint}", 127)

    def _jobs(self, words: list[str]) -> int:
        for line in self.jobs.lines():
            print(line)
        return 0

    def _fg(self, words: list[str]) -> int:
        job = self.jobs.find(*words[:1])

        def forward() -> int:
            print(job.text, flush=True)
            self._resume(job.aid)
            return job.aid

        try:
            status = follow.follow(forward, skip=job.shown)
        except follow.Suspended as stopped:
            job.shown = stopped.shown
            self.jobs.add(job.aid, job.text, stopped.shown, stopped=True)
            print(f"\n[{job.number}]+ Stopped    aid {job.aid:<4} {job.text}")
            return 128 + signal.SIGTSTP
        self.jobs.drop(job)
        return status

    def _bg(self, words: list[str]) -> int:
        job = self.jobs.find(*words[:1])
        self._resume(job.aid)
        job.background = True
        print(f"[{job.number}]+ {job.text} &")
        return 0

    def _resume(self, aid: int) -> None:
        with link.kernel() as kernel:
            if link.agent(kernel, aid).state == "T":
                kernel.resume_agent(aid=aid)

    def _cd(self, words: list[str]) -> int:
        os.chdir(os.path.expanduser(words[0] if words else "~"))
        return 0

    def _help(self, words: list[str]) -> int:
        if words and words[0] in app.group().commands:
            return app.execute([*words, "--help"], NAME)
        if words and words[0] not in self.own:
            return self._unknown(words[0])
        for name in words or sorted(self.own):
            print(f"  {name:<8} {self.own[name][1]}")
        if not words:
            print("  !LINE    give a line to the system's shell")
            for name, command in sorted(app.group().commands.items()):
                print(f"  {name:<8} {command.get_short_help_str(66)}")
        return 0

    def _exit(self, words: list[str]) -> int:
        if words and not words[0].isdecimal():
            raise link.Failure(f"exit takes a number, not {words[0]!r}", 2)
        if self.jobs and not self._warned and sys.stdin.isatty():
            self._warned = True
            raise link.Failure("there are jobs (`jobs`); they go on without you: `exit` again")
        raise Leave(int(words[0]) if words else self.status)

    def script(self, lines: Iterator[str]) -> int:
        """Run lines one after the other; return the last status, or what `exit` said."""
        try:
            for line in lines:
                self.run(line)
        except Leave as leave:
            return leave.status
        return self.status


class _Caught:
    """A file that keeps what is written to it."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def isatty(self) -> bool:
        return False


@contextlib.contextmanager
def _output(step: Step) -> Iterator[subprocess.Popen[str] | None]:
    """Send a command's output where its pipe and redirections say, for the length of the block."""
    with contextlib.ExitStack() as stack:
        filter_ = None
        if step.filter:
            filter_ = stack.enter_context(_piped(step.filter))
            stack.enter_context(contextlib.redirect_stdout(filter_.stdin))
        for redirection in step.redirections:
            _redirect(stack, redirection)
        yield filter_


def _redirect(stack: contextlib.ExitStack, redirection: Redirection) -> None:
    file: IO[str] = sys.stdout
    if redirection.target != "&1":
        path = os.path.expanduser(redirection.target)
        mode = "a" if redirection.append else "w"
        file = stack.enter_context(open(path, mode, encoding="utf-8"))  # noqa: SIM115
    change = contextlib.redirect_stdout if redirection.stream == 1 else contextlib.redirect_stderr
    stack.enter_context(change(file))


@contextlib.contextmanager
def _piped(command: str) -> Iterator[subprocess.Popen[str]]:
    """Run a command that reads what is printed in the block; return when it has ended too."""
    process = subprocess.Popen(
        command, shell=True, stdin=subprocess.PIPE, text=True, encoding="utf-8"
    )
    assert process.stdin is not None
    try:
        yield process
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        _patiently(process)


def _patiently(process: subprocess.Popen[str]) -> None:
    """Wait for a process that Ctrl-C reaches too."""
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            process.wait()
            return


def system(line: str) -> int:
    """Run a line in the system's shell; return its status as a shell does."""
    shell = os.environ.get("SHELL") or "/bin/sh"
    process = subprocess.Popen([shell, "-c", line], text=True)
    _patiently(process)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def main(arguments: list[str]) -> int:
    """Run aiosh with its arguments: `-c LINE`, a FILE, or nothing for stdin or a prompt."""
    shell = Shell()
    if arguments[:1] in (["-h"], ["--help"]):
        print(
            "usage: aiosh [-c LINE | FILE]\n\nThe shell of AIOS; `help` in it lists its commands."
        )
        return 0
    if arguments[:1] == ["-c"]:
        if len(arguments) < 2:
            return app.complain(NAME, "-c needs a line to run", 2)
        return shell.script(iter(arguments[1].splitlines()))
    if arguments[:1] and arguments[0].startswith("-"):
        return app.complain(NAME, f"unknown option {arguments[0]}; -c LINE or a FILE", 2)
    if arguments:
        try:
            with open(arguments[0], encoding="utf-8") as file:
                return shell.script(iter(file))
        except OSError as error:
            return app.complain(NAME, link.sentence(error), 1)
    if not sys.stdin.isatty():
        return shell.script(iter(sys.stdin))
    from aiosh.prompt import interact

    return interact(shell)
