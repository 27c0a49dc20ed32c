"""What only one daemon may have: the lock and the socket."""

from __future__ import annotations

import grp
import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from aiosd.claim import LOCK, Door, Lock


def test_a_lock_has_one_holder_and_leaves_no_file(runtime_dir: Path) -> None:
    lock = Lock(str(runtime_dir))
    with pytest.raises(BlockingIOError, match=rf"another aiosd \(pid {os.getpid()}\)"):
        Lock(str(runtime_dir))
    lock.release()
    assert not (runtime_dir / LOCK).exists()
    Lock(str(runtime_dir)).release()


def test_a_lock_file_left_by_the_dead_is_no_lock(runtime_dir: Path) -> None:
    (runtime_dir / LOCK).write_text("4711\n")
    lock = Lock(str(runtime_dir))
    assert (runtime_dir / LOCK).read_text() == f"{os.getpid()}\n"
    lock.release()


def test_there_is_never_more_than_one_holder(runtime_dir: Path) -> None:
    """Takers race with the releaser's unlink: none may hold a file that is no longer there."""
    holders, most, taken = 0, 0, 0
    guard = threading.Lock()

    def contend() -> None:
        nonlocal holders, most, taken
        for _ in range(300):
            try:
                lock = Lock(str(runtime_dir))
            except BlockingIOError:
                continue
            with guard:
                holders += 1
                taken += 1
                most = max(most, holders)
            with guard:
                holders -= 1
            lock.release()

    threads = [threading.Thread(target=contend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert taken
    assert most == 1


def test_a_directory_with_a_long_name_can_have_the_socket(runtime_dir: Path) -> None:
    """The path that clients use must fit; the temporary one is reached another way."""
    deep = runtime_dir / ("x" * (107 - len(str(runtime_dir)) - 3))
    deep.mkdir()
    door = Door(str(deep / "s"))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(door.path)
    door.remove()
    door.socket.close()
    assert list(deep.iterdir()) == []
    deep.rmdir()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to give a file to a group")
def test_a_group_gets_in_and_nobody_else(runtime_dir: Path) -> None:
    group = grp.getgrall()[-1]
    door = Door(str(runtime_dir / "s"), group.gr_name)
    found = os.stat(door.path)
    assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, group.gr_gid)
    door.remove()
    door.socket.close()


def test_a_socket_that_is_no_longer_ours_is_not_removed(runtime_dir: Path) -> None:
    path = runtime_dir / "s"
    door = Door(str(path))
    path.rename(runtime_dir / "old")  # keeps the inode from being given again
    path.write_text("another's")
    door.remove()
    door.socket.close()
    assert path.read_text() == "another's"
    path.unlink()
    (runtime_dir / "old").unlink()
