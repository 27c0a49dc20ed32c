"""Secrets of tools: names and values that the kernel has, and a tool gets by declaring the name.

    secrets = Secrets(lambda: config.tools.secrets_file, os.environ)
    values = secrets.of(tool)             # OSError(ENOKEY) that says where the missing one goes
    text = strike(text, values)           # what an agent or the audit log may see

A value comes from the first of these that has it: the variable AIOS_SECRET_NAME, the systemd
credential `aios-secret-NAME`, the file (TOML, NAME = "value"), which is read again when it changed.

What must hold: no value is ever logged or shown; a file that others could read is refused.
"""

from __future__ import annotations

import errno
import os
import stat
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from aiosd.declaration import Declaration

VARIABLE: Final = "AIOS_SECRET_"
CREDENTIAL: Final = "aios-secret-"
FILE_MAX: Final = 1 << 20
STRUCK: Final = "[secret]"
SHORTEST: Final = 4
"""Characters of a value that is struck out of texts; shorter ones would be found everywhere."""


class Secrets:
    """The store. file: where it is now. environ: of the kernel."""

    def __init__(self, file: Callable[[], str], environ: Mapping[str, str]) -> None:
        self._file = file
        self._environ = environ
        self._read: tuple[Any, dict[str, str]] = (None, {})

    def of(self, tool: Declaration) -> dict[str, str]:
        """Return what a tool declares to need, by name. Blocks for a small file at most."""
        return {name: self.find(name, f"tool {tool.name}") for name in tool.needs.secrets}

    def find(self, name: str, who: str) -> str:
        """Return the value of a name; OSError(ENOKEY) that says who needs it, and where it goes."""
        if value := self._environ.get(VARIABLE + name):
            return value
        folder = self._environ.get("CREDENTIALS_DIRECTORY")
        if folder:
            credential = Path(folder, CREDENTIAL + name)
            if credential.is_file():
                return credential.read_text(encoding="utf-8").rstrip("\n")
        if value := self._of_file().get(name):
            return value
        raise OSError(
            errno.ENOKEY,
            f'{who}: needs the secret {name}: put {name} = "..." into {self._file()} (mode '
            f"0600), or set {VARIABLE}{name} for aiosd",
        )

    def _of_file(self) -> dict[str, str]:
        path = self._file()
        try:
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return {}
        try:
            found = os.fstat(file)
            print = (path, found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode)
            if print != self._read[0]:
                _check(found, path)
                self._read = (print, _parse(os.read(file, FILE_MAX), path))
        finally:
            os.close(file)
        return self._read[1]


def _check(found: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError(
            errno.EPERM, f"{path}: secrets must be ours alone: a plain file, chmod 0600"
        )


def _parse(data: bytes, path: str) -> dict[str, str]:
    try:
        table = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):  # its message would show what is in it
        raise OSError(errno.EINVAL, f'{path}: is no TOML; write NAME = "value"') from None
    if wrong := [name for name, value in table.items() if not isinstance(value, str)]:
        raise OSError(errno.EINVAL, f'{path}: {wrong[0]}: write {wrong[0]} = "value"')
    return table


def strike(text: str, values: Iterable[str]) -> str:
    """Return a text without these values."""
    for value in values:
        if len(value) >= SHORTEST and value in text:
            text = text.replace(value, STRUCK)
    return text


def strike_all(value: Any, values: Iterable[str]) -> Any:
    """Return a JSON value with these values struck out of every text in it."""
    if isinstance(value, str):
        return strike(value, values)
    if isinstance(value, list):
        return [strike_all(each, values) for each in value]
    if isinstance(value, dict):
        return {strike(str(name), values): strike_all(each, values) for name, each in value.items()}
    return value
