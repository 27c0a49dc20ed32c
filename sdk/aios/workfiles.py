"""Which files of a workspace a call has written: a look before it, and one after it.

A walk is bounded, since a workspace may hold a tool's whole virtual environment: past MOST files
or DEPTH directories the rest is not looked at. Symbolic links are not followed. Files that another
call of the same agent writes at the same time count as well.
"""

from __future__ import annotations

import os
from typing import Final

MOST: Final = 10_000
DEPTH: Final = 16

Survey = dict[str, tuple[int, int, int]]
"""Path relative to the workspace -> inode, size, time of the last change."""


def survey(workspace: str) -> Survey:
    """Look at a workspace's regular files; an empty name, or one that is gone, has none."""
    found: Survey = {}
    left = [(workspace, "", 0)] if workspace else []
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
    return found


def changed(before: Survey, after: Survey) -> list[str]:
    """Return the files that are new or different, in order."""
    return sorted(name for name, state in after.items() if before.get(name) != state)


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
