"""Snapshot files: what was not written whole, or comes from elsewhere, is refused."""

from __future__ import annotations

import errno
import os
from ctypes import memmove, string_at
from pathlib import Path

import pytest

from aiosd.engine.snapshot import HEADER, SnapshotFiles


def write(files: SnapshotFiles, path: Path, data: bytes, kv: int = 3) -> int:
    def fill(address: int, size: int) -> int:
        memmove(address, data, len(data))
        return len(data)

    return files.write(str(path), kv, len(data), fill)


def read(files: SnapshotFiles, path: Path, kv: int = 3) -> bytes:
    found: list[bytes] = []

    def take(address: int, size: int) -> int:
        found.append(string_at(address, size))
        return size

    files.read(str(path), kv, take)
    return found[0]


def refusal(files: SnapshotFiles, path: Path, kv: int = 3) -> int | None:
    with pytest.raises(OSError, match=r".") as refused:
        read(files, path, kv)
    return refused.value.errno


def test_a_file_is_read_back_and_used_again(tmp_path: Path) -> None:
    files, path = SnapshotFiles("core", 2), tmp_path / "a"
    assert write(files, path, b"x" * 5000) == HEADER.size + 5000
    inode, size = path.stat().st_ino, path.stat().st_size
    write(files, path, b"short")
    assert read(files, path) == b"short"
    assert (path.stat().st_ino, path.stat().st_size) == (inode, size)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read(SnapshotFiles("core", 2), path) == b"short"


def test_a_file_that_was_replaced_is_mapped_anew(tmp_path: Path) -> None:
    files, path, other = SnapshotFiles("core", 2), tmp_path / "a", tmp_path / "b"
    write(files, path, b"old")
    write(SnapshotFiles("core", 2), other, b"new")
    os.replace(other, path)
    assert read(files, path) == b"new"
    path.unlink()
    assert refusal(files, path) == errno.ENOENT


def test_more_files_than_mappings(tmp_path: Path) -> None:
    files = SnapshotFiles("core", 2)
    paths = [tmp_path / str(i) for i in range(6)]
    for i, path in enumerate(paths):
        write(files, path, bytes([i]) * 100)
    assert [read(files, path)[0] for path in paths] == list(range(6))
    files.close()


def test_foreign_damaged_and_half_written_files_are_refused(tmp_path: Path) -> None:
    files, path = SnapshotFiles("core", 2), tmp_path / "a"
    write(files, path, b"payload")
    assert refusal(SnapshotFiles("another core", 2), path) == errno.ESTALE
    assert refusal(files, path, kv=4) == errno.ESTALE
    whole = path.read_bytes()
    for damaged in (b"", whole[:20], whole[:-1], b"\0" * len(whole), b"GGUF" + whole[4:]):
        path.unlink()
        path.write_bytes(damaged)
        assert refusal(files, path) == errno.ESTALE
    with pytest.raises(OSError, match="copied out"):
        files.write(str(path), 3, 10, lambda address, size: 0)
    assert refusal(files, path) == errno.ESTALE


def test_a_payload_that_is_not_accepted_is_an_error(tmp_path: Path) -> None:
    files, path = SnapshotFiles("core", 2), tmp_path / "a"
    write(files, path, b"payload")
    with pytest.raises(OSError, match="refused") as refused:
        files.read(str(path), 3, lambda address, size: 0)
    assert refused.value.errno == errno.EIO


def test_a_mapped_file_that_is_cut_short_is_refused_and_can_be_written_again(
    tmp_path: Path,
) -> None:
    files, path = SnapshotFiles("core", 2), tmp_path / "a"
    for length in (0, 20, 4096):
        write(files, path, b"x" * 100_000)
        os.truncate(path, length)
        assert refusal(files, path) == errno.ESTALE
        os.truncate(path, length)
        write(files, path, b"y" * 100_000)
        assert read(files, path) == b"y" * 100_000


def test_a_full_file_system_is_an_error_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, path = SnapshotFiles("core", 2), tmp_path / "a"
    write(files, path, b"x" * 1000)

    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    for target in (path, tmp_path / "b"):
        with pytest.raises(OSError, match="No space"):
            write(files, target, b"y" * 100_000)
    assert read(files, path) == b"x" * 1000
    assert write(files, path, b"z") == HEADER.size + 1  # there is room for a short one
