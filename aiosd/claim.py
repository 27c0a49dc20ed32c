"""What only one daemon may have: the lock on a directory, and the socket's path.

What must hold: two daemons never work on one directory; a socket's path always leads to a daemon
that answers or to nothing; the socket is never open to more users than it should be, not even for
a moment.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import socket
import stat
from typing import Final

LOCK: Final = "aiosd.lock"


class Lock:
    """An exclusive lock on a directory, held until `release` or the end of the process."""

    def __init__(self, directory: str) -> None:
        """Take the lock. Raises BlockingIOError naming the pid of the daemon that has it."""
        self._path = os.path.join(directory, LOCK)
        while not self._take():
            pass  # its holder took the file away while we waited for nothing: begin again
        os.truncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def _take(self) -> bool:
        """Lock the file; False when it is no longer the one that the path names."""
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(self._fd).st_ino == os.stat(self._path).st_ino:
                return True
        except FileNotFoundError:
            pass
        except BlockingIOError:
            pid = os.read(self._fd, 32).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise BlockingIOError(
                errno.EAGAIN,
                f"another aiosd (pid {pid}) runs in {os.path.dirname(self._path)}; "
                "stop it, or give this one other directories",
            ) from None
        os.close(self._fd)
        return False

    def release(self) -> None:
        """Let others have it; the file goes first, while nobody else can hold it."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        os.close(self._fd)


class Door:
    """The listening socket and its path."""

    def __init__(self, path: str, group: str = "") -> None:
        """Bind the socket, mode 0600, or 0660 and the group's, and listen.

        Made under another name and moved into place, over a stale one. From then on connections
        queue up until the server takes them. Raises FileExistsError
        when the path is something else than a socket, BlockingIOError when somebody answers there.
        """
        self.path = path
        _check_free(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._bind(group)
        except BaseException:
            self.socket.close()
            raise
        self._inode = os.stat(path).st_ino

    def _bind(self, group: str) -> None:
        directory = os.open(os.path.dirname(self.path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        # Through the descriptor's name: however long the directory's, it fits into sun_path.
        temporary = f"/proc/self/fd/{directory}/.aiosd-{os.getpid()}"
        before = os.umask(0o177)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            self.socket.bind(temporary)
            if group:
                os.chown(temporary, -1, grp.getgrnam(group).gr_gid)
                os.chmod(temporary, 0o660)
            self.socket.listen(socket.SOMAXCONN)
            os.rename(temporary, self.path)
        finally:
            os.umask(before)
            os.close(directory)

    def remove(self) -> None:
        """Take the socket's path away, unless it has become somebody else's."""
        with contextlib.suppress(FileNotFoundError):
            if os.stat(self.path).st_ino == self._inode:
                os.unlink(self.path)


def _check_free(path: str) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise FileExistsError(
            errno.EEXIST, "is in the socket's place and is no socket; remove it", path
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return  # left behind by a daemon that was killed
        except TimeoutError:
            pass
        raise BlockingIOError(errno.EAGAIN, "a program listens here already; stop it", path)
