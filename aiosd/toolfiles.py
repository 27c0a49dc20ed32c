"""Workspaces: the directory in which an agent's tools work, how full it is, and what they left.

    space = Workspaces(Path(state_dir) / "tools")
    folder = space.of("agent:5")            # made when it is first needed
    names = await changed(folder, since)    # files that were written since
    bytes, files = await held(folder)
    await space.clear("agent:5")

What must hold: nothing here follows a link that a tool made; looking through a workspace is bounded
and never blocks the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

MOST_SEEN: Final = 200_000
"""Files and directories that are looked at in one workspace."""
NAMED: Final = 256
"""Files that a call's result names."""
TICK: Final = 0.01
"""Seconds by which a file's time may lag behind the clock: it moves with the timer's interrupt."""


class Held(NamedTuple):
    """What a workspace holds. files: directories too."""

    bytes: int
    files: int

    def beyond(self, most: Held) -> bool:
        """Tell whether that is more."""
        return self.bytes > most.bytes or self.files > most.files


class Workspaces:
    """All workspaces, below one directory."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._made: dict[str, str] = {}  # by subject

    def of(self, subject: str) -> str:
        """Return a subject's workspace, made if there is none."""
        folder = self._made.get(subject)
        if folder is None:
            folder = self._place(subject)
            os.makedirs(folder, mode=0o700, exist_ok=True)
            self._made[subject] = folder
        return folder

    async def clear(self, subject: str) -> None:
        """Delete a subject's workspace."""
        self._made.pop(subject, None)
        await asyncio.to_thread(shutil.rmtree, self._place(subject), True)

    def _place(self, subject: str) -> str:
        return os.path.join(self._root, subject.replace(":", "-"))

    def clear_models(self) -> None:
        """Delete what the hosts of models were lent before the kernel was killed. Blocks."""
        for path in Path(self._root).glob("model-*"):
            shutil.rmtree(path, ignore_errors=True)

    def agents(self) -> list[int]:
        """Return the agents that have one."""
        names = [path.name for path in Path(self._root).glob("agent-*")]
        return [int(name[6:]) for name in names if name[6:].isdecimal()]


async def changed(folder: str, since: float) -> list[str]:
    """Return the files below a folder that were written since, relative to it, by name."""
    return await asyncio.to_thread(_changed, folder, since)


async def held(folder: str) -> Held:
    """Return what a folder holds, as far as it is looked at."""
    return await asyncio.to_thread(_held, folder)


def _changed(folder: str, since: float) -> list[str]:
    names: list[str] = []
    for path, found in _entries(folder):
        if not stat.S_ISREG(found.st_mode):
            continue
        if found.st_mtime >= since - TICK and len(names) < NAMED:
            names.append(os.path.relpath(path, folder))
    return sorted(names)


def _held(folder: str) -> Held:
    total = number = 0
    for _, found in _entries(folder):
        total += found.st_blocks * 512
        number += 1
    return Held(total, number)


def _entries(folder: str) -> Iterator[tuple[str, os.stat_result]]:
    """Give what is below a folder, directories too, up to MOST_SEEN of it."""
    waiting, left = [folder], MOST_SEEN
    while waiting:
        try:
            with os.scandir(waiting.pop()) as place:
                for entry in place:
                    if not left:
                        return
                    left -= 1
                    with contextlib.suppress(FileNotFoundError):  # it has gone meanwhile
                        found = entry.stat(follow_symlinks=False)
                        if stat.S_ISDIR(found.st_mode):
                            waiting.append(entry.path)
                        yield entry.path, found
        except OSError:
            continue  # what can't be looked into: gone, or closed to us
