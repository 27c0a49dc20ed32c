"""Which form a request's functions take, and the one of chat templates that know tools.

    style = style_of(args, fresh, native, offered)
    form = form_of(args, style)              # None: nothing about functions in this request

A template that knows tools is given them, and the model writes calls as that template does. Where
it knows none, or the context was begun without these functions, `calling` has a form for any model.
In a native style an answer is a plain text; the calls may have a text in front of them.

What must hold: a form is made again from its style alone, by whichever kernel goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import msgspec

from aiosd.abi.inference import Function, LlmGenerate
from aiosd.calling import Form, Json, Said, Text, Wanted, answers_calls, chat, offered, strange
from aiosd.engine.calls import Offer, Style


def style_of(args: LlmGenerate, fresh: bool, native: str, known: str) -> str:
    """Return the style of a request, "" where it has nothing of functions.

    native: how the template writes calls (protocol.Loaded.calls). known: digest of the functions
    that its context was begun with. What goes on after calls is told no more that nothing can be
    called: it answers as it began.
    """
    calls = any(turn.calls or turn.call for turn in args.messages)
    if not (args.functions or calls):
        return ""
    if native and _fits(args, native) and (fresh or not args.functions or known == digest(args)):
        return native
    after = not fresh and answers_calls(args.messages)
    return "json" if args.functions and (args.tool_choice != "none" or after) else "text"


def form_of(args: LlmGenerate, style: str) -> Form | None:
    """Return how a request's functions are put to a model, None where it has nothing of them."""
    if style.startswith("{"):
        return Native(args, style)
    if style == "text":
        return Text()
    return Json(args) if style else None


def digest(args: LlmGenerate) -> str:
    """Return what tells a request's functions from others."""
    return hashlib.blake2b(msgspec.json.encode(args.functions), digest_size=16).hexdigest()


def _fits(args: LlmGenerate, native: str) -> bool:
    """Whether calls can be told from answers: JSON is not, where calls begin as JSON does."""
    return args.schema is None or _style(native).begins.lstrip()[0] not in '{["'


def _style(native: str) -> Style:
    return msgspec.json.decode(native, type=Style)


class Native:
    """The template offers the functions, and the model writes calls as the template does."""

    def __init__(self, args: LlmGenerate, style: str) -> None:
        self.style = style
        self._style = _style(style)
        self._functions: Sequence[Function] = args.functions
        functions = offered(args.functions)
        self.tools = msgspec.json.encode(functions).decode() if functions else ""
        choice, most = args.tool_choice, args.tool_calls
        offer = Offer(functions, choice, most, args.schema, self._style)
        self.offer: Offer | None = offer if functions else None
        self._names = sorted((one.name for one in offer.callable), key=len, reverse=True)
        self._left = ""  # what was written and not heard yet
        self._called = False

    def put(self, args: LlmGenerate, fresh: bool) -> LlmGenerate:
        """See Form."""
        return msgspec.structs.replace(args, prompt="", messages=chat(args))

    def hear(self, piece: str) -> str:
        """See Form. What a call may begin with is held back, and blanks before it."""
        if self.offer is None:
            return piece
        if self._called:
            return ""
        self._left += piece
        text, self._called = self._before(self._left)
        held = len(text) if self._called else len(text) - self._begun(text)
        whole = text[:held].rstrip()
        self._left = self._left[len(whole) :]
        return whole

    def _before(self, text: str) -> tuple[str, bool]:
        """Return what stands before a call, and whether there is one."""
        before, call, _ = text.partition(self._style.begins)
        return before, bool(call)

    def _begun(self, text: str) -> int:
        """Return how many letters at a text's end may be the beginning of a call."""
        begins = self._style.begins
        counts = range(min(len(text), len(begins) - 1), 0, -1)
        return next((count for count in counts if text.endswith(begins[:count])), 0)

    def said(self, whole: str) -> Said:
        """See Form."""
        text, called = self._before(whole)
        if self.offer is None or not called:
            return Said(whole)
        rest = whole[len(text) :]
        if not rest.startswith(self._style.before):
            raise strange("the beginning of a call")
        calls, rest = [], rest[len(self._style.before) :]
        while True:
            call, rest = self._call(rest)
            calls.append(call)
            if rest == self._style.after:
                return Said(text.rstrip(), calls)
            between = self._style.between
            if not between or not rest.startswith(between) or len(calls) >= self._most:
                raise strange("something behind a call")
            rest = rest[len(between) :]

    @property
    def _most(self) -> int:
        return self.offer.most if self.offer is not None else 0

    def _call(self, text: str) -> tuple[Wanted, str]:
        """Return the call that a text begins with, and what is behind it."""
        middle = self._style.middle
        name = next((name for name in self._names if text.startswith(name + middle)), None)
        if name is None:
            raise strange("a call of something that was not offered")
        text = text[len(name) + len(middle) :]
        try:
            arguments, end = json.JSONDecoder().raw_decode(text)
        except (ValueError, RecursionError) as error:
            raise strange(f"a call of {name!r} with what is no JSON") from error
        if not isinstance(arguments, dict):
            raise strange(f"a call of {name!r} without an object of arguments")
        return Wanted(name, arguments), text[end:]
