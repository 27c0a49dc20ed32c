"""Model files that llama.cpp must not be shown: each gets its own clear answer."""

from __future__ import annotations

import errno
import struct
from pathlib import Path

import pytest

from aiosd.engine import gguf


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def model(version: int = 3, tensors: int = 1, data: int = 64) -> bytes:
    """A GGUF file with one of each kind of metadata and F32 tensors of 16 elements."""
    pairs = [
        text(b"general.name") + struct.pack("<I", 8) + text(b"tiny"),
        text(b"general.alignment") + struct.pack("<II", 4, 64),
        text(b"numbers") + struct.pack("<IIQ3I", 9, 4, 3, 1, 2, 3),
        text(b"words") + struct.pack("<IIQ", 9, 8, 2) + text(b"one") + text(b"two"),
        text(b"yes") + struct.pack("<IB", 7, 1),
    ]
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, len(pairs)) + b"".join(pairs)
    for i in range(tensors):
        head += text(b"t%d" % i) + struct.pack("<IQIQ", 1, 16, 0, 64 * i)
    return head + b"\0" * (-len(head) % 64) + b"\1" * data


def answer(path: Path) -> tuple[int | None, str]:
    with pytest.raises(OSError, match=str(path)) as refused:
        gguf.check(str(path))
    assert refused.value.strerror is not None
    return refused.value.errno, refused.value.strerror


def test_a_whole_file_passes(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(model(tensors=3, data=192))
    gguf.check(str(path))


@pytest.mark.parametrize(
    ("content", "number", "word"),
    [
        (b"", errno.ENOEXEC, "empty"),
        (b"#!/bin/sh\necho no\n", errno.ENOEXEC, "not a GGUF"),
        (model(version=1), errno.ENOEXEC, "version 1"),
        (model(tensors=0), errno.ENOEXEC, "no tensors"),
        (model(data=63), errno.EIO, "truncated"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1), errno.ENOEXEC, "damaged"),
        (model()[:-64].replace(b"tiny", b"tin\xff")[:40], errno.EIO, "header"),
    ],
)
def test_foreign_and_damaged_files(tmp_path: Path, content: bytes, number: int, word: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    found, sentence = answer(path)
    assert found == number
    assert word in sentence


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    path, whole = tmp_path / "m.gguf", model(tensors=2, data=128)
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert answer(path)[0] in (errno.EIO, errno.ENOEXEC)


def test_missing_files_and_directories(tmp_path: Path) -> None:
    assert answer(tmp_path / "none.gguf")[0] == errno.ENOENT
    assert answer(tmp_path)[0] == errno.EISDIR
