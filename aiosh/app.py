"""The one app and its two doors: `main_ctl` is aiosctl, `main_shell` is aiosh.

Both run commands through `execute`, which turns whatever a command raises into one sentence on
stderr and an exit status: 0 ok, 1 failed, 2 usage, 125 the daemon can't be reached.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from typing import Annotated, Any, Final

import typer

from aiosh import link
from aiosh.words import lighten

NAME: Final = "aiosctl"

# Typer brings click along inside itself or depends on it, by version: this finds the class of
# "a mistake in the command line" in either.
ClickException: type[Exception] = typer.BadParameter.__mro__[2]


PARTS: Final = {
    "processes": ("run", "nice", "fork", "kill", "renice", "suspend", "resume", "wait"),
    "ps": ("ps",),
    "top": ("top",),
    "output": ("logs", "attach", "watch"),
    "history": ("history",),
    "cores": ("cores", "route", "models", "sched"),
    "contexts": ("mem", "ctx", "snapshot", "restore"),
    "store": ("store",),
    "rights": ("grant", "revoke", "grants", "approve", "audit"),
    "quota": ("quota",),
    "tools": ("tools",),
    "beside": ("mcp", "spans"),
    "gateway": ("gateway",),
    "simulate": ("simulate",),
    "system": ("info", "metrics", "watermark", "syscall", "man"),
    "demo": ("demo",),
}
"""The commands by the module that holds them: to run one, only its module is loaded."""


def build(parts: Iterable[str] = PARTS) -> typer.Typer:
    """Return the app with the commands of some modules; with all unless told."""
    app = typer.Typer(
        name=NAME,
        help="Drive aiosd: run agents, watch them, change how they are scheduled.",
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    for part in parts:
        app.add_typer(import_module(f"aiosh.{part}").app)
    return app


def _version(wanted: bool) -> None:
    """Print the version of the installed distribution and leave, where that is asked for."""
    if not wanted:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        print(f"aios {version('aios')}")
    except PackageNotFoundError:
        print("aios, not installed")
    raise typer.Exit


def _options(
    socket: Annotated[
        str, typer.Option("--socket", help="aiosd's socket", envvar="AIOS_SOCKET", metavar="PATH")
    ] = "",
    version: Annotated[
        bool, typer.Option("--version", help="print the version", callback=_version, is_eager=True)
    ] = False,
) -> None:
    if socket:
        os.environ["AIOS_SOCKET"] = os.path.abspath(socket)


@cache
def group(part: str = "") -> Any:
    """Return the app as the command group that typer makes of it: one module's, or all."""
    return lighten(typer.main.get_command(build([part] if part else PARTS)))


def _part(words: list[str]) -> str:
    """Return the module of the command that is called, "" where that takes knowing them all."""
    for part, commands in PARTS.items():
        if words and words[0] in commands:
            return part
    return ""


def _spelled(words: list[str]) -> list[str]:
    """Return a command as we have it: `sched simulate` and `sched set POLICY` are two words."""
    if words[:2] == ["sched", "simulate"]:
        return words[1:]
    if words[:2] == ["sched", "set"] and len(words) > 2:
        return ["sched", *words[2:]]
    return words


def execute(words: list[str], name: str = NAME) -> int:
    """Run one command and return its exit status; messages go to stderr after `name:`."""
    words, link.door = _spelled(words), name
    try:
        commands = group(_part(words))
        with commands.make_context(name, words) as context:
            commands.invoke(context)
        sys.stdout.flush()
    except typer.Exit as done:
        return _flushed(done.exit_code)
    except ClickException as error:
        return complain(name, getattr(error, "format_message", error.__str__)(), _status(error))
    except (KeyboardInterrupt, typer.Abort):
        link.below_the_key()
        return 130
    except link.Failure as error:
        return complain(name, str(error), error.status)
    except BrokenPipeError:
        return _reader_gone()
    except ConnectionError as error:
        return complain(name, link.sentence(error), 125)
    except OSError as error:
        return complain(name, link.sentence(error), 1)
    return 0


def _status(error: Exception) -> int:
    return int(getattr(error, "exit_code", 2))


def _flushed(status: int) -> int:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return _reader_gone()
    return status


def _reader_gone() -> int:
    """What reads our output has gone: end as if by SIGPIPE, with nothing left to flush."""
    if sys.stdout is sys.__stdout__:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
    return 128 + 13


def complain(name: str, sentence: str, status: int) -> int:
    """Print a message to stderr as `name: sentence` and return the status.

    sentence: "" where all was said already, as by the help that a group of commands alone prints.
    """
    sentence = sentence.strip()
    if not sentence:
        return status
    known = sentence[:1].lower() + sentence[1:] if sentence[1:2].islower() else sentence
    print(f"{name}: {known}", file=sys.stderr)
    return status


def main_ctl() -> None:
    """Run aiosctl: one command, given as arguments."""
    words = sys.argv[1:]
    if "_AIOSCTL_COMPLETE" in os.environ:
        group().main(prog_name=NAME)
    if not words:
        execute(["--help"])
        sys.exit(2)
    sys.exit(execute(words))


def main_shell() -> None:
    """Run aiosh: a prompt on a terminal, else the script in a file, -c or stdin."""
    from aiosh.shell import main

    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    main_ctl()
