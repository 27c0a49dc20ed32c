"""Python programs and shell commands that an agent writes, run in its workspace.

They run in the tool's sandbox: without network, with the files of the workspace and of the system,
and with nothing of the kernel's. See `running` for how they end.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated, Final

from aios.tools import BadArguments, Limits, Meta, tool

from .running import Ran, run

KEPT: Final = 100_000
"""Bytes of stdout, and of stderr, that a call gives."""
LIMITS: Final[Limits] = {"time": 130, "output": 2 << 20}

Source = Annotated[str, Meta(min_length=1, max_length=100_000)]
Seconds = Annotated[float, Meta(gt=0, le=120)]


@tool(limits=LIMITS)
def python_exec(code: Source, stdin: str = "", timeout: Seconds = 30) -> Ran:
    """Run a Python program in the workspace and give what it printed.

    code: the whole program; print what is wanted
    stdin: what the program reads
    timeout: seconds after which it is ended
    """
    with tempfile.TemporaryDirectory(prefix="python-") as directory:
        program = Path(directory, "program.py")
        program.write_text(code, "utf-8", errors="surrogatepass")
        argv = [sys.executable, "-s", "-B", "-X", "utf8", str(program)]
        return run(argv, stdin=stdin, timeout_s=timeout, limit=KEPT)


@tool(limits=LIMITS)
def shell_exec(command: Source, stdin: str = "", timeout: Seconds = 30) -> Ran:
    """Run a command of the shell (sh) in the workspace and give what it printed.

    command: one or more lines of a shell script; what it leaves running is ended with it
    stdin: what the command reads
    timeout: seconds after which it is ended
    """
    if "\0" in command:
        raise BadArguments("command holds a NUL")
    try:
        return run(["/bin/sh", "-c", command], stdin=stdin, timeout_s=timeout, limit=KEPT)
    except (OSError, UnicodeEncodeError) as error:
        raise BadArguments(f"the command can't be run: {error}") from None
