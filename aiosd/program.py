"""Finding the program that a spawn names: on the agent path, as a file, or as a command."""

from __future__ import annotations

import difflib
import errno
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path


def resolve_program(
    program: str, agent_path: Sequence[str | Path], cwd: str | Path, search: str | None = None
) -> list[str]:
    """The beginning of the argv that runs `program`; its arguments go behind it.

    A name without a slash is looked for as NAME.py, then as an executable NAME, in each directory
    of the agent path; then, when it ends in .py, in `cwd`; then as a command on `search` (a PATH;
    default the kernel's own). A name with a slash is a file, relative to `cwd`. Python files run
    with the kernel's interpreter, unbuffered, so that their output is logged as it is printed.

    FileNotFoundError says what was looked for where and names the nearest agent, PermissionError
    that a file is there which cannot be executed.
    """
    if not program or "\0" in program:
        raise OSError(errno.EINVAL, "program is empty or holds a NUL: name a file or an agent")
    if "/" in program:
        return _file(Path(cwd) / Path(program).expanduser(), program)
    for directory in agent_path:
        for candidate in (Path(directory) / f"{program}.py", Path(directory) / program):
            if candidate.is_file() and _runs(candidate):
                return _argv(candidate)
    if program.endswith(".py") and (Path(cwd) / program).is_file():
        return _argv(Path(cwd) / program)
    if found := shutil.which(program, path=search):
        return [os.path.abspath(found)]
    raise FileNotFoundError(errno.ENOENT, _not_found(program, agent_path, cwd))


def _file(path: Path, program: str) -> list[str]:
    if path.is_dir():
        raise PermissionError(errno.EACCES, f"{program} is a directory: name a program in it")
    if not path.exists():
        near = _nearest(path.name, _names([path.parent], suffix=True))
        raise FileNotFoundError(errno.ENOENT, f"there is no file {path}{near}")
    if not _runs(path):
        cure = "make it executable (chmod +x) or name it .py"
        raise PermissionError(errno.EACCES, f"{path} is not executable: {cure}")
    return _argv(path)


def _runs(path: Path) -> bool:
    return path.suffix == ".py" or os.access(path, os.X_OK)


def _argv(path: Path) -> list[str]:
    """A file's argv; its path is absolute, because the agent may start elsewhere."""
    absolute = os.path.abspath(path)
    return [sys.executable, "-u", absolute] if path.suffix == ".py" else [absolute]


def _not_found(program: str, agent_path: Sequence[str | Path], cwd: str | Path) -> str:
    places = ", ".join(str(place) for place in agent_path) or "which is empty"
    near = _nearest(program, _names(agent_path, suffix=False))
    here = f", as a file in {cwd}" if program.endswith(".py") else ""
    return (
        f"no program {program}: looked for {program}.py and an executable {program} on the agent "
        f"path ({places}){here}, and for a command on PATH{near}"
    )


def _names(directories: Sequence[str | Path], *, suffix: bool) -> list[str]:
    """What could have been named in these directories, with or without .py."""
    names = set()
    for directory in directories:
        path = Path(directory)
        if path.is_dir():
            for entry in path.iterdir():
                if entry.is_file() and _runs(entry) and not entry.name.startswith("_"):
                    names.add(entry.name if suffix else entry.name.removesuffix(".py"))
    return sorted(names)


def _nearest(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]}?" if close else ""
