"""Commands that start agents and act on them: run nice fork kill renice suspend resume wait."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aiosh import link, offers, signals
from aiosh.arguments import Agent, Agents, Json
from aiosh.tables import print_json

if TYPE_CHECKING:
    from aiosd.abi.process import Started

app = typer.Typer()
UNSTARTED = {errno.ENOENT: 127, errno.EACCES: 126}
"""The shells' exit statuses for a program that isn't there or can't be executed."""
OWN_OPTIONS_FIRST = {"allow_interspersed_args": False}
"""Options after the program's name are the program's."""

Program = Annotated[
    list[str],
    typer.Argument(
        metavar="PROGRAM [ARGS]...",
        help="a file, a name on the agent path, or a command",
        autocompletion=offers.programs,
    ),
]
Named = Annotated[str, typer.Option("--name", "-n", help="name shown by ps")]
Nice = Annotated[int, typer.Option("--nice", min=-20, max=19, help="-20 (urgent) to 19 (patient)")]
Cwd = Annotated[str, typer.Option("--cwd", "-C", help="working directory; default: this one")]
Env = Annotated[
    list[str] | None,
    typer.Option("--env", "-e", metavar="K[=V]", help="add to its environment; K alone: as here"),
]
Detach = Annotated[bool, typer.Option("--detach", "-d", help="print its aid and return at once")]


@app.command(context_settings=OWN_OPTIONS_FIRST)
def run(
    program: Program,
    name: Named = "",
    nice: Nice = 0,
    cwd: Cwd = "",
    env: Env = None,
    detach: Detach = False,
    json: Json = False,
) -> None:
    """Run a program as an agent and follow it: its output, and its exit status.

    Ctrl-C sends it INT (again: TERM, then KILL), Ctrl-Z suspends it. The status is the
    program's own, or 128+n when signal n ended it; 127 when there is no such program, 126 when
    it can't be executed.
    """
    variables = dict(_variable(word) for word in env or [])
    _attend(lambda: spawn(program, name=name, nice=nice, cwd=cwd, env=variables), detach, json)


@app.command("nice", context_settings=OWN_OPTIONS_FIRST)
def nice_(
    program: Program,
    adjustment: Annotated[
        int, typer.Option("--adjustment", "-n", min=-20, max=19, help="nice value")
    ] = 10,
    detach: Detach = False,
    json: Json = False,
) -> None:
    """Run a program as an agent with another nice value (10 unless told)."""
    _attend(lambda: spawn(program, nice=adjustment), detach, json)


def spawn(
    argv: list[str],
    *,
    name: str = "",
    nice: int = 0,
    cwd: str = "",
    env: dict[str, str] | None = None,
) -> Started:
    """Start an agent as this user would: paths are relative to here. Raises OSError, Failure."""
    where = os.path.abspath(os.path.expanduser(cwd)) if cwd else os.getcwd()
    if not os.path.isdir(where):
        raise link.Failure(f"--cwd {where}: there is no such directory")
    words = [_absolute(argv[0]), *argv[1:]]
    with link.kernel() as kernel:
        try:
            return kernel.spawn(words, name=name, nice=nice, cwd=where, env=env or {})
        except OSError as error:
            if error.errno not in UNSTARTED:
                raise
            raise link.Failure(link.sentence(error), UNSTARTED[error.errno]) from error


def _absolute(program: str) -> str:
    """Return a program given by path as an absolute path: the daemon's directory is another."""
    if "/" in program or (program.endswith(".py") and os.path.isfile(program)):
        return os.path.abspath(os.path.expanduser(program))
    return program


def _variable(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not equals:
        if key not in os.environ:
            raise link.Misuse(f"--env {key}: not set here; write {key}=VALUE")
        value = os.environ[key]
    return key, value


def _attend(start: Callable[[], Started], detach: bool, json: bool) -> None:
    if detach:
        started = start()
        print_json(started) if json else print(started.aid)
        return
    from aiosh.follow import follow

    raise typer.Exit(follow(lambda: start().aid, json=json))


@app.command(context_settings=OWN_OPTIONS_FIRST)
def fork(
    agent: Agent,
    argv: Annotated[list[str] | None, typer.Argument(metavar="[PROGRAM [ARGS]...]")] = None,
    name: Named = "",
    json: Json = False,
) -> None:
    """Make a child with a copy of an agent's contexts and working state.

    With a program the child is a new process. Without, the credential printed after the aid is
    what speaks for it.
    """
    with link.kernel() as kernel:
        (aid,) = link.resolve(kernel, [agent])
        words = argv or []
        started = kernel.fork(aid, argv=words[1:] if words[:1] == ["--"] else words, name=name)
    if json:
        print_json(started)
    else:
        print(" ".join(filter(None, (str(started.aid), started.credential))))


@app.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]},
    epilog="Signals by name or number: " + " ".join(signals.MEANINGS),
)
def kill(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-SIGNAL | -s SIGNAL] AGENT... | -l", autocompletion=offers.kill_words
        ),
    ] = None,
    generation: Annotated[
        bool, typer.Option("--generation", help="INT only: end what it generates, not the agent")
    ] = False,
    listing: Annotated[bool, typer.Option("--list", help="list the signals, as -l")] = False,
) -> None:
    """Send a signal to agents: TERM unless told otherwise."""
    words = words or []
    if listing or (words and words[0] in ("-l", "-L")):
        for name, meaning in signals.MEANINGS.items():
            print(f"{signals.number(name):2} {name:4} {meaning}")
        return
    signal, agents = signals.split(words)
    if generation and signal not in ("INT", "TERM"):
        raise link.Misuse("--generation goes with INT only")
    signal = "INT" if generation else signal
    _each(agents, lambda kernel, aid: kernel.kill(aid=aid, signal=signal, generation=generation))


@app.command(context_settings={"ignore_unknown_options": True})
def renice(
    nice: Annotated[int, typer.Argument(min=-20, max=19, help="-20 (urgent) to 19 (patient)")],
    agents: Agents,
) -> None:
    """Change the nice value of agents while they run."""
    _each(agents, lambda kernel, aid: kernel.set_priority(aid=aid, nice=nice))


@app.command()
def suspend(agents: Agents) -> None:
    """Suspend agents: generation stops between two tokens, processes get SIGSTOP."""
    _each(agents, lambda kernel, aid: kernel.suspend_agent(aid=aid))


@app.command()
def resume(agents: Agents) -> None:
    """Resume suspended agents: generation goes on with the very next token."""
    _each(agents, lambda kernel, aid: kernel.resume_agent(aid=aid))


def _each(agents: list[str], deed: Any) -> None:
    """Do a deed to each agent; go on after one that failed, and fail at the end."""
    if not agents:
        raise link.Misuse("name at least one agent, by aid or by name")
    failed = 0
    with link.kernel() as kernel:
        for word in agents:
            try:
                (aid,) = link.resolve(kernel, [word])
                deed(kernel, aid)
            except ConnectionError:
                raise
            except OSError as error:
                failed += 1
                link.complain(link.sentence(error))
            except link.Failure as error:
                failed += 1
                link.complain(str(error))
    if failed:
        raise typer.Exit(1)


@app.command()
def wait(
    agents: Annotated[
        list[str] | None,
        typer.Argument(help="aids or names; none: any child", autocompletion=offers.agents),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", "-t", min=0, help="seconds to wait at most")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="leave the zombies in place")] = False,
    json: Json = False,
) -> None:
    """Wait for agents to end and reap them; the status is that of the last one."""
    ended = []
    with link.kernel() as kernel:
        for aid in link.resolve(kernel, agents or [], ended=True) or [0]:
            status = kernel.wait(aid=aid, timeout=timeout, reap=not keep)
            if status is None:
                raise link.Failure(f"agent {aid} has not ended within {timeout:g} s")
            ended.append(status)
    if json:
        print_json(ended)
    raise typer.Exit(signals.ending(ended[-1].code, ended[-1].signal))
