"""How a chat template itself writes calls: found out by looking at what it renders. Pure.

    style = derive(template, control_words)     # None: none that a model can be held to
    text = grammar(offer)                       # of an Offer with such a style: GBNF

A template is a program, and each model's writes calls in another way. So it is asked to render some
with names and arguments that are known, and what stands around those is the style. A grammar made
of it lets a model write exactly what its template would have written of the same calls, and before
them any text in which no call begins.

What must hold: nothing in a style is a control token, which no grammar of characters can demand;
where a call begins can be told from any text before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from aiosd.engine import schema as grammars
from aiosd.engine.calls import Offer, Style, kept, moved
from aiosd.engine.prompt import REPLY, Template

LONGEST: Final = 256
"""Characters of each part of a style."""

_NAMES: Final = ("qxone", "qxtwo")
_ID: Final = "qxid00001"
_ARGUMENTS: Final = re.compile(r'\{\s*"qxkey"\s*:\s*71\s*\}')
_ASKED: Final = {"role": "user", "content": "x"}


# What a template writes.


def derive(template: Template, control_words: Sequence[str]) -> Style | None:
    """Return how a template writes calls; None where it knows none, or can't be held to them."""
    try:
        style = _derived(template)
    except ValueError:
        return None
    if style is None or not style.begins:
        return None
    parts = (style.before, style.middle, style.between, style.after)
    sound = all(len(part) <= LONGEST for part in parts)
    free = not any(word in part for word in control_words for part in parts)
    return style if sound and free else None


def _derived(template: Template) -> Style | None:
    tools = [_tool(name) for name in _NAMES]
    if _NAMES[0] not in template([_ASKED], tools):
        return None
    said = {"role": "assistant", "content": "", "tool_calls": [_call(0)]}
    heard = {"role": "tool", "content": REPLY, "tool_call_id": _ID, "name": _NAMES[0]}
    if REPLY not in template([_ASKED, said, heard], tools):
        return None
    one = _written(template, tools, 1)
    found = _ARGUMENTS.search(one)
    if one.count(_NAMES[0]) != 1 or found is None or _ID in one:
        return None
    before, _, rest = one[: found.start()].partition(_NAMES[0])
    if not rest or re.match("[A-Za-z0-9._:-]", rest):
        return None  # where the name ends could not be told
    style = Style(before, rest, "", one[found.end() :])
    return Style(before, rest, _between(template, tools, style, found[0]), style.after)


def _between(template: Template, tools: list[Any], style: Style, arguments: str) -> str:
    """Return what stands between two calls; "" where the template takes but one at a time."""
    try:
        two = _written(template, tools, 2)
    except ValueError:
        return ""
    first = f"{style.before}{_NAMES[0]}{style.middle}{arguments}"
    last = f"{_NAMES[1]}{style.middle}{arguments}{style.after}"
    fits = two.startswith(first) and two.endswith(last) and len(two) > len(first) + len(last)
    return two[len(first) : len(two) - len(last)] if fits else ""


def _written(template: Template, tools: list[Any], count: int) -> str:
    """Return what a template writes of so many calls, without what it writes around any turn."""
    plain = template([_ASKED, {"role": "assistant", "content": REPLY}], tools)
    head, _, tail = plain.partition(REPLY)
    calls = [_call(place) for place in range(count)]
    said = {"role": "assistant", "content": "", "tool_calls": calls}
    text = template([_ASKED, said], tools)
    if not (text.startswith(head) and text.endswith(tail)):
        raise ValueError("calls change what stands around a turn")
    return text[len(head) : len(text) - len(tail)]


def _tool(name: str) -> dict[str, Any]:
    about = {"name": name, "description": "", "parameters": {"type": "object", "properties": {}}}
    return {"type": "function", "function": about}


def _call(place: int) -> dict[str, Any]:
    function = {"name": _NAMES[place], "arguments": {"qxkey": 71}}
    return {"id": _ID, "type": "function", "function": function}


# What a model may write.


def grammar(offer: Offer) -> str:
    """Return the grammar of what a model may write in a style; raises OSError(EINVAL)."""
    style, functions = offer.style, offer.callable
    assert style is not None
    inputs = [moved(kept(one.input), f"#/schemas/{i}") for i, one in enumerate(functions)]
    answer = [] if offer.answer is None else [moved(offer.answer, f"#/schemas/{len(inputs)}")]
    rights, rules = grammars.several([*inputs, *answer])
    lines = [f"{name} ::= {right}" for name, right in rules.items()]
    if functions:
        lines += _calls(style, [one.name for one in functions], rights, offer.most)
    if offer.answer is not None:
        lines.append(f"answer ::= {rights[-1]}")
    elif offer.answers or not functions:
        lines += _text(style.begins, rest="rest" if functions else "")
    return "\n".join([f"root ::= {_root(offer, bool(functions))}", *lines])


def _root(offer: Offer, calls: bool) -> str:
    assert offer.style is not None
    call = f"{_literal(offer.style.begins)} rest"
    if calls and not offer.answers:
        return call
    if offer.answer is None:
        return "text-0"
    return f"{call} | answer" if calls else "answer"


def _calls(style: Style, names: list[str], rights: list[str], most: int) -> Iterator[str]:
    """Yield the rules of calls behind what they begin with."""
    for place, name in enumerate(names):
        yield f"call-{place} ::= {_literal(name + style.middle)} ({rights[place]})"
    yield "call ::= " + " | ".join(f"call-{place}" for place in range(len(names)))
    more = f" ({_literal(style.between)} call){{0,{most - 1}}}" if style.between else ""
    begun = style.before[len(style.begins) :]
    yield f"rest ::= {_literal(begun)} call{more} {_literal(style.after)}"


def _text(begins: str, rest: str) -> Iterator[str]:
    """Yield the rules of a text in which no call begins, or which ends with calls.

    Rule text-N goes on where the last N characters are the first ones of what begins a call.
    """
    letters = sorted(set(begins))
    for done in range(len(begins)):
        parts = ['""', f"[^{''.join(map(_point, letters))}] text-0"]
        for letter in letters:
            now = _overlap(begins[:done] + letter, begins)
            if now < len(begins):
                parts.append(f"[{_point(letter)}] text-{now}")
            elif rest:
                parts.append(f"[{_point(letter)}] {rest}")
        yield f"text-{done} ::= {' | '.join(parts)}"


def _overlap(text: str, begins: str) -> int:
    """Return how many of the first characters of `begins` a text ends with."""
    counts = range(min(len(text), len(begins)), -1, -1)
    return next(count for count in counts if text.endswith(begins[:count]))


def _literal(text: str) -> str:
    return f'"{"".join(map(_point, text))}"'


def _point(letter: str) -> str:
    return f"\\U{ord(letter):08X}"
