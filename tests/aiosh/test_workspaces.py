"""tools put, get and run --file: files into the workspace and out of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.aiosh.conftest import Run

pytestmark = pytest.mark.usefixtures("kernel")


def test_a_file_of_several_parts_comes_back_as_it_went(ctl: Run, tmp_path: Path) -> None:
    large = tmp_path / "large.bin"
    large.write_bytes(bytes(range(256)) * (20 << 10))  # 5 MiB
    stored = Path(ctl("tools", "put", str(large), "deep/er/copy.bin").out.strip())
    assert stored.read_bytes() == large.read_bytes()
    back = tmp_path / "back.bin"
    assert ctl("tools", "get", "deep/er/copy.bin", str(back)).status == 0
    assert back.read_bytes() == large.read_bytes()
    (tmp_path / "note.txt").write_text("short")
    ctl("tools", "put", str(tmp_path / "note.txt"))
    assert ctl("tools", "get", "note.txt").out == "short"


def test_what_cannot_be_copied_is_named(ctl: Run, tmp_path: Path) -> None:
    lost = ctl("tools", "run", "cat", "--file", str(tmp_path / "nope.png"))
    assert lost.status == 1 and "nope.png: No such file" in lost.err
    lost = ctl("tools", "get", "nothing.txt", str(tmp_path / "made.txt"))
    assert lost.status == 1 and "there is no such file" in lost.err
    assert not (tmp_path / "made.txt").exists()
    (tmp_path / "a").write_text("x")
    outside = ctl("tools", "put", str(tmp_path / "a"), "../a")
    assert outside.status == 1 and "inside the workspace" in outside.err
