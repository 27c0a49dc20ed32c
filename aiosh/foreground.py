"""The terminal's foreground: aiosh takes it for itself, as any shell does, and gives it back.

with foreground.taken():
    ...     # Ctrl-C and Ctrl-Z reach this process, and not the script or the make that started it

Without that, Ctrl-Z at `make run` would stop make, and leave two shells at one terminal.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def taken(fd: int = 0) -> Iterator[None]:
    """Be a process group of one's own in a terminal's foreground while the block runs.

    fd: the terminal. Nothing is done where this is a group of its own already, or not in front.
    """
    before = os.getpgrp()
    if before == os.getpid() or _front(fd) != before:
        yield
        return
    os.setpgid(0, 0)
    _put(fd, os.getpid())
    try:
        yield
    finally:
        _put(fd, before)
        with suppress(OSError):  # who started this has gone meanwhile, with all of the group
            os.setpgid(0, before)


def _front(fd: int) -> int | None:
    """Return the group in a terminal's foreground, None for what is no terminal of this process."""
    try:
        return os.tcgetpgrp(fd)
    except OSError:
        return None


def _put(fd: int, group: int) -> None:
    """Put a group into the foreground, from the background too: hence no SIGTTOU meanwhile."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
    try:
        with suppress(OSError):  # the terminal has gone, or the group
            os.tcsetpgrp(fd, group)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
