"""Which files of a workspace a call has written: a look before it, and one after it.

    workspace.begin(directory)
    ...                                 # the call
    names = workspace.changed()

A walk is bounded, since a workspace may hold a tool's whole virtual environment: past MOST files
or DEPTH directories the rest is not looked at. Symbolic links are not followed. Files that another
call of the same agent writes at the same time count as well.
"""

from __future__ import annotations

import os
import time
from typing import Final

MOST: Final = 10_000
DEPTH: Final = 16
TICK_NS: Final = 20_000_000
"""Nanoseconds by which a file's time may lag behind the clock: it moves with the timer."""

Survey = dict[str, tuple[int, int, int]]
"""Path relative to the workspace -> inode, size, time of the last change."""


class Workspace:
    """The directory that calls work in.

    Most tools leave no files, so most workspaces are empty and stay so: then the directory's own
    time says that nothing was made in it, as long as that time is older than the clock's tick.
    """

    def __init__(self) -> None:
        self._path = ""
        self._before: Survey = {}
        self._empty = 0  # the directory's time when it was seen to be empty, 0: it was not

    def begin(self, path: str) -> None:
        """Look at a workspace before a call."""
        if path != self._path:
            self._path, self._empty = path, 0
        self._before = self._look()

    def changed(self) -> list[str]:
        """Return the files that are new or different since `begin`, in order."""
        before, after = self._before, self._look()
        return sorted(name for name, state in after.items() if before.get(name) != state)

    def _look(self) -> Survey:
        if not self._path:
            return {}
        try:
            changed = os.stat(self._path).st_mtime_ns
        except OSError:
            return {}  # gone meanwhile
        settled = changed < time.time_ns() - TICK_NS
        if settled and changed == self._empty:
            return {}
        found, entries = survey(self._path)
        self._empty = 0 if entries or not settled else changed
        return found


def survey(workspace: str) -> tuple[Survey, int]:
    """Look at a workspace's regular files; return them, and how many entries it has at all."""
    found: Survey = {}
    left = [(workspace, "", 0)]
    seen = 0
    while left and seen < MOST:
        directory, prefix, depth = left.pop()
        try:
            entries = os.scandir(directory)
        except OSError:
            continue  # gone meanwhile, or not ours to read
        with entries:
            for entry in entries:
                seen += 1
                name = prefix + entry.name
                if entry.is_dir(follow_symlinks=False):
                    if depth < DEPTH:
                        left.append((entry.path, name + "/", depth + 1))
                elif entry.is_file(follow_symlinks=False) and _is_text(name):
                    found |= _state(name, entry)
    return found, seen


def _state(name: str, entry: os.DirEntry[str]) -> Survey:
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return {}
    return {name: (status.st_ino, status.st_size, status.st_mtime_ns)}


def _is_text(name: str) -> bool:
    """Tell whether a name can be said in JSON; others exist, and are passed over."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
