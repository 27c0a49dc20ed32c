"""What a model is shown of calls that it made: the content of the next turn, of role tool.

`results` is one turn of plain text for all of them, `turns` one for each, which says what it is of.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from aiosd.abi.inference import ToolCall, Turn


def results(calls: Sequence[ToolCall]) -> str:
    """Return what came of calls, a line of JSON each: the tool, and its result or its error."""
    return "\n".join(map(_line, calls))


def turns(calls: Sequence[ToolCall]) -> list[Turn]:
    """Return what came of calls, a turn each."""
    return [Turn("tool", _content(call), call=call.id, name=call.tool) for call in calls]


def _content(call: ToolCall) -> str:
    return f'{{"error": {_text(call.error)}}}' if call.error else call.result


def _line(call: ToolCall) -> str:
    about = f'{{"tool": {_text(call.tool)}, '
    if call.error:
        return f'{about}"error": {_text(call.error)}}}'
    return f'{about}"result": {call.result}}}'


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
