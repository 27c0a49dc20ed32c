"""Files of the workspace, and the ways out of it."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agents.tools.files import MOST_BYTES, Piece, file_list, file_read, file_write
from aios.tools import BadArguments


@pytest.fixture(autouse=True)
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a workspace that has ways out; gives the directory they lead to."""
    away = tmp_path / "away"
    away.mkdir()
    (away / "secret").write_text("secret")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link").symlink_to("../away/secret")
    (inside / "absolute").symlink_to(away / "secret")
    (inside / "folder").symlink_to("../away")
    (inside / "itself").symlink_to(".")
    (inside / "dangling").symlink_to("../away/new")
    os.mkfifo(inside / "pipe")
    monkeypatch.chdir(inside)
    return away


def test_what_is_written_is_read_and_listed() -> None:
    assert file_write("a/b/note.txt", "grün").size == 5
    assert file_write("a/b/note.txt", "\n", append=True).size == 6
    assert file_read("a/b/note.txt") == Piece("grün\n", 6, None)
    assert file_read(os.path.abspath("a/b/note.txt")).size == 6
    listing = file_list("a", recursive=True)
    assert [(each.path, each.kind) for each in listing.entries] == [
        ("a/b", "directory"), ("a/b/note.txt", "file"),
    ]  # fmt: skip
    assert listing.complete
    assert [each.path for each in file_list(pattern="*.txt", recursive=True).entries] == [
        "a/b/note.txt"
    ]
    file_write("a/b/note.txt", "new")
    assert file_read("a/b/note.txt").content == "new"
    assert os.listdir("a/b") == ["note.txt"], "nothing is left of the writing"


def test_a_file_is_read_in_parts_between_characters() -> None:
    file_write("note", "grün")
    first = file_read("note", limit=3)
    assert first == Piece("gr", 5, 2)
    assert file_read("note", offset=first.next or 0, limit=3) == Piece("ün", 5, None)
    assert file_read("note", offset=3, limit=1).next == 4, "a byte in the middle of one is passed"
    assert file_read("note", offset=99) == Piece("", 5, None)


def test_any_bytes_go_as_base64() -> None:
    data = bytes(range(256))
    file_write("bytes", base64.b64encode(data).decode(), "base64")
    assert base64.b64decode(file_read("bytes", encoding="base64").content) == data
    assert "\ufffd" in file_read("bytes").content
    with pytest.raises(BadArguments, match="not base64"):
        file_write("bytes", "?", "base64")
    with pytest.raises(BadArguments, match="the limit is"):
        file_write("bytes", "ü" * MOST_BYTES)


ESCAPES = [
    "../away/secret", "a/../../away/secret", "/etc/passwd", "folder/secret", "itself/../x",
    "folder/../away/secret", "link", "absolute", "pipe", "/proc/self/root/etc/passwd", "link/x",
    "", ".", "./", "x\0y", "..", "itself", "x" * 300,
]  # fmt: skip


@pytest.mark.parametrize("path", ESCAPES)
@pytest.mark.parametrize(
    "use",
    [file_read, lambda path: file_write(path, "!", append=True)],
    ids=["read", "append"],
)
def test_no_path_leads_out_of_the_workspace(
    path: str, use: Callable[[str], object], outside: Path
) -> None:
    with pytest.raises(BadArguments):
        use(path)
    assert (outside / "secret").read_text() == "secret"


def test_writing_replaces_a_link_itself(outside: Path) -> None:
    for name in ("link", "dangling", "pipe"):
        file_write(name, "mine")
        assert file_read(name).content == "mine"
    assert {path.name for path in outside.iterdir()} == {"secret"}
    assert (outside / "secret").read_text() == "secret"
    for path in ("folder/new", "../away/new", "/tmp/aios-new", "itself/x"):
        with pytest.raises(BadArguments):
            file_write(path, "!")
    Path("directory").mkdir()
    with pytest.raises(BadArguments, match="is a directory"):
        file_write("directory", "!")
    assert not [name for name in os.listdir() if name.endswith(".part")]


def test_links_are_listed_and_not_followed() -> None:
    kinds = {each.path: each.kind for each in file_list(recursive=True).entries}
    assert kinds["folder"] == "link" and kinds["pipe"] == "other"
    assert not [path for path in kinds if "/" in path]
    for path in ("folder", "..", "/", "itself"):
        with pytest.raises(BadArguments):
            file_list(path)
