"""What probes found, kept for every kernel of the user."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aiosd.verdicts import LARGEST, MOST, Verdicts


def files(place: Path) -> list[Path]:
    return sorted(place.glob("*.json"))


def test_another_kernel_finds_what_one_has_kept(tmp_path: Path) -> None:
    place = tmp_path / "cache" / "verdicts"
    assert Verdicts(place).find("a") == ""
    Verdicts(place).keep("a", "exact")
    Verdicts(place).keep("b", "not")
    assert [Verdicts(place).find(key) for key in "abc"] == ["exact", "not", ""]
    Verdicts(place).keep("a", "other")
    assert Verdicts(place).find("a") == "other"
    assert len(list(place.iterdir())) == 2
    assert place.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("damage", [b"", b"{", b'{"key": "a"}', b" " * (LARGEST + 1)])
def test_a_damaged_file_is_no_verdict_and_says_so(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    Verdicts(tmp_path).keep("a", "exact")
    files(tmp_path)[0].write_bytes(damage)
    assert Verdicts(tmp_path).find("a") == ""
    assert "can't be read" in caplog.text


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    Verdicts(tmp_path).keep("a", "exact")
    [file] = files(tmp_path)
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert Verdicts(tmp_path).find("a") == ""


def test_one_that_can_not_be_kept_is_said_and_not_raised(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    Verdicts(tmp_path / "file").keep("a", "exact")
    assert "can't be kept" in caplog.text


def test_the_oldest_make_room(tmp_path: Path) -> None:
    verdicts = Verdicts(tmp_path)
    for number in range(MOST):
        verdicts.keep(f"{number}", "exact")
        path = verdicts._path(f"{number}")
        os.utime(path, (number, number))
    verdicts.keep("new", "exact")
    assert len(files(tmp_path)) == MOST - MOST // 4 + 1
    assert verdicts.find("new") == verdicts.find(f"{MOST - 1}") == "exact"
    assert verdicts.find("0") == ""
