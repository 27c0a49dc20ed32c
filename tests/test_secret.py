"""The key of watermarks: made once, for its owner alone, and not guessed at when it is damaged."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from aiosd import secret


def test_a_key_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    key = secret.load(tmp_path)
    assert len(key) == 32 and secret.load(tmp_path) == key
    [path] = tmp_path.iterdir()
    assert path.name == "watermark.key" and path.stat().st_mode & 0o777 == 0o600


def test_a_writer_that_was_killed_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "watermark.new").write_bytes(b"half")
    assert len(secret.load(tmp_path)) == 32
    assert [path.name for path in tmp_path.iterdir()] == ["watermark.key"]


def test_a_damaged_key_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "watermark.key").write_bytes(b"short")
    with pytest.raises(OSError, match="restore it") as found:
        secret.load(tmp_path)
    assert found.value.errno == errno.EBADMSG
