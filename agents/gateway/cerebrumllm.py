"""What programs written for Cerebrum ask of models and tools.

A tool has an author there, and is named AUTHOR/NAME; a function's name here has two underscores in
place of the slash, and a kernel's tool is known by what comes after it.
"""

from __future__ import annotations

import errno
import json
import secrets
from typing import Any, Final, Literal

import msgspec

import aios

from . import cerebrumstores, models, offers
from .cerebrumform import Done, Query, result, taken
from .messages import Message, turns
from .office import Office
from .refusal import Refusal

SUMMARY: Final = 128
"""Tokens in which a model tells what it did."""
MAX_CALLS: Final = 32
"""Calls of tools in one query."""
SAME: Final = {
    "arxiv": "arxiv_search",
    "wikipedia": "wikipedia_query",
    "wolfram_alpha": "wolframalpha",
}
"""Tools of the research system whose likes here, which take the same arguments, are called so."""
CALLED: Final = "calls"
"""How a generation ends that calls functions."""


class Wish(msgspec.Struct, frozen=True):
    """What a model is asked for."""

    messages: list[Message]
    llms: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    action_type: Literal[
        "chat", "chat_with_json_output", "chat_with_tool_call_output", "call_tool", "operate_file"
    ] = "chat"
    temperature: float = 1.0
    max_new_tokens: int = 1000
    message_return_type: Literal["text", "json"] = "text"
    response_format: dict[str, Any] | None = None


class Called(msgspec.Struct, frozen=True):
    """A call of a tool."""

    name: str
    parameters: dict[str, Any] = {}


class Calls(msgspec.Struct, frozen=True):
    """What tools are asked for."""

    tool_calls: list[Called]


async def generate(kernel: aios.AsyncKernel, office: Office, asked: Query) -> Done:
    """Answer a query of type llm. Raises OSError, Refusal."""
    wish = taken(asked.query_data, Wish)
    if wish.action_type == "operate_file":
        return await _operate(kernel, office, wish)
    reply = await _ask(kernel, office, wish)
    calls = _calls(reply)
    waited = reply.timing.waiting_s
    if wish.action_type != "call_tool":
        return Done(_told(reply, calls), waited)
    if not calls:
        return Done(result("tool", "the model called no tool", finished=False), waited)
    made = [Called(call["name"], call["parameters"]) for call in calls]
    return Done(result("tool", await _execute(kernel, made)), waited)


def narrowed(asked: Query, selected: list[dict[str, Any]]) -> Query:
    """Return a query of type llm for the selected models, if any. Raises Refusal for others."""
    named = asked.query_data.get("llms")
    if not selected:
        return asked
    if named is None:
        return msgspec.structs.replace(asked, query_data={**asked.query_data, "llms": selected})
    known = {(each.get("name"), each.get("provider")) for each in selected}
    for each in taken(asked.query_data, Wish).llms or []:
        if (each.get("name"), each.get("provider")) not in known:
            text = f"llms: {each.get('name')!r} is not among those selected; POST /user/select/llms"
            raise Refusal(400, text)
    return asked


async def call_tools(kernel: aios.AsyncKernel, office: Office, asked: Query) -> Done:
    """Answer a query of type tool: call them in turn. Raises OSError, Refusal."""
    wanted = taken(asked.query_data, Calls).tool_calls
    if not wanted:
        return Done(result("tool", "there is no tool to call", finished=False))
    return Done(result("tool", await _execute(kernel, wanted)))


async def _ask(kernel: aios.AsyncKernel, office: Office, wish: Wish) -> aios.Generation:
    chosen = await _core(kernel, office, wish.llms)
    told: dict[str, Any] = {
        "max_tokens": wish.max_new_tokens,
        "temperature": wish.temperature,
        "seed": secrets.randbits(62),
        "schema": _schema(wish),
        **chosen,
    }
    if wish.tools:
        told["functions"] = offers.functions(_tools(wish.tools))
    reply: aios.Generation = await kernel.llm_generate(messages=turns(wish.messages), **told)
    return reply


async def _core(
    kernel: aios.AsyncKernel, office: Office, llms: list[dict[str, Any]] | None
) -> dict[str, Any]:
    """Return what a list of models says, of which the first that there is here counts."""
    told: dict[str, Any] = {}
    for entry in reversed(llms or []):
        choice = await models.choose(kernel, office, str(entry.get("name", "")))
        if choice.core or choice.needs or not told:
            known = ("temperature", "max_tokens", "top_p", "frequency_penalty", "presence_penalty")
            told = {name: entry[name] for name in known if entry.get(name) is not None}
            told |= choice._asdict()
    return told


def _schema(wish: Wish) -> dict[str, Any] | None:
    wanted = wish.message_return_type == "json" or wish.action_type == "chat_with_json_output"
    if wish.response_format is None:
        return {"type": "object"} if wanted and not wish.tools else None
    return offers.schema(wish.response_format, "response_format")


def _tools(given: list[dict[str, Any]]) -> list[offers.Tool]:
    """Return tools as functions have it; they come with or without what OpenAI puts around them."""
    found = []
    for tool in given:
        described = dict(tool.get("function") or tool)
        described["name"] = str(described.get("name", "")).replace("/", "__")
        found.append(taken({"type": "function", "function": described}, offers.Tool))
    return found


def _calls(reply: aios.Generation) -> list[dict[str, Any]]:
    """Return what a model called, as Cerebrum has it."""
    if reply.finish_reason != CALLED:
        return []
    return [
        {"name": call.tool.replace("__", "/"), "parameters": call.arguments, "id": call.id}
        for call in reply.calls
    ]


def _told(reply: aios.Generation, calls: list[dict[str, Any]]) -> dict[str, Any]:
    cut = reply.finish_reason == "cancelled"
    told = result("llm", None if calls else reply.text, finished=not cut)
    return {**told, "tool_calls": calls or None, "error": reply.reason if cut else None}


async def _execute(kernel: aios.AsyncKernel, calls: list[Called]) -> str:
    """Call tools one after the other; return what came of them, as JSON where they are several."""
    if len(calls) > MAX_CALLS:
        raise OSError(errno.E2BIG, f"{len(calls)} calls of tools, at most {MAX_CALLS} in a query")
    values = []
    for call in calls:
        name = await _known(kernel, call.name.rpartition("/")[2])
        values.append((await kernel.execute_tool(name, arguments=call.parameters)).value)
    return _text(values[0] if len(values) == 1 else values)


async def _known(kernel: aios.AsyncKernel, name: str) -> str:
    """Return what a tool is called here: its own name where there is one of that name."""
    if name not in SAME:
        return name
    try:
        await kernel.describe_tool(name)
    except FileNotFoundError:
        return SAME[name]
    return name


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


async def _operate(kernel: aios.AsyncKernel, office: Office, wish: Wish) -> Done:
    """Have a model say what is to be done with stored objects, do it, and tell of it."""
    reply = await kernel.llm_generate(
        messages=turns(wish.messages),
        functions=cerebrumstores.FUNCTIONS,
        tool_choice="required",
        max_tokens=wish.max_new_tokens,
        **await _core(kernel, office, wish.llms),
    )
    lines = []
    for call in reply.calls[:MAX_CALLS]:
        try:
            lines.append(await cerebrumstores.operate(kernel, call.tool, call.arguments))
        except OSError as error:
            lines.append(f"{call.tool}: {error.strerror or error}")
    listed = "\n".join(lines) or "nothing was done"
    question = f"Tell me in a sentence or two what you did:\n{listed}"
    summary = await kernel.llm_generate(question, max_tokens=SUMMARY)
    return Done(f"{summary.text.strip()}\n\n{listed}", reply.timing.waiting_s)
