"""What a model may write when it is offered functions, as a grammar. Pure; made in the worker.

    offer = Offer(functions, choice, most, answer)
    text = grammar(offer)                        # GBNF

It writes {"tool": NAME, "arguments": {...}} for a call, a list of those for several at the same
time, and {"answer": TEXT} when it is done: TEXT, or a value of the answer's own schema.

Arguments are held to a function's schema as far as a grammar can be. A property that no grammar
keeps to (a range of numbers, a format) is held to its type only, and a schema without any other way
to "an object".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from aiosd.engine import schema as grammars

_ANSWER: Final[dict[str, Any]] = {"type": "string"}
_BEGINS: Final = re.compile(r'\s*(?:[^\s{\["]+|.*)', re.DOTALL)
_DATA: Final = ("const", "enum", "default", "examples", "example")
"""Keywords whose values are no schemas."""


class Offered(msgspec.Struct, frozen=True):
    """A function as it is offered to a model. input: its JSON Schema, of an object."""

    name: str
    description: str = ""
    input: dict[str, Any] = {}


class Style(msgspec.Struct, frozen=True):
    """How a chat template writes calls: BEFORE name MIDDLE arguments BETWEEN name ... AFTER.

    between: "" where it takes one call at a time.
    """

    before: str
    middle: str
    between: str
    after: str

    @property
    def begins(self) -> str:
        """Return what tells calls from a text: no text in front of them holds it."""
        found = _BEGINS.match(self.before)
        return found[0] if found is not None else self.before


class Offer(msgspec.Struct, frozen=True):
    """What a model may do: call some of these functions, answer, or both.

    choice: auto, required (it must call), none (it must answer), or the one that it must call.
    most: calls at the same time. answer: the schema of answers; None: a text. style: how its
    template writes calls (callstyle.py); None: as here.
    """

    functions: list[Offered]
    choice: str = "auto"
    most: int = 8
    answer: dict[str, Any] | None = None
    style: Style | None = None

    @property
    def callable(self) -> list[Offered]:
        """Return those that it may call."""
        if self.choice == "none":
            return []
        if self.choice in ("auto", "required"):
            return self.functions
        return [one for one in self.functions if one.name == self.choice]

    @property
    def answers(self) -> bool:
        """Whether it may answer."""
        return self.choice in ("auto", "none")


def grammar(offer: Offer) -> str:
    """Return the grammar of what a model may write; raises OSError(EINVAL)."""
    return grammars.grammar(json.dumps(form(offer)))


def form(offer: Offer) -> dict[str, Any]:
    """Return the JSON Schema of what a model may write."""
    whole: dict[str, Any] = {}
    parts: list[dict[str, Any]] = []
    if functions := offer.callable:
        calls = [_call(one, f"#/$defs/call/anyOf/{i}") for i, one in enumerate(functions)]
        whole["$defs"] = {"call": {"anyOf": calls}}
        one = {"$ref": "#/$defs/call"}
        parts = [one]
        if offer.most > 1:
            parts.append({"type": "array", "items": one, "minItems": 2, "maxItems": offer.most})
    if not functions or offer.answers:
        at = f"#/anyOf/{len(parts)}/properties/answer"
        inside = _ANSWER if offer.answer is None else moved(offer.answer, at)
        parts.append(_object({"answer": inside}))
    return {**whole, "anyOf": parts}


def _call(function: Offered, at: str) -> dict[str, Any]:
    inside = moved(kept(function.input), f"{at}/properties/arguments")
    return _object({"tool": {"const": function.name}, "arguments": inside})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def kept(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the part of an input schema that a grammar can keep to; see the head of this file."""
    properties = schema.get("properties")
    if properties == {} and "additionalProperties" not in schema:
        return _object({})  # it takes nothing, and a model shall not make something up
    if schema.get("type") == "object" and _converts(schema):
        return schema
    if "$ref" in schema:
        return _referred(schema)
    if not isinstance(properties, dict) or not properties:
        return {"type": "object"}
    looser = {
        name: inside if _converts(_alone(schema, name, inside)) else _typed(inside)
        for name, inside in properties.items()
    }
    found = {
        key: value for key, value in schema.items() if key in ("$defs", "definitions", "required")
    }
    found |= {"type": "object", "properties": looser, "additionalProperties": False}
    return found if _converts(found) else {"type": "object"}


def _referred(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that is another one of its own, as that of a tree's node is."""
    meant = grammars.target(schema, schema["$ref"])
    bare = {key: value for key, value in schema.items() if key != "type"}
    object_ = isinstance(meant, dict) and meant.get("type") == "object"
    return bare if object_ and _converts(bare) else {"type": "object"}


def _alone(schema: dict[str, Any], name: str, inside: Any) -> dict[str, Any]:
    """The schema with this one property."""
    defs = {key: value for key, value in schema.items() if key in ("$defs", "definitions")}
    return {**defs, "type": "object", "properties": {name: inside}, "required": [name]}


def _typed(inside: Any) -> Any:
    kind = inside.get("type") if isinstance(inside, dict) else None
    return {"type": kind} if isinstance(kind, str) and kind in grammars.KEYWORDS else True


def _converts(schema: dict[str, Any]) -> bool:
    try:
        grammars.grammar(json.dumps(schema))
    except (OSError, ValueError, RecursionError):
        return False
    return True


def moved(schema: Any, at: str) -> Any:
    """Return a schema whose references hold when it stands at a place within another one.

    at: the place, as a reference.
    """
    if isinstance(schema, list):
        return [moved(each, at) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        key: value
        if key in _DATA
        else at + value[1:]
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else moved(value, at)
        for key, value in schema.items()
    }


def told(functions: Sequence[Offered], choice: str, most: int) -> str:
    """Return the text that offers functions to a model."""
    lines = [f"- {one.name}: {_one_line(one)}" for one in functions]
    done = ' When you know the answer, write {"answer": ...}.' if choice == "auto" else ""
    several = "; to call several at the same time, a list of those" if most > 1 else ""
    return (
        "You can call these tools:\n" + "\n".join(lines) + "\n"
        'To call one, write {"tool": its name, "arguments": {...}}'
        f"{several}. You are told the results.{done}"
    )


def _one_line(one: Offered) -> str:
    plain = {key: value for key, value in one.input.items() if key not in ("title", "$schema")}
    schema = json.dumps(plain, ensure_ascii=False, separators=(",", ":"))
    return f"{' '.join(one.description.split())} Arguments: {schema}".strip()
