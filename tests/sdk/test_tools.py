"""What `aios.tools.tool` makes of functions, and which it refuses."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest

import aios
from aios.tools import Declared, declared

HEAD = """
from __future__ import annotations
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from aios.tools import Meta, tool
"""


@pytest.fixture
def define() -> Iterator[Any]:
    """Define the function `f` of a source, as a module's own."""
    module = types.ModuleType("defined_tools")
    sys.modules[module.__name__] = module

    def make(source: str) -> Declared:
        exec(HEAD + source, vars(module))
        tool = declared(vars(module)["f"])
        assert tool is not None
        return tool

    yield make
    del sys.modules[module.__name__]


def test_a_declaration_says_what_types_and_docstring_say(define: Any) -> None:
    tool = define('''
@tool(needs={"network": ["example.org"]}, limits={"time": 2, "rate": 1.5}, exclusive="oven")
def f(
    city: str,
    days: Annotated[int, Meta(ge=1, description="how many")] = 1,
    *,
    style: Literal["short", "long"] = "short",
    where: Path = Path("."),
    tags: list[str] = ["a"],
) -> str:
    """Forecast the weather: sun
    or rain.

    At most a week.

    city: in English,
        with its country
    days: not this

    Returns:
        words
    """
''')
    assert tool.declaration == {
        "name": "f",
        "version": "1",
        "description": "Forecast the weather: sun or rain.\n\nAt most a week.",
        "input": {
            "type": "object",
            "properties": {
                "city": {"description": "in English, with its country", "type": "string"},
                "days": {"description": "how many", "type": "integer", "minimum": 1, "default": 1},
                "style": {"enum": ["long", "short"], "default": "short"},
                "where": {"type": "string", "minLength": 1, "default": "."},
                "tags": {"type": "array", "items": {"type": "string"}, "default": ["a"]},
            },
            "required": ["city"],
            "additionalProperties": False,
        },
        "output": {"type": "string"},
        "kind": "text",
        "needs": {"network": ["example.org"]},
        "limits": {"time": 2.0, "rate": 1.5},
        "idempotent": False,
        "exclusive": "oven",
        "python": "defined_tools:f",
    }
    first, second = tool.convert({"city": "Bonn"}), tool.convert({"city": "Bonn"})
    assert first == second and first["tags"] is not second["tags"]
    assert aios.tools.declared(tool.function) is tool


@pytest.mark.parametrize(
    "lines",
    ["a: the first\n    b: the second", "Args:\n        a (int): the first\n        b: the second",
     ":param a: the first\n    :param int b: the second\n    :returns: a: sum"],
    ids=["plain", "google", "rest"],
)  # fmt: skip
def test_arguments_are_described_in_three_ways(define: Any, lines: str) -> None:
    tool = define(f'@tool\ndef f(a: int, b: int) -> int:\n    """Add: a.\n\n    {lines}\n    """\n')
    properties = tool.declaration["input"]["properties"]
    assert [properties[name]["description"] for name in "ab"] == ["the first", "the second"]
    assert tool.declaration["description"].startswith("Add: a.")


def test_structures_are_referred_to(define: Any) -> None:
    tool = define('''
@dataclass
class Node:
    value: int
    under: list[Node]
@tool
def f(root: Node) -> Node:
    """Turn a tree."""
''')
    schema = tool.declaration["input"]
    assert schema["properties"]["root"] == {"$ref": "#/$defs/Node"}
    under = {"type": "array", "items": {"$ref": "#/$defs/Node"}}
    assert schema["$defs"]["Node"]["properties"]["under"] == under
    assert tool.declaration["output"]["$ref"] == "#/$defs/Node"
    root = tool.convert({"root": {"value": 1, "under": [{"value": 2, "under": []}]}})["root"]
    assert root.under[0].value == 2
    assert tool.result(root)["under"] == [{"value": 2, "under": []}]


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("@tool\ndef f(a) -> int:\n 'x'", "f doesn't say of what type a is"),
        ("@tool\ndef f(a: int):\n 'x'", "f doesn't say what it returns"),
        ("@tool\ndef f(a: int) -> int: ...", "f has no docstring"),
        ("@tool\ndef f(a: int, /) -> int:\n 'x'", "f takes a by position"),
        ("@tool\ndef f(*a: int) -> int:\n 'x'", r"f takes \*a: name each argument"),
        ("@tool\ndef f(a: object) -> int:\n 'x'", "argument a has no JSON form.*object.* use str"),
        ("@tool\ndef f(a: Absent) -> int:\n 'x'", "can't be resolved here: name 'Absent'"),
        ("@tool\ndef f() -> complex:\n 'x'", "what it returns has no JSON form"),
        ("@tool\ndef f(a: int = 'b') -> int:\n 'x'", "a default of a that doesn't fit"),
        ("@tool\ndef f() -> int:\n 'x'\n yield 1", "f is a generator: return a list"),
        ("@tool\nclass f:\n 'x'", "f is no function"),
        ("f = tool(lambda: 1)", "<lambda>"),
        ("def g():\n @tool\n def f() -> int:\n  'x'\ng()", "must stand at the top of a module"),
        ("@tool(name='a b')\ndef f() -> int:\n 'x'", "can't be called 'a b'"),
        ("@tool(needs={'net': []})\ndef f() -> int:\n 'x'", "has needs 'net', which is none of ne"),
        ("@tool(limits={'time': 'x'})\ndef f() -> int:\n 'x'", r"limits that don't fit.*\$.time"),
    ],
)
def test_what_can_not_be_declared_is_a_type_error_that_says_why(
    define: Any, source: str, sentence: str
) -> None:
    with pytest.raises(TypeError, match=rf"(?s)^tool .*{sentence}"):
        define(source)
