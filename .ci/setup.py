"""Makes `.venv` ready for `make run` or `make test`, and says what it is doing meanwhile.

    python3 .ci/setup.py EXTRA...        for example: daemon llama demo

Standard library only: it runs before anything is installed. It must hold that
- every package comes at the version that constraints.txt pins, build tools too, so that no run
  of pip ever resolves a tree of its own;
- the second call costs a fraction of a second: a stamp in .venv remembers what was installed from
  which pyproject.toml and constraints.txt;
- a failed or interrupted set-up leaves no stamp, and the next call goes on where pip left off.
"""

from __future__ import annotations  # an older Python must get as far as being told that it is

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

OLDEST_PYTHON = (3, 11)
ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "aios-setup.json"
LOG = VENV / "aios-setup.log"
POLL_SECONDS = 0.5
REPEAT_SECONDS = 15.0  # between two signs of life where no terminal shows a moving line

# The lines of pip's and ninja's output from which a reader sees how far they are.
MILESTONE = re.compile(
    r"^\s*(?:Collecting (?P<fetch>\S+)"
    r"|Building wheel for (?P<build>\S+).*started"
    r"|(?P<step>\[\d+/\d+\]) .*?(?P<object>[\w.+-]+)$"
    r"|Installing collected packages: (?P<install>.*))"
)


def main(extras: list[str]) -> None:
    """Install the checkout with `extras` into .venv, unless that was done before."""
    check_python()
    done = installed_extras()
    wanted = sorted(done | set(extras))
    if done and wanted == sorted(done):
        return
    started = time.monotonic()
    say(f"set-up of {VENV.name} with {', '.join(wanted)} (details: {LOG.relative_to(ROOT)})")
    make_venv(keep=bool(done))
    install(wanted)
    STAMP.write_text(json.dumps({"from": fingerprint(), "extras": wanted}))
    say(f"set-up done in {elapsed(started)}")


def say(line: str) -> None:
    """Print one line of progress at once, even into a pipe."""
    print(f"==> {line}", flush=True)


def fail(*lines: str) -> NoReturn:
    """End with a message that says what to do."""
    sys.exit("\n".join(("set-up failed: " + lines[0], *lines[1:])))


def elapsed(started: float) -> str:
    """Give the time since `started` (monotonic seconds) as 1m05s."""
    seconds = int(time.monotonic() - started)
    return f"{seconds // 60}m{seconds % 60:02}s" if seconds >= 60 else f"{seconds}s"


def check_python() -> None:
    """Refuse a Python that is too old, and one that can't make virtual environments."""
    oldest = ".".join(map(str, OLDEST_PYTHON))
    if sys.version_info < OLDEST_PYTHON:
        fail(
            f"AIOS needs Python {oldest} or newer; {sys.executable} is {sys.version.split()[0]}.",
            "Install a newer one and name it: make PYTHON=python3.12 run",
        )
    try:
        import ensurepip  # noqa: F401  (Debian ships it apart)
    except ImportError:
        fail(
            "this Python lacks ensurepip, which fills a virtual environment.",
            "On Debian and Ubuntu: apt-get install python3-venv",
        )


def fingerprint() -> str:
    """Name what an installation depends on: two files, the interpreter, the checkout's place."""
    digest = hashlib.sha256()
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    digest.update(f"{sys.version}\n{os.path.realpath(sys.executable)}\n{ROOT}".encode())
    return digest.hexdigest()


def installed_extras() -> set[str]:
    """Tell which extras the stamp vouches for: none when anything that it depends on changed."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return set()
    return set(stamp["extras"]) if stamp["from"] == fingerprint() else set()


def make_venv(keep: bool) -> None:
    """Create .venv where there is none, or one of another interpreter."""
    STAMP.unlink(missing_ok=True)
    if keep or same_python():
        return
    say(f"creating {VENV.name} with Python {sys.version.split()[0]}")
    # The real path: with .venv activated, sys.executable would clear itself away.
    python = os.path.realpath(sys.executable)
    subprocess.run([python, "-m", "venv", "--clear", str(VENV)], check=True)


def same_python() -> bool:
    """Tell whether .venv holds a working interpreter of this very version, with pip."""
    ask = "import sys, pip; print(sys.version)"
    try:
        found = subprocess.run(
            [str(VENV / "bin/python"), "-c", ask], capture_output=True, text=True, check=False
        )
    except OSError:
        return False
    return found.returncode == 0 and found.stdout.strip() == sys.version.strip()


def install(extras: list[str]) -> None:
    """Install the checkout, editable, under the constraints; build environments obey them too."""
    pip = [str(VENV / "bin/python"), "-m", "pip", "install", "-v", "--disable-pip-version-check"]
    command = [*pip, "-c", "constraints.txt", "-e", f".[{','.join(extras)}]"]
    # A relative path: pip splits the variable at blanks, which a checkout's path may hold.
    environment = {
        **os.environ,
        "PIP_CONSTRAINT": "constraints.txt",
        "PIP_BUILD_CONSTRAINT": "constraints.txt",
    }
    with LOG.open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        status = follow(process)
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        fail("interrupted; the same command goes on from here.")
    if status != 0:
        explain_failure()


def follow(process: subprocess.Popen[bytes]) -> int:
    """Show how far `process` is, by its log, until it ends. Returns its exit status."""
    progress = Progress()
    with LOG.open(errors="replace") as log:
        while True:
            try:
                status = process.wait(POLL_SECONDS)
            except subprocess.TimeoutExpired:
                progress.show(log.readlines())
            else:
                progress.end()
                return status


class Progress:
    """One line about the latest milestone: rewritten on a terminal, now and then elsewhere."""

    def __init__(self) -> None:
        self.started = self.shown = time.monotonic()
        self.live = sys.stdout.isatty()
        self.doing = "asking for packages"

    def show(self, lines: list[str]) -> None:
        """Take in the log's new `lines`, and show the state and the time that has passed."""
        before = self.doing
        for line in lines:
            found = MILESTONE.match(line)
            if found:
                self.doing = describe(found)
                self.announce(found)
        text = f"    {elapsed(self.started):>6}  {self.doing}"
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\033[K{text[:width]}", end="", flush=True)
        elif self.is_due(before):
            self.shown = time.monotonic()
            print(text, flush=True)

    def announce(self, found: re.Match[str]) -> None:
        """Say beforehand, on a line that stays, that the one long step begins."""
        if (found["build"] or "").startswith("llama"):
            self.end()
            say("compiling llama.cpp for this CPU: some minutes, once, as pip keeps the result")

    def is_due(self, before: str) -> bool:
        """Tell whether a reader of plain lines should get one: a new phase, or a long silence."""
        new_phase = self.doing.partition(" ")[0] != before.partition(" ")[0]
        return new_phase or time.monotonic() - self.shown >= REPEAT_SECONDS

    def end(self) -> None:
        """Leave the terminal on an empty line."""
        if self.live:
            print("\r\033[K", end="", flush=True)


def describe(found: re.Match[str]) -> str:
    """Say in a few words what pip or the compiler is at, the phase first."""
    if found["fetch"]:
        return f"fetching {found['fetch']}"
    if found["step"]:
        return f"compiling llama.cpp {found['step']} {found['object']}"
    if found["install"]:
        return f"installing packages ({len(found['install'].split(', '))})"
    return f"building {found['build']}"


def explain_failure() -> NoReturn:
    """End with the last lines of the log and, when a compiler is missing, with the cure."""
    tail = LOG.read_text(errors="replace").splitlines()[-25:]
    print("\n".join(tail), file=sys.stderr)
    if not all(any(map(shutil.which, names)) for names in (("cc", "gcc", "clang"), ("c++", "g++"))):
        fail(
            "there is no C and C++ compiler, and llama.cpp must be compiled.",
            "On Debian and Ubuntu: apt-get install build-essential",
            "On Fedora: dnf install gcc gcc-c++",
            "(cmake and ninja come from pip by themselves.)",
        )
    fail(f"pip ended with an error; the whole of its output is in {LOG}")


if __name__ == "__main__":
    main(sys.argv[1:])
