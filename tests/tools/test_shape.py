"""Schemas that refer to themselves: used where looking at a value takes bounded time."""

from __future__ import annotations

from time import process_time
from typing import Any

import pytest

from aiosd.shape import DEEPEST_VALUE, Shape

TREE: dict[str, Any] = {
    "type": "object",
    "properties": {"kids": {"type": "array", "items": {"$ref": "#"}}, "n": {"type": "integer"}},
    "additionalProperties": False,
}
LIST: dict[str, Any] = {
    "$defs": {"node": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/pair"}]},
              "pair": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}},
    "properties": {"first": {"$ref": "#/$defs/node"}},
}  # fmt: skip
SUM: dict[str, Any] = {
    "anyOf": [
        {"type": "integer"},
        {"type": "object", "properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}},
        {"type": "object", "properties": {"left": {"$ref": "#"}}, "required": ["left"]},
    ]
}


def nested(levels: int, inside: Any, name: str) -> Any:
    value = inside
    for _ in range(levels):
        value = {name: [value]} if name == "kids" else {name: value}
    return value


@pytest.mark.parametrize(
    ("schema", "good", "wrong"),
    [
        (TREE, {"kids": [{"kids": [], "n": 1}, {}]}, {"kids": [{"kids": [{"n": "x"}]}]}),
        (LIST, {"first": {"next": {"next": None}}}, {"first": {"next": {"next": 3}}}),
        (SUM, {"left": {"left": 1, "right": 2}}, {"left": {"left": "x"}}),
    ],
)
def test_one_that_refers_to_itself_is_used(schema: dict[str, Any], good: Any, wrong: Any) -> None:
    shape = Shape(schema, "field")
    assert shape.wrong(good) == "" and shape.wrong(wrong) != ""


def test_what_would_take_long_is_refused_at_once() -> None:
    began = process_time()
    deep = nested(DEEPEST_VALUE, {}, "kids")
    assert "too deep" in Shape(TREE, "field").wrong(deep)
    assert Shape(TREE, "field").wrong(nested(DEEPEST_VALUE // 2 - 1, {}, "kids")) == ""
    assert "too deep" in Shape(SUM, "field").wrong(nested(40, "x", "left"))
    many = {"anyOf": [{"items": {"$ref": "#"}, "minItems": n} for n in range(9)]}
    bushy: Any = []
    for _ in range(8):
        bushy = [bushy] * 4
    assert "too many" in Shape(many, "field").wrong(bushy)
    assert process_time() - began < 30  # seconds; as it stands it takes none


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"anyOf": [{"type": "null"}, {"$ref": "#"}]},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"not": {"$ref": "#/$defs/a"}}},
         "properties": {"x": {"$ref": "#/$defs/a"}}},
        # The loop is closed behind one that goes into the value, and was seen before.
        {"$defs": {"v": {"properties": {"x": {"$ref": "#/$defs/u"}},
                         "allOf": [{"$ref": "#/$defs/w"}]},
                   "w": {"allOf": [{"$ref": "#/$defs/u"}]},
                   "u": {"allOf": [{"$ref": "#/$defs/v"}]}},
         "properties": {"y": {"$ref": "#/$defs/v"}}},
    ],
)  # fmt: skip
def test_one_that_never_goes_into_the_value_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(OSError, match="without going into the value"):
        Shape(schema, "field")


def test_long_chains_of_references_are_no_recursion_of_ours() -> None:
    count = 300
    defs: dict[str, Any] = {
        f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}]} for n in range(count)
    }
    defs[f"d{count}"] = {"properties": {"x": {"$ref": f"#/$defs/d{count}"}}}
    starts = {f"p{n}": {"$ref": f"#/$defs/d{n}"} for n in range(count, -1, -25)}
    assert Shape({"$defs": defs, "properties": starts}, "field").wrong({"p0": {"x": {}}}) == ""
