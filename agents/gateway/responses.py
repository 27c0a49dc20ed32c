"""Responses: the basic form of POST /v1/responses, whole or as a stream of events.

Text in and out, functions, JSON Schema; what a request says is all that the model sees, or what the
earlier response said that it names: the last few of each key are kept, in memory.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from time import time
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

import aios
from aios import Turn, TurnCall

from . import models, offers, probabilities
from .chat import about
from .messages import ROLES, Part, call, images_of, text_of
from .office import Office, key_of
from .past import Past
from .refusal import Refusal, unserved
from .reply import Events, Json, event, read, unless_gone
from .sampling import Sampling, Tokens, options


class Item(msgspec.Struct, frozen=True):
    """An entry of `input`: a message, a call, or what came of one."""

    type: str = "message"
    role: str = "user"
    content: str | list[Part] | None = None
    call_id: str = ""
    name: str = ""
    arguments: str = ""
    output: str | list[Part] = ""


class Asked(Sampling, frozen=True, kw_only=True):
    """A request. Fields that are not here are passed over."""

    input: str | list[Item] = ""
    instructions: str | None = None
    max_output_tokens: Tokens | None = None
    previous_response_id: str | None = None
    text: dict[str, Any] | None = None
    tools: list[offers.Tool] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    include: list[str] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    background: bool | None = None
    conversation: Any = None
    prompt: Any = None

    @property
    def likely(self) -> bool:
        """Whether it wants log-probabilities."""
        return bool(self.top_logprobs) or "message.output_text.logprobs" in (self.include or ())


def routes(office: Office) -> list[BaseRoute]:
    """Return the routes of this family."""
    past = Past()

    async def responses(request: Request) -> Response:
        asked = await read(request, Asked)
        work = _Work(office, past, key_of(request.headers), asked)
        if asked.stream:
            return Events(_streamed(work, request))
        return Json(await unless_gone(request.receive, _whole(work, request)))

    return [Route("/v1/responses", responses, methods=["POST"])]


class _Work:
    """One request, and the response that it comes to. turns: all that the model is shown."""

    def __init__(self, office: Office, past: Past, key: str, asked: Asked) -> None:
        unserved(background=asked.background, conversation=asked.conversation, prompt=asked.prompt)
        self.asked = asked
        self.logprobs: list[dict[str, Any]] = []
        self.office = office
        self.id = f"resp_{secrets.token_hex(16)}"
        self.message_id = f"msg_{secrets.token_hex(16)}"
        self._past = past
        self._key = key
        self._created = int(time())
        earlier: list[Turn] = []
        if asked.previous_response_id:
            earlier = past.of(key, asked.previous_response_id)
        self.turns = [*earlier, *_turns(asked.input)]
        if not self.turns:
            raise Refusal(400, "input: there is none", param="input")

    async def told(self, kernel: aios.AsyncKernel) -> dict[str, Any]:
        """Return what llm_generate is told."""
        asked = self.asked
        rules = [Turn("system", asked.instructions)] if asked.instructions else []
        chosen = await models.choose(kernel, self.office, asked.model)
        return {
            "messages": [*rules, *self.turns],
            "max_tokens": asked.max_output_tokens or 0,
            "schema": offers.schema((asked.text or {}).get("format"), "text.format"),
            **({"logprobs": True, "top_logprobs": asked.top_logprobs or 0} if asked.likely else {}),
            **options(asked),
            **chosen._asdict(),
            **offers.offer(asked.tools, asked.tool_choice, asked.parallel_tool_calls),
        }

    def body(self, reply: aios.Generation | None = None) -> dict[str, Any]:
        """Return the response as it is now: under way, or with its reply."""
        asked = self.asked
        whole = reply is not None and reply.finish_reason in ("stop", "calls")
        status = "in_progress" if reply is None else "completed" if whole else "incomplete"
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": cut,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {},
            "model": (reply.core if reply else "") or asked.model or models.ANY,
            "output": self.output(reply) if reply else [],
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": asked.previous_response_id,
            "store": asked.store is not False,
            "temperature": asked.temperature or 0.0,
            "text": asked.text or {"format": {"type": "text"}},
            "tool_choice": asked.tool_choice or "auto",
            "tools": [_tool(tool) for tool in asked.tools or []],
            "top_p": asked.top_p or 1.0,
            "truncation": "disabled",
            "usage": _usage(reply.usage) if reply else None,
            **({"aios": about(reply)} if reply else {}),
        }

    def output(self, reply: aios.Generation) -> list[dict[str, Any]]:
        """Return the items that a reply comes to."""
        items = [] if reply.calls and not reply.text else [self.message(reply.text)]
        return [*items, *(_called(made) for made in reply.calls)]

    def message(self, text: str | None) -> dict[str, Any]:
        """Return the item of the model's text; None: it only begins."""
        status = "in_progress" if text is None else "completed"
        content = [] if text is None else [_part(text, self.logprobs)]
        item = {"id": self.message_id, "type": "message", "status": status, "role": "assistant"}
        return {**item, "content": content}

    def keep(self, reply: aios.Generation) -> None:
        """Keep what was said, for a request that names this response."""
        if self.asked.store is not False:
            calls = [TurnCall(made.id, made.tool, made.arguments) for made in reply.calls]
            self._past.keep(self._key, self.id, [*self.turns, Turn("assistant", reply.text, calls)])


async def _whole(work: _Work, request: Request) -> dict[str, Any]:
    async with work.office.caller(request.headers) as kernel:
        told = await work.told(kernel)
        if work.asked.likely:
            stream = kernel.llm_generate(**told, stream=True)
            async for chunk in stream:
                work.logprobs += probabilities.of_chat(chunk)
            reply = stream.reply
        else:
            reply = await kernel.llm_generate(**told)
    work.keep(reply)
    return work.body(reply)


async def _streamed(work: _Work, request: Request) -> AsyncIterator[bytes]:
    numbered = _Numbered()
    async with work.office.caller(request.headers) as kernel:
        told = await work.told(kernel)
        opened = False
        async with kernel.llm_generate(**told, stream=True) as stream:
            async for chunk in stream:
                if not numbered.count:
                    yield numbered("response.created", response=work.body())
                    yield numbered("response.in_progress", response=work.body())
                found = probabilities.of_chat(chunk)
                work.logprobs += found
                if not chunk.text and (work.asked.tools or not found):
                    continue  # it may come to a call, which is no message
                if not opened:
                    opened = True
                    for piece in _opening(work, numbered):
                        yield piece
                yield _delta(work, numbered, chunk.text, found)
            reply = stream.reply
    if not numbered.count:
        yield numbered("response.created", response=work.body())
    for piece in _closing(work, numbered, reply, opened):
        yield piece
    work.keep(reply)
    whole = reply.finish_reason in ("stop", "calls")
    name = "response.completed" if whole else "response.incomplete"
    yield numbered(name, response=work.body(reply))


class _Numbered:
    """Makes events, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, name: str, /, **fields: Any) -> bytes:
        """Return one."""
        self.count += 1
        return event({"type": name, "sequence_number": self.count - 1, **fields}, name)


def _opening(work: _Work, numbered: _Numbered) -> list[bytes]:
    at = {"item_id": work.message_id, "output_index": 0, "content_index": 0}
    return [
        numbered("response.output_item.added", output_index=0, item=work.message(None)),
        numbered("response.content_part.added", **at, part=_part("", [])),
    ]


def _delta(work: _Work, numbered: _Numbered, text: str, logprobs: list[dict[str, Any]]) -> bytes:
    at = {"item_id": work.message_id, "output_index": 0, "content_index": 0}
    return numbered("response.output_text.delta", **at, delta=text, logprobs=logprobs)


def _closing(work: _Work, numbered: _Numbered, reply: aios.Generation, opened: bool) -> list[bytes]:
    at = {"item_id": work.message_id, "output_index": 0, "content_index": 0}
    pieces = []
    for index, item in enumerate(work.output(reply)):
        if item["type"] == "message":
            pieces += [] if opened else _opening(work, numbered)
            text = item["content"][0]["text"]
            part = item["content"][0]
            told = {"text": text, "logprobs": part["logprobs"]}
            pieces.append(numbered("response.output_text.done", **at, **told))
            pieces.append(numbered("response.content_part.done", **at, part=part))
        else:
            begun = {**item, "arguments": "", "status": "in_progress"}
            place = {"item_id": item["id"], "output_index": index}
            said = item["arguments"]
            pieces += [
                numbered("response.output_item.added", output_index=index, item=begun),
                numbered("response.function_call_arguments.delta", **place, delta=said),
                numbered("response.function_call_arguments.done", **place, arguments=said,
                         name=item["name"]),
            ]  # fmt: skip
        pieces.append(numbered("response.output_item.done", output_index=index, item=item))
    return pieces


def _turns(given: str | list[Item]) -> list[Turn]:
    """Return the turns of an input; calls that follow each other are of one turn."""
    if isinstance(given, str):
        return [Turn("user", given)] if given else []
    found: list[Turn] = []
    for at, item in enumerate(given):
        where = f"input[{at}]"
        if item.type == "function_call":
            made = call(item.call_id, item.name, item.arguments, where)
            last = found[-1] if found and found[-1].role == "assistant" else None
            if last is not None:
                found[-1] = Turn("assistant", last.content, [*last.calls, made])
            else:
                found.append(Turn("assistant", "", [made]))
        elif item.type == "function_call_output":
            if images_of(item.output, where):
                sentence = f"{where}: output: pictures are read in messages of the user alone"
                raise Refusal(400, sentence, param=where, code="unsupported")
            found.append(Turn("tool", text_of(item.output, where), call=item.call_id))
        elif item.type == "message":
            role, text = ROLES.get(item.role, item.role), text_of(item.content, where)
            found.append(Turn(role, text, images=images_of(item.content, where)))
        elif item.type != "reasoning":
            sentence = f"{where}: type {item.type!r} can't be read here"
            raise Refusal(400, sentence, param=where, code="unsupported")
    return found


def _part(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _called(made: aios.ToolCall) -> dict[str, Any]:
    arguments = msgspec.json.encode(made.arguments).decode()
    return {
        "id": f"fc_{made.id}",
        "type": "function_call",
        "status": "completed",
        "call_id": made.id,
        "name": made.tool,
        "arguments": arguments,
    }


def _tool(tool: offers.Tool) -> dict[str, Any]:
    given = tool.function
    name = given.name if given else tool.name
    parameters = given.parameters if given else tool.parameters
    told = given.description if given else tool.description
    return {"type": "function", "name": name, "description": told, "parameters": parameters,
            "strict": True}  # fmt: skip


def _usage(used: aios.TokenUsage) -> dict[str, Any]:
    return {
        "input_tokens": used.prompt_tokens,
        "input_tokens_details": {"cached_tokens": used.cached_tokens},
        "output_tokens": used.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": used.prompt_tokens + used.completion_tokens,
    }
