"""Calling: how functions are put to a model, and how what it writes is read as calls. Pure.

    check(args)                          # can it be meant?
    args = form.put(args, fresh)         # its turns as the template gets them (callforms.py: form)
    form.offer                           # what the worker makes a grammar of; None: nothing
    text = form.hear(piece)              # what of a piece of the model's text is for the caller
    said = form.said(whole)              # in the end: calls, or an answer

Form "json" is for any model: it is told in words what there is, and writes JSON (engine/calls.py).
Form "text" is for a chat that has calls in it while nothing can be called now.

What must hold: `said` gives back nothing but calls of functions that may be called, with an object
as arguments, whatever the model wrote; what was heard piece by piece is how the said text begins.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from aiosd import pictures
from aiosd.abi.inference import Function, LlmGenerate, Turn
from aiosd.engine.calls import Offer, Offered, told

if TYPE_CHECKING:
    from collections.abc import Sequence

CHOICES: Final = ("auto", "required", "none")

BYTES: Final = 256 << 10
"""Of all functions of a request together, as JSON."""

ID: Final = 9
"""Letters of a call's id; some templates insist on this."""

_BEGUN: Final = re.compile(r'\{ ?"answer": ?(?=[^ ])')
_LETTERS: Final = re.compile(
    r'(?:[^"\\]|\\[^u]|\\u(?![dD][89abAB])[0-9a-fA-F]{4}'
    r"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[0-9a-fA-F]{4})*"
)
"""Whole letters of a JSON string; those of two escapes are not cut apart."""
_CLOSING: Final = re.compile(r"[ }]*$")


class Wanted(msgspec.Struct, frozen=True):
    """A call that a model wants to make."""

    tool: str
    arguments: dict[str, Any]


class Said(msgspec.Struct, frozen=True):
    """What a model wrote: text for its caller, and calls."""

    text: str = ""
    calls: list[Wanted] = []


class Form(Protocol):
    """How a request's functions are put to a model. One object hears one reply.

    style: says which one it is, for the next kernel. tools: those that the model's template is to
    offer, as protocol.Tokenize takes them; "": none.
    """

    style: str
    offer: Offer | None
    tools: str

    def put(self, args: LlmGenerate, fresh: bool) -> LlmGenerate:
        """Return the request with its chat as the template takes it. fresh: it begins a context."""

    def hear(self, piece: str) -> str:
        """Take the next piece of what the model writes; return what of it is for the caller."""

    def said(self, whole: str) -> Said:
        """Return what a whole reply says; raises OSError(EIO) for what can't be read."""


def answers_calls(turns: Sequence[Turn]) -> bool:
    """Whether turns begin with what came of calls that are in the context before them."""
    return bool(turns) and bool(turns[0].call)


def offered(functions: Sequence[Function]) -> list[Offered]:
    """Return functions as a model is told of them."""
    return [Offered(one.name, one.description, one.parameters) for one in functions]


def new_id(rid: int, place: int) -> str:
    """Return the id of a request's call: the same again for the same one."""
    return hashlib.blake2b(f"{rid}/{place}".encode(), digest_size=16).hexdigest()[:ID]


# What can be meant.


def check(args: LlmGenerate) -> None:
    """Refuse what about calls can't be meant; raises OSError(EINVAL) that says what."""
    _check_turns(args.messages)
    pictures.check(args.messages)
    names = [*args.tools, *(one.name for one in args.functions)]
    if not names:
        return
    if not (args.prompt or args.messages):
        raise _invalid("tools and functions: give a prompt or messages too")
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise _invalid(f"tools and functions: {twice!r} is named twice; name each once")
    if args.tool_choice not in (*CHOICES, *names):
        known = f"{', '.join(CHOICES)} or the name of one that is offered"
        raise _invalid(f"tool_choice: {args.tool_choice!r} is not {known}")
    _check_fit(args)


def check_size(functions: Sequence[Function]) -> None:
    """Refuse more functions than a request may bring; raises OSError(EINVAL)."""
    size = len(msgspec.json.encode(functions))
    if size > BYTES:
        raise _invalid(f"functions: {size} bytes together, {BYTES} are the most; offer fewer")


def _check_turns(turns: Sequence[Turn]) -> None:
    for place, turn in enumerate(turns):
        if turn.calls and turn.role != "assistant":
            raise _invalid(f"messages[{place}]: calls: they belong to turns of role assistant")
        if turn.call and turn.role != "tool":
            raise _invalid(f"messages[{place}]: call: it belongs to turns of role tool")


def _check_fit(args: LlmGenerate) -> None:
    unfit = {
        "raw": args.raw,
        "grammar": bool(args.grammar),
        "stop": bool(args.stop),
        "beams": args.beams > 1,
    }
    for name, given in unfit.items():
        if given:
            raise _invalid(
                f"{name} does not go with tools and functions: what the model writes is held to a "
                "grammar of their calls, in turns of a chat; a schema shapes the answer"
            )


def _invalid(what: str) -> OSError:
    return OSError(errno.EINVAL, f"llm_generate: {what}")


# Chats.


def chat(args: LlmGenerate) -> list[Turn]:
    """Return a request's turns."""
    return list(args.messages) or [Turn("user", args.prompt)]


def plain(turns: Sequence[Turn], answers: bool) -> list[Turn]:
    """Return turns with their calls as text, as the model writes and is shown them.

    answers: other turns of its own are answers, written as such.
    """
    names = {call.id: call.name for turn in turns for call in turn.calls}
    found: list[Turn] = []
    lines: list[str] = []
    for turn in turns:
        if turn.role == "tool" and (turn.call or turn.name):
            lines.append(result(turn.name or names.get(turn.call, ""), turn.content))
            continue
        if lines:
            found.append(Turn("tool", "\n".join(lines)))
            lines = []
        found.append(_spoken(turn, answers))
    return [*found, Turn("tool", "\n".join(lines))] if lines else found


def _spoken(turn: Turn, answers: bool) -> Turn:
    """Return a turn as it was written."""
    if turn.role != "assistant" or not (turn.calls or answers):
        return Turn(turn.role, turn.content)
    if not turn.calls:
        return Turn(turn.role, _compact({"answer": turn.content}))
    calls = [{"tool": call.name, "arguments": call.arguments} for call in turn.calls]
    text = _compact(calls[0] if len(calls) == 1 else calls)
    return Turn(turn.role, f"{turn.content}\n{text}" if turn.content else text)


def result(name: str, content: str) -> str:
    """Return what came of a call as a line of JSON that a model is shown."""
    about = f'{{"tool": {_compact(name)}, '
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return f'{about}"result": {_compact(content)}}}'
    if isinstance(value, dict) and value.keys() == {"error"} and isinstance(value["error"], str):
        return f'{about}"error": {_compact(value["error"])}}}'
    return f'{about}"result": {content}}}'


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


# Forms.


class Text:
    """Nothing can be called: what the model writes is its answer."""

    style = "text"
    offer: Offer | None = None
    tools = ""

    def put(self, args: LlmGenerate, fresh: bool) -> LlmGenerate:
        """See Form."""
        return msgspec.structs.replace(args, prompt="", messages=plain(chat(args), False))

    def hear(self, piece: str) -> str:
        """See Form."""
        return piece

    def said(self, whole: str) -> Said:
        """See Form."""
        return Said(whole)


class Json:
    """The model is told in words what it can call, and writes JSON."""

    style = "json"
    tools = ""

    def __init__(self, args: LlmGenerate) -> None:
        functions = offered(args.functions)
        self.offer: Offer | None = Offer(functions, args.tool_choice, args.tool_calls, args.schema)
        self._names = {one.name for one in self.offer.callable}
        self._shaped = args.schema is not None  # an answer is a value, not a text
        self._most = args.tool_calls
        self._told = told(functions, args.tool_choice, args.tool_calls)
        self._left = ""  # what was written and not heard yet
        self._within = ""  # "": not known yet; a text, a value, or the end of one

    def put(self, args: LlmGenerate, fresh: bool) -> LlmGenerate:
        """See Form. The offer is part of the system message where a context begins.

        In one that goes on it stands before the turn, since few templates take a system message
        there; where the turn answers calls the model knows it.
        """
        turns = plain(chat(args), True)
        first, text = turns[0], self._told
        if not fresh and answers_calls(args.messages):
            pass
        elif first.role == "system":
            turns[0] = Turn("system", f"{first.content}\n\n{text}")
        elif fresh:
            turns.insert(0, Turn("system", text))
        else:
            turns[0] = Turn(first.role, f"{text}\n\n{first.content}")
        return msgspec.structs.replace(args, prompt="", messages=turns)

    def hear(self, piece: str) -> str:
        """See Form."""
        self._left += piece
        if not self._within and (begun := _BEGUN.match(self._left)):
            self._left = self._left[begun.end() :]
            self._within = "value" if self._shaped else "text"
            self._left = self._left if self._shaped else self._left.removeprefix('"')
        if self._within == "text":
            return self._letters()
        return self._part() if self._within == "value" else ""

    def _letters(self) -> str:
        """Return the whole letters of a text that is written as JSON."""
        whole = _LETTERS.match(self._left)
        assert whole is not None  # it may be empty
        self._left = self._left[whole.end() :]
        if self._left.startswith('"'):
            self._within = "end"
        return _sound(json.loads(f'"{whole[0]}"', strict=False))

    def _part(self) -> str:
        """Return the part of a value that surely is not what closes the object around it."""
        closing = _CLOSING.search(self._left)
        assert closing is not None  # it may be empty
        part, self._left = self._left[: closing.start()], self._left[closing.start() :]
        return part

    def said(self, whole: str) -> Said:
        """See Form."""
        try:
            value = json.loads(whole)
        except (ValueError, RecursionError) as error:
            raise strange("something that is no JSON") from error
        if isinstance(value, dict) and value.keys() == {"answer"}:
            begun = _BEGUN.match(whole)
            if not self._shaped:
                return Said(_sound(str(value["answer"])))
            if begun is not None:
                return Said(whole[begun.end() :].rstrip()[:-1].rstrip())
        return Said(calls=read(value, self._names, self._most))


def _sound(text: str) -> str:
    """Return a text without halves of letters, which nothing can be written with."""
    return text.encode("utf-8", "replace").decode()


def read(value: Any, names: set[str], most: int) -> list[Wanted]:
    """Return the calls that a value stands for; raises OSError(EIO)."""
    wanted = value if isinstance(value, list) else [value]
    if not 1 <= len(wanted) <= most:
        raise strange(f"{len(wanted)} calls at once, {most} are the most")
    return [_wanted(each, names) for each in wanted]


def _wanted(value: Any, names: set[str]) -> Wanted:
    if not isinstance(value, dict) or value.keys() != {"tool", "arguments"}:
        raise strange("something that is no call")
    tool, arguments = value["tool"], value["arguments"]
    if not isinstance(tool, str) or tool not in names:
        raise strange(f"a call of {str(tool)[:64]!r}, which was not offered")
    if not isinstance(arguments, dict):
        raise strange(f"a call of {tool!r} without an object of arguments")
    return Wanted(tool, arguments)


def strange(what: str) -> OSError:
    """Return the error of a reply that can't be read."""
    return OSError(errno.EIO, f"llm_generate: tools: the model wrote {what}; nothing was called")
