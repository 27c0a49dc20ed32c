"""Finding the program that a spawn names."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from aiosd.program import resolve_program


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory of the agent path."""
    place = tmp_path / "agents"
    place.mkdir()
    for name, mode in (("math.py", 0o644), ("runner", 0o755), ("notes", 0o644), ("_own.py", 0o644)):
        (place / name).write_text("#!/bin/sh\n")
        (place / name).chmod(mode)
    return place


def test_a_name_on_the_agent_path(place: Path, tmp_path: Path) -> None:
    python = [sys.executable, "-u", str(place / "math.py")]
    assert resolve_program("math", ["/nowhere", place], tmp_path) == python
    assert resolve_program("math.py", [place], tmp_path) == python
    assert resolve_program("runner", [place], tmp_path) == [str(place / "runner")]


def test_the_first_directory_wins(place: Path, tmp_path: Path) -> None:
    (tmp_path / "math.py").write_text("")
    first = resolve_program("math", [tmp_path, place], "/")
    assert first[-1] == str(tmp_path / "math.py")


def test_a_path(place: Path, tmp_path: Path) -> None:
    python = [sys.executable, "-u", str(place / "math.py")]
    assert resolve_program("agents/math.py", [], tmp_path) == python
    assert resolve_program("./math.py", [], place) == python
    assert resolve_program("math.py", [], place) == python
    assert resolve_program(str(place / "runner"), [], "/") == [str(place / "runner")]


def test_a_command(place: Path, tmp_path: Path) -> None:
    shell = resolve_program("sh", [place], tmp_path)
    assert len(shell) == 1
    assert os.access(shell[0], os.X_OK)
    assert resolve_program("runner", [], tmp_path, search=str(place)) == [str(place / "runner")]


def test_not_found_says_where_and_what_is_near(place: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        resolve_program("mathh", [place], tmp_path)
    words = str(caught.value)
    assert str(place) in words
    assert "mathh.py" in words
    assert words.endswith("did you mean math?")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*; did you mean math\.py\?"):
        resolve_program("./mth.py", [], place)
    with pytest.raises(FileNotFoundError, match="which is empty"):
        resolve_program("no-such-program", [], tmp_path)


@pytest.mark.parametrize(
    ("program", "words"),
    [("./notes", r"notes is not executable: make it executable \(chmod \+x\)"), ("/", "directory")],
)
def test_not_executable(place: Path, program: str, words: str) -> None:
    with pytest.raises(PermissionError, match=words):
        resolve_program(program, [], place)


@pytest.mark.parametrize("program", ["", "a\0b"])
def test_no_name_at_all(program: str) -> None:
    with pytest.raises(OSError, match="name a file or an agent"):
        resolve_program(program, [], "/")
