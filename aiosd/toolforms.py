"""How a model is offered tools, and how what it writes is read as calls. Pure.

    text = offer(tools, choice, most)               # what it is told
    schema = form(tools, choice, most, answer=None) # what it may write: a grammar is made of this
    said = read(value, tools, most)                 # calls, or an answer

A model writes {"tool": NAME, "arguments": {...}} for a call, a list of those for several at the
same time, and {"answer": TEXT} when it is done: TEXT, or a value of the answer's own schema.

Arguments are held to a tool's input schema as far as a grammar can be. A property that no grammar
keeps to (a range of numbers, a format) is held to its type only, and a schema without any other way
to "an object": the tool manager validates the arguments in any case before the tool runs.

What must hold: `read` gives back nothing but calls of tools that were offered, with an object as
arguments, whatever the value is and wherever it came from.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from aiosd.engine import schema as grammars

SHOWN: Final = 4000
"""Characters of a result that a model is shown; those of its error too."""

CUT: Final = "... (cut off)"

CHOICES: Final = ("auto", "required")

_ANSWER: Final[dict[str, Any]] = {"type": "string"}
_BEGUN: Final = re.compile(r'\{ ?"answer": ?')
_ESCAPE: Final = re.compile(r"(?<!\\)(?:\\\\)*(\\(?:u[0-9a-fA-F]{0,3})?)$")
_DATA: Final = ("const", "enum", "default", "examples", "example")
"""Keywords whose values are no schemas."""


class Offered(msgspec.Struct, frozen=True):
    """A tool as it is offered to a model. input: its JSON Schema, of an object."""

    name: str
    description: str = ""
    input: dict[str, Any] = {}


class Wanted(msgspec.Struct, frozen=True):
    """A call that a model wants to make."""

    tool: str
    arguments: dict[str, Any]


class Said(msgspec.Struct, frozen=True):
    """What a model wrote in a round: calls, or else an answer."""

    calls: list[Wanted] = []
    answer: Any = None


# What a model is told.


def offer(tools: Sequence[Offered], choice: str, most: int) -> str:
    """Return the text that offers tools. most: calls at the same time."""
    lines = [f"- {tool.name}: {_one_line(tool)}" for tool in tools]
    done = "" if choice == "required" else ' When you know the answer, write {"answer": ...}.'
    several = "; to call several at the same time, a list of those" if most > 1 else ""
    return (
        "You can call these tools:\n" + "\n".join(lines) + "\n"
        'To call one, write {"tool": its name, "arguments": {...}}'
        f"{several}. You are told the results.{done}"
    )


def _one_line(tool: Offered) -> str:
    plain = {key: value for key, value in tool.input.items() if key not in ("title", "$schema")}
    schema = json.dumps(plain, ensure_ascii=False, separators=(",", ":"))
    return f"{' '.join(tool.description.split())} Arguments: {schema}".strip()


def shown(text: str) -> str:
    """Return as much of a text as a model is shown."""
    return text if len(text) <= SHOWN else text[:SHOWN] + CUT


# What a model may write.


def form(
    tools: Sequence[Offered], choice: str, most: int, answer: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the JSON Schema of what a model may write in a round.

    tools: none of them: it must answer. choice: "required": it must call. most: calls at the same
    time. answer: the schema of answers; None: a text.
    """
    whole: dict[str, Any] = {}
    parts: list[dict[str, Any]] = []
    if tools:
        calls = [_call(tool, f"#/$defs/call/anyOf/{i}") for i, tool in enumerate(tools)]
        whole["$defs"] = {"call": {"anyOf": calls}}
        one = {"$ref": "#/$defs/call"}
        parts = [one]
        if most > 1:
            parts.append({"type": "array", "items": one, "minItems": 2, "maxItems": most})
    if not tools or choice != "required":
        at = f"#/anyOf/{len(parts)}/properties/answer"
        inside = _ANSWER if answer is None else _moved(answer, at)
        parts.append(_object({"answer": inside}))
    return {**whole, "anyOf": parts}


def _call(tool: Offered, at: str) -> dict[str, Any]:
    inside = _moved(kept(tool.input), f"{at}/properties/arguments")
    return _object({"tool": {"const": tool.name}, "arguments": inside})


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
        return _object({})  # the tool takes nothing, and a model shall not make something up
    if schema.get("type") == "object" and _converts(schema):
        return schema
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


def _moved(schema: Any, at: str) -> Any:
    """Return a schema whose references hold when it stands at a place within another one."""
    if isinstance(schema, list):
        return [_moved(each, at) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        key: value
        if key in _DATA
        else at + value[1:]
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else _moved(value, at)
        for key, value in schema.items()
    }


# What it wrote.


def read(value: Any, tools: Sequence[Offered], most: int) -> Said:
    """Return what a value says; OSError(EIO) where it is neither calls nor an answer."""
    if isinstance(value, dict) and value.keys() == {"answer"}:
        return Said(answer=value["answer"])
    wanted = value if isinstance(value, list) else [value]
    if not 1 <= len(wanted) <= most:
        raise _strange(f"{len(wanted)} calls at once, {most} are the most")
    names = {tool.name for tool in tools}
    return Said(calls=[_wanted(each, names) for each in wanted])


def _wanted(value: Any, names: set[str]) -> Wanted:
    if not isinstance(value, dict) or value.keys() != {"tool", "arguments"}:
        raise _strange("something that is no call")
    tool, arguments = value["tool"], value["arguments"]
    if tool not in names:
        raise _strange(f"a call of {str(tool)[:64]!r}, which was not offered")
    if not isinstance(arguments, dict):
        raise _strange(f"a call of {tool!r} without an object of arguments")
    return Wanted(tool, arguments)


def _strange(what: str) -> OSError:
    return OSError(errno.EIO, f"llm_generate: tools: the model wrote {what}; nothing was called")


def partial(text: str) -> str:
    """Return the answer that a round cut off has begun; "" when it is none."""
    begun = _BEGUN.match(text)
    if begun is None:
        return ""
    rest = text[begun.end() :]
    if not rest.startswith('"'):
        return rest
    for whole in (rest, _ESCAPE.sub(lambda cut: cut[0][: cut.start(1) - cut.start()], rest)):
        try:
            answer, end = json.JSONDecoder(strict=False).raw_decode(whole + '"')
        except ValueError:
            continue
        return str(answer) if end else ""
    return ""
