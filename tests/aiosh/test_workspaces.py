"""What `tools run --file` does: a copy in the workspace, whatever is there already."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiosh import link, workspaces


def test_a_link_that_a_tool_left_is_replaced_and_not_followed(tmp_path: Path) -> None:
    outside, workspace = tmp_path / "mine.txt", tmp_path / "workspace"
    outside.write_text("mine")
    workspace.mkdir()
    (workspace / "a.png").symlink_to(outside)
    (tmp_path / "a.png").write_bytes(b"picture")
    workspaces.put(tmp_path / "a.png", str(workspace))
    assert outside.read_text() == "mine"
    assert not (workspace / "a.png").is_symlink()
    assert [(each.name, each.read_bytes()) for each in workspace.iterdir()] == [
        ("a.png", b"picture")
    ]


def test_what_cannot_be_copied_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    (workspace / "a").mkdir(parents=True)
    with pytest.raises(link.Failure, match=r"nope\.png: No such file"):
        workspaces.put(tmp_path / "nope.png", str(workspace))
    (tmp_path / "a").write_text("x")
    with pytest.raises(link.Failure, match="a: Is a directory"):
        workspaces.put(tmp_path / "a", str(workspace))
    assert [each.name for each in workspace.iterdir()] == ["a"]
