"""Workspaces: the directory in which an agent's tools work, how full it is, and what they left.

    space = Workspaces(Path(state_dir) / "tools")
    folder = space.of("agent:5")            # made when it is first needed
    names = await changed(folder, since)    # files that were written since
    await space.clear("agent:5")

What must hold: nothing here follows a link that a tool made; looking through a workspace is bounded
and never blocks the event loop.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

MOST: Final = 20_000
"""Files that are looked at in one workspace."""
NAMED: Final = 256
"""Files that a call's result names."""
TICK: Final = 0.01
"""Seconds by which a file's time may lag behind the clock: it moves with the timer's interrupt."""


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


async def size(folder: str) -> int:
    """Return the bytes that the files below a folder take; the most, when there are too many."""
    return await asyncio.to_thread(_size, folder)


def _changed(folder: str, since: float) -> list[str]:
    names: list[str] = []
    for path, found in _files(folder):
        if found.st_mtime >= since - TICK and len(names) < NAMED:
            names.append(os.path.relpath(path, folder))
    return sorted(names)


def _size(folder: str) -> int:
    total = number = 0
    for _, found in _files(folder):
        total += found.st_blocks * 512
        number += 1
    return total if number < MOST else 1 << 62


def _files(folder: str) -> Iterator[tuple[str, os.stat_result]]:
    left = MOST
    for place, _, names in os.walk(folder, followlinks=False):
        for name in names:
            path = os.path.join(place, name)
            try:
                found = os.lstat(path)
            except OSError:
                continue
            left -= 1
            if left < 0:
                return
            if stat.S_ISREG(found.st_mode):
                yield path, found
