"""Functions that a client offers the model, and the form that it wants the answer in."""

from __future__ import annotations

from typing import Any

import msgspec

from aios import Function

from .refusal import Refusal


class Described(msgspec.Struct, frozen=True):
    """A function as OpenAI's clients describe it."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(msgspec.Struct, frozen=True):
    """An entry of `tools`: in chats it holds a function, in responses it is one."""

    type: str = "function"
    function: Described | None = None
    name: str = ""
    description: str | None = None
    parameters: dict[str, Any] | None = None


def functions(tools: list[Tool] | None) -> list[Function]:
    """Return the functions of a request. Raises Refusal for tools of another kind."""
    found = []
    for at, tool in enumerate(tools or []):
        if tool.type != "function":
            sentence = f"tools[{at}]: type {tool.type!r} is not served here; functions are"
            raise Refusal(400, sentence, param=f"tools[{at}]", code="unsupported")
        given = tool.function or Described(tool.name, tool.description, tool.parameters)
        parameters = given.parameters or {"type": "object", "properties": {}}
        found.append(Function(given.name, given.description or "", parameters))
    return found


def choice(given: Any, offered: list[Function]) -> str:
    """Return llm_generate's tool_choice. Raises Refusal for one that names nothing offered."""
    if isinstance(given, dict):
        name = given.get("function", given).get("name", "")
        if name not in [function.name for function in offered]:
            sentence = f"tool_choice: {name!r} is none of the tools of this request"
            raise Refusal(400, sentence, param="tool_choice")
        return str(name)
    if given not in (None, "auto", "none", "required"):
        sentence = f"tool_choice: {given!r}; there are auto, none, required and a function's name"
        raise Refusal(400, sentence, param="tool_choice")
    return given or "auto"


def schema(wanted: dict[str, Any] | None, param: str) -> dict[str, Any] | None:
    """Return the JSON Schema that an answer must satisfy, None for plain text. Raises Refusal."""
    kind = (wanted or {}).get("type", "text")
    if wanted is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind == "json_schema":
        found = wanted.get("json_schema", wanted).get("schema")
        if isinstance(found, dict):
            return found
    sentence = f"{param}: type {kind!r}; there are text, json_object and json_schema with a schema"
    raise Refusal(400, sentence, param=param)


def offer(tools: list[Tool] | None, chosen: Any, parallel: bool | None) -> dict[str, Any]:
    """Return what llm_generate is told about functions; nothing where there are none."""
    offered = functions(tools)
    if not offered:
        return {}
    told: dict[str, Any] = {"functions": offered, "tool_choice": choice(chosen, offered)}
    return told | ({"tool_calls": 1} if parallel is False else {})
