"""The command `store` against a real daemon."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.aiosh.conftest import Run

pytestmark = pytest.mark.usefixtures("kernel")


def test_objects_go_in_and_come_out(ctl: Run, tmp_path: Path) -> None:
    source, target = tmp_path / "a.txt", tmp_path / "b"
    data = b"line of text\n" * 200_000  # more than two parts
    source.write_bytes(data)
    put = ctl("store", "put", "notes/a", str(source), "-m", "author=Ada", "--json")
    stored = json.loads(put.out)
    assert (stored["version"], stored["size"], stored["content_type"]) == (
        1, len(data), "text/plain",
    )  # fmt: skip
    assert stored["metadata"] == {"author": "Ada"}
    assert ctl("store", "get", "notes/a", str(target)).status == 0
    assert target.read_bytes() == data
    source.write_bytes(b"short")
    assert ctl("store", "put", "notes/a", str(source)).status == 0
    assert ctl("store", "get", "notes/a").out == "short"
    assert ctl("store", "ls", "notes/").rows()[0][:2] == ["notes/a", "2"]
    assert ctl("store", "rollback", "notes/a", "1").status == 0
    assert [row[1] for row in ctl("store", "history", "notes/a").rows()] == ["3", "2", "1"]
    assert ctl("store", "get", "-v", "2", "notes/a").out == "short"
    found = json.loads(ctl("store", "search", "--mode", "keyword", "line", "-n1", "--json").out)
    assert (found[0]["name"], found[0]["start"]) == ("notes/a", 0)
    assert ctl("store", "rm", "notes/a").status == 0
    assert ctl("store", "ls", "notes/").rows() == []


def test_what_goes_wrong_is_told(ctl: Run, tmp_path: Path) -> None:
    target = tmp_path / "none"
    assert ctl("store", "get", "none", str(target)).status == 1
    assert list(tmp_path.iterdir()) == []
    assert ctl("store", "rm", "none").status == 1
    assert "path" in ctl("store", "put", "/absolute", "/dev/null").err
    assert ctl("store", "put", "a", str(target)).status == 1
    assert ctl("store", "put", "a", "/dev/null", "-m", "nothing").status == 2
