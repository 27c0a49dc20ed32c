"""Snapshot files: what was not written whole, or comes from elsewhere, is refused."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from ctypes import memmove, string_at
from pathlib import Path

import pytest

from aiosd.engine.protocol import DECODE, PREFILL, Goal, Run, Sampling
from aiosd.engine.snapshot import PRELUDE, VERSION, Record, SnapshotFiles, read_layout, verify

GOAL = Goal(2, 10, Sampling(0.8, 0.9, 40, 0.0, 7), ["stop"])
RECORD = Record(5, [11, 12, 13], [Run(PREFILL, 0, 2), Run(DECODE, 2, 3)], GOAL, 1, 1234.5)


def write(files: SnapshotFiles, path: Path, data: bytes) -> int:
    def fill(address: int, size: int) -> int:
        memmove(address, data, len(data))
        return len(data)

    return files.write(str(path), RECORD, len(data), fill)


def accept(record: Record) -> None:
    assert record == RECORD


def read(files: SnapshotFiles, path: Path, check: Callable[[Record], None] = accept) -> bytes:
    found: list[bytes] = []

    def take(address: int, size: int) -> int:
        found.append(string_at(address, size))
        return size

    files.read(str(path), check, take)
    return found[0]


def refusal(files: SnapshotFiles, path: Path) -> int | None:
    """The errno of a file that is refused, by whatever reads it, before its payload is used."""
    with pytest.raises(OSError, match=r".") as refused:
        read(files, path)
    assert refused.value.filename == str(path)
    with pytest.raises(OSError, match=r".") as unverified:
        verify(path)
    assert unverified.value.errno == refused.value.errno
    return refused.value.errno


@pytest.fixture(params=["a.kv", "a.snapshot"], ids=["buffer", "file"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


def test_a_file_says_what_it_holds(path: Path) -> None:
    files = SnapshotFiles("core", 2, ("q8_0", "f16"))
    used = write(files, path, b"x" * 5000)
    layout = verify(path)
    assert layout == read_layout(path)
    assert (layout.used, layout.size, layout.offset % 4096) == (used, 5000, 0)
    assert layout.header.fingerprint == "core"
    assert layout.header.kv_types == ("q8_0", "f16")
    assert layout.header.record == RECORD


def test_a_file_is_read_back_and_used_again(path: Path) -> None:
    files = SnapshotFiles("core", 2)
    write(files, path, b"x" * 5000)
    inode, size = path.stat().st_ino, path.stat().st_size
    write(files, path, b"short")
    assert read(files, path) == b"short"
    assert (path.stat().st_ino, path.stat().st_size) == (inode, size)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read(SnapshotFiles("core", 2), path) == b"short"


def test_a_file_that_was_replaced_is_mapped_anew(tmp_path: Path) -> None:
    files, path, other = SnapshotFiles("core", 2), tmp_path / "a.kv", tmp_path / "b.kv"
    write(files, path, b"old")
    write(SnapshotFiles("core", 2), other, b"new")
    os.replace(other, path)
    assert read(files, path) == b"new"
    path.unlink()
    assert refusal(files, path) == errno.ENOENT


def test_more_files_than_mappings(tmp_path: Path) -> None:
    files = SnapshotFiles("core", 2)
    paths = [tmp_path / f"{i}.kv" for i in range(6)]
    for i, path in enumerate(paths):
        write(files, path, bytes([i]) * 100)
    assert [read(files, path)[0] for path in paths] == list(range(6))
    files.close()


def test_foreign_unwanted_and_half_written_files_are_refused(path: Path) -> None:
    files = SnapshotFiles("core", 2)
    write(files, path, b"payload")
    with pytest.raises(OSError, match="another model") as refused:
        read(SnapshotFiles("another core", 2), path)
    assert refused.value.errno == errno.ESTALE

    def unwanted(record: Record) -> None:
        raise OSError(errno.ESTALE, "other tokens", str(path))

    with pytest.raises(OSError, match="other tokens"):
        read(files, path, unwanted)
    whole = path.read_bytes()
    newer = whole[:8] + (VERSION + 1).to_bytes(4, "little") + whole[12:]
    blank = bytes(PRELUDE.size) + whole[PRELUDE.size :]
    for damaged in (b"", whole[:20], whole[:-1], blank, b"GGUF" + whole[4:], newer):
        path.unlink()
        path.write_bytes(damaged)
        assert refusal(files, path) == errno.ESTALE
    path.write_bytes(newer)
    with pytest.raises(OSError, match="a newer aios"):
        read(files, path)
    with pytest.raises(OSError, match="copied out"):
        files.write(str(path), RECORD, 10, lambda address, size: 0)
    assert refusal(files, path) == errno.ESTALE


def test_no_turned_bit_goes_unnoticed(path: Path) -> None:
    files, rng = SnapshotFiles("core", 2), random.Random(1)
    write(files, path, rng.randbytes(20_000))
    whole = path.read_bytes()
    layout = read_layout(path)
    head = PRELUDE.size + PRELUDE.unpack(whole[: PRELUDE.size])[2]
    meant = [*range(48), *range(PRELUDE.size, head)]
    places = [*meant, *rng.sample(range(layout.offset, layout.used), 60)]
    for place in places:
        turned = bytearray(whole)
        turned[place] ^= 1 << rng.randrange(8)
        path.write_bytes(turned)
        assert refusal(files, path) in (errno.EIO, errno.ESTALE)
    path.write_bytes(whole)
    assert len(read(files, path)) == 20_000


def test_a_payload_that_is_not_accepted_is_an_error(path: Path) -> None:
    files = SnapshotFiles("core", 2)
    write(files, path, b"payload")
    with pytest.raises(OSError, match="refused") as refused:
        files.read(str(path), accept, lambda address, size: 0)
    assert refused.value.errno == errno.EIO


def test_a_file_that_cant_be_written_to_can_still_be_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(SnapshotFiles("core", 2), path, b"x" * 10_000)
    real = os.open

    def read_only(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_RDWR:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", read_only)
    files = SnapshotFiles("core", 2)
    assert read(files, path) == b"x" * 10_000
    with pytest.raises(OSError, match="Read-only"):
        write(files, path, b"y")


def test_a_mapped_file_that_is_cut_short_is_refused_and_can_be_written_again(path: Path) -> None:
    files = SnapshotFiles("core", 2)
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
    files, path = SnapshotFiles("core", 2), tmp_path / "a.kv"
    write(files, path, b"x" * 1000)

    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    for target in (path, tmp_path / "b.kv"):
        with pytest.raises(OSError, match="No space"):
            write(files, target, b"y" * 100_000)
    assert read(files, path) == b"x" * 1000
    write(files, path, b"z")  # there is room for a short one
    assert read(files, path) == b"z"
