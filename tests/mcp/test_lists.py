"""What is made of a server's list of tools and of its results, whatever it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aiosd.mcpresult import ResultError, complaint, convert, keeper
from aiosd.mcptools import MAX_REFUSED, MAX_TOOLS, declarations


def tool(name: object, **more: Any) -> dict[str, Any]:
    return {"name": name, "inputSchema": {"type": "object"}, **more}


def test_a_tool_becomes_a_declaration() -> None:
    hints = {"title": "Adder", "idempotentHint": True}
    (entry,) = declarations(
        "srv", [tool("a/dd", outputSchema={"type": "object"}, annotations=hints)]
    )
    assert entry == {
        "name": "srv:a.dd",
        "description": "Adder",
        "input": {"type": "object"},
        "output": {"type": "object"},
        "idempotent": True,
        "server": "srv",
        "tool": "a/dd",
    }


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (tool(7), "letters, digits"),
        (tool(""), "letters, digits"),
        (tool("é"), "letters, digits"),
        (tool("n" * 64), "68 characters with the server's, the limit is 64"),
        (tool("x", description=b"x"), "no text"),
        (tool("x", description="x" * 8193), "8193 characters"),
        ({"name": "x"}, "inputSchema is no object"),
        (tool("x", inputSchema={"type": "array"}), "not of type object"),
        (tool("x", outputSchema=[]), "outputSchema is no object"),
        (tool("x", outputSchema={"a": 1 << 80}), "can't be passed on"),
    ],
)
def test_what_is_no_tool_is_refused_with_its_reason(bad: dict[str, Any], why: str) -> None:
    entries = declarations("srv", [tool("good"), bad])
    assert [entry.get("tool") for entry in entries] == ["good", None]
    assert why in entries[1]["refused"]


def test_of_two_with_one_name_neither_is_offered() -> None:
    entries = declarations("srv", [tool("a/b"), tool("a.b"), tool("c")])
    assert [entry["name"] for entry in entries] == ["srv:c", "a/b", "a.b"]


def test_lists_of_any_length_stay_short() -> None:
    entries = declarations("srv", (tool(f"t{i}") for i in range(10_000)), "there were more")
    assert len(entries) == MAX_TOOLS + MAX_REFUSED + 1
    assert "more were refused" in entries[-1]["refused"]


def test_results() -> None:
    text = {"type": "text", "text": "a"}
    assert convert({"content": [text, text]}, None) == ("a\na", [])
    assert convert({"content": [text], "structuredContent": {"n": None}}, None)[0] == {"n": None}
    image = {"type": "image", "mimeType": "image/png", "data": "AAEC"}
    assert convert({"content": [image]}, None)[0][0]["data"] == "AAEC"
    for bad in ({"type": "video"}, {**image, "data": "?"}):
        with pytest.raises(ResultError):
            convert({"content": [bad]}, None)
    assert complaint({"content": []}) == "it failed without saying why"
    assert len(complaint({"content": [{"type": "text", "text": "x" * 100_000}]})) < 20_000


def test_files_go_into_the_workspace_and_through_no_link(tmp_path: Path) -> None:
    name = keeper(str(tmp_path), "srv")(b"data", "image/png")
    assert name.startswith("srv-") and name.endswith(".png")
    assert (tmp_path / name).read_bytes() == b"data"
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with pytest.raises(OSError, match="link"):
        keeper(str(link), "srv")(b"data", "image/png")
