"""llm_generate with functions, at the door: offered, called, never carried out.

A fake model writes whatever its grammar lets through, so each seed is another hostile model.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import aios
from aiosd.abi.inference import Function, Generation, GetContext, Turn, TurnCall
from aiosd.abi.toolcalls import turns
from tests.conftest import World
from tests.daemon import PATIENCE
from tests.system.agents import until
from tests.system.writer import Writer, core, held
from tests.tools.turning import CORE, TOOLS, WORD, ToolDaemon

WEATHER = Function(
    "get_weather",
    "Say what the weather is like.",
    {"type": "object", "properties": {"city": WORD}, "required": ["city"]},
)
STOP = Function("stop_all", "Stop.", {"type": "object", "properties": {}})
NATIVE = """
[[cores]]
name = "n"
driver = "fake"
options = {tools = true}
slots = 2
n_ctx = 16384
"""
ONE: dict[str, Any] = {"tool_choice": "required", "tool_calls": 1, "max_tokens": 400}


@pytest.fixture(scope="module")
def daemon(world: World) -> Iterator[ToolDaemon]:
    state = world.make(must_end_empty=False)
    world.state_dirs.append(state)
    places = state, world.make(must_end_empty=True), world.make(must_end_empty=True)
    with ToolDaemon(*places, config=CORE + NATIVE) as daemon:
        until(lambda: core(daemon, "n").state == "ready", "the other core is ready")
        yield daemon


def ask(a: Writer, prompt: str = "Do it.", **options: Any) -> Generation:
    how: dict[str, Any] = {"raw": False, "functions": [WEATHER, STOP], "max_tokens": 400}
    return a.ask(prompt, **{**how, **options})


def test_calls_go_back_to_the_caller(daemon: ToolDaemon) -> None:
    before = len(daemon.made())
    with Writer(daemon) as a:
        replies = [ask(a, temperature=0.8, seed=seed) for seed in range(6)]
    assert {reply.finish_reason for reply in replies} == {"calls", "stop"}
    for reply in replies:
        assert bool(reply.calls) == (reply.finish_reason == "calls")
        assert not (reply.calls and reply.text)
        ids = [call.id for call in reply.calls]
        assert all(ids) and len(set(ids)) == len(ids)
        for call in reply.calls:
            assert (call.result, call.error, call.round) == ("", "", 1)
            schema = {"get_weather": WEATHER, "stop_all": STOP}[call.tool].parameters
            jsonschema.validate(call.arguments, schema)
    assert len(daemon.made()) == before


def test_a_template_that_knows_tools_offers_them_its_own_way(daemon: ToolDaemon) -> None:
    how: dict[str, Any] = {"core": "n", "tool_choice": "required", "tool_calls": 2}
    with Writer(daemon) as a:
        replies = [ask(a, **how, temperature=0.9, seed=seed) for seed in range(6)]
        first = next(reply for reply in replies if len(reply.calls) > 1)
        told = [Turn("tool", f'"r{n}"', call=call.id) for n, call in enumerate(first.calls)]
        same = ask(a, "", messages=told, context=first.context, tool_choice="none", max_tokens=9)
        [asked, said, shown, _] = a.call(GetContext(first.context, 1, 9)).turns
        calls = [TurnCall(call.id, call.tool, call.arguments) for call in first.calls]
        chat = [Turn("user", "Do it."), Turn("assistant", "", calls), *told]
        whole = ask(a, "", messages=chat, core="n", tool_choice="none", max_tokens=9)
        again = a.call(GetContext(whole.context, 1, 1)).turns[0].text
        other = ask(a, "And?", context=first.context, functions=[STOP], **ONE)
        text = "".join(turn.text for turn in a.call(GetContext(first.context, 5, 9)).turns)
    assert {reply.finish_reason for reply in replies} == {"calls"}
    assert asked.text.startswith('tools: [{"type": "function", "function": {"name": "get_weather"')
    assert "You can call" not in asked.text and said.text.startswith("<call>{")
    assert shown.text.strip() == '<result>"r0"</result>\n<result>"r1"</result>'
    assert same.calls == whole.calls == []
    for call in first.calls:
        assert (
            f'<call>{{"name": "{call.tool}", "arguments": {json.dumps(call.arguments)}}}</call>'
            in again
        )
    assert (other.finish_reason, [call.tool for call in other.calls]) == ("calls", ["stop_all"])
    assert "You can call" in text, "its head tells of other functions"


def test_rounds_of_tools_go_the_template_s_way_too(daemon: ToolDaemon) -> None:
    before = len(daemon.made())
    with Writer(daemon) as a:
        reply = ask(a, functions=[], tools=["add"], core="n", tool_choice="required", tool_rounds=2)
        told = a.call(GetContext(reply.context, 1, 9)).turns
        streamed = a.begin("Go.", raw=False, functions=[STOP], core="n", key="n", max_tokens=60)
        answer = a.finish(streamed)
        again = a.begin("Go.", raw=False, functions=[STOP], core="n", key="n", max_tokens=60)
        assert a.finish(again) == answer and a.text[again] == a.text[streamed] == answer.text
        assert answer.text and a.seen[again] == answer.token_ids
    assert {call.round for call in reply.calls} == {1, 2}
    assert {call.result for call in reply.calls} == {'{"done":"add"}'}
    assert len(daemon.made()) - before == len(reply.calls)
    assert sum('<result>{"done":"add"}</result>' in turn.text for turn in told) == 2


def test_what_came_of_them_goes_on_in_the_context_or_in_a_fresh_one(daemon: ToolDaemon) -> None:
    with Writer(daemon) as a:
        first = ask(a, **{**ONE, "tool_choice": "get_weather"})
        [call] = first.calls
        assert call.tool == "get_weather"
        told = [Turn("tool", '{"sky": "clear"}', call=call.id, name=call.tool)]
        same = ask(a, "", messages=told, context=first.context, tool_choice="none")
        assert (same.finish_reason, same.calls, same.context) == ("stop", [], first.context)
        said = Turn("assistant", "", [TurnCall(call.id, call.tool, call.arguments)])
        whole = ask(a, "", messages=[Turn("user", "Do it."), said, *told], tool_choice="required")
        assert whole.finish_reason == "calls"
        text = "".join(turn.text for turn in a.call(GetContext(whole.context, 1, 9)).turns)
        after = ask(a, "", messages=[Turn("user", "Do it."), said, *told], functions=[])
    assert json.dumps(call.arguments, ensure_ascii=False, separators=(",", ":")) in text
    assert '{"tool": "get_weather", "result": {"sky": "clear"}}' in text
    assert after.finish_reason in ("stop", "length") and after.text


def test_a_stream_is_the_answer_without_the_json_around_it(daemon: ToolDaemon) -> None:
    with Writer(daemon) as a:
        for seed in range(4):
            wanted = a.begin("Go.", raw=False, functions=[STOP], temperature=0.8, seed=seed,
                             max_tokens=200, key=f"f{seed}")  # fmt: skip
            reply = a.finish(wanted)
            assert a.text[wanted] == reply.text and a.seen[wanted] == reply.token_ids
            again = a.begin("Go.", raw=False, functions=[STOP], temperature=0.8, seed=seed,
                            max_tokens=200, key=f"f{seed}")  # fmt: skip
            assert a.finish(again) == reply and a.text[again] == reply.text
            assert '"answer"' not in reply.text


def test_a_schema_shapes_the_answer(daemon: ToolDaemon) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    with Writer(daemon) as a:
        reply = ask(a, tool_choice="none", schema=schema)
        seeds = (ask(a, schema=schema, temperature=0.9, seed=seed) for seed in range(40))
        answered = next(reply for reply in seeds if reply.finish_reason == "stop")
    for each in (reply, answered):
        assert json.loads(each.text) == each.parsed and each.parsed["ok"] in (True, False)


def test_tools_are_carried_out_and_functions_end_the_rounds(daemon: ToolDaemon) -> None:
    before = len(daemon.made())
    with Writer(daemon) as a:
        how: dict[str, Any] = {"tools": ["add"], "functions": [STOP], "tool_choice": "required"}
        replies = [ask(a, **how, temperature=0.9, seed=seed, key=f"m{seed}") for seed in range(8)]
        ended = [reply for reply in replies if reply.finish_reason == "calls"]
        last = ended[0].calls[-1]
        done = [call for call in ended[0].calls if call.round == last.round]
        on = ask(a, "", messages=turns(done), context=ended[0].context, **{**how, "tools": []})
    assert on.finish_reason == "calls"
    for reply in ended:
        mine = [call for call in reply.calls if call.tool == "stop_all"]
        assert {call.round for call in mine} == {reply.calls[-1].round}
        assert all(not call.result and not call.error and call.id for call in mine)
        others = [call for call in reply.calls if call.tool == "add"]
        assert {call.result for call in others} <= {'{"done":"add"}'}
    tools = [call for reply in replies for call in reply.calls if call.tool != "stop_all"]
    assert len(daemon.made()) - before == len(tools)
    assert set(TOOLS) > {call.tool for call in tools}


@pytest.mark.parametrize("name", ["c", "n"])
def test_a_killed_kernel_s_reply_is_heard_on_by_the_next(
    state_dir: Path, runtime_dir: Path, kv_dir: Path, name: str
) -> None:
    how: dict[str, Any] = {
        "raw": False, "functions": [STOP], "tool_choice": "none", "core": name, "min_tokens": 40,
        "max_tokens": 400, "temperature": 0.8, "seed": 5,
    }  # fmt: skip
    daemon = ToolDaemon(state_dir, runtime_dir, kv_dir, config=CORE + NATIVE)
    with daemon:
        with Writer(daemon) as other:
            alone = ask(other, "Go.", **how)
        with Writer(daemon) as a:
            wanted = a.begin("Go.", **how, key="once")
            a.read_tokens(wanted, 20)
            with held(daemon, name):
                daemon.process.kill()
                daemon.process.wait(PATIENCE)
            seen, text = a.seen[wanted], a.text[wanted]
        daemon._notify.close()
        daemon.start()
        with Writer(daemon, credential=a.credential) as again:
            late = again.begin("Go.", **how, key="once", resume=len(seen))
            reply = again.finish(late)
            assert seen + again.seen[late] == reply.token_ids == alone.token_ids
            assert text + again.text[late] == reply.text == alone.text
    assert len(reply.token_ids) >= 40 and reply.finish_reason == alone.finish_reason


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"functions": [STOP, STOP]}, "twice"),
        ({"functions": [Function("add")], "tools": ["add"]}, "twice"),
        ({"tool_choice": "other"}, "tool_choice"),
        ({"stop": ["x"]}, "stop"),
        ({"raw": True}, "raw"),
        ({"beams": 2}, "beams"),
        ({"functions": [Function(f"f{n}", "x" * 65536) for n in range(5)]}, "together"),
        ({"functions": [], "tool_choice": "none"}, "tool_choice"),
        ({"tool_rounds": 2}, "tool_rounds"),
        ({"prompt": "", "messages": [Turn("user", "x", [TurnCall("", "f", {})])]}, "assistant"),
        ({"prompt": "", "messages": [Turn("user", "x", call="1")]}, "tool"),
    ],
)
def test_what_can_t_be_meant_is_refused(
    daemon: ToolDaemon, options: dict[str, Any], named: str
) -> None:
    with Writer(daemon) as a, pytest.raises(OSError, match=named) as refused:
        ask(a, **options)
    assert refused.value.errno == errno.EINVAL


def test_the_sdk_takes_functions_as_mappings(daemon: ToolDaemon) -> None:
    with aios.connect(daemon.socket, name="sdk") as kernel:
        stop = {"name": "stop_all", "parameters": {"type": "object", "properties": {}}}
        reply = kernel.llm_generate("Go.", functions=[stop], tool_choice="required", tool_calls=1)
        with pytest.raises(ValueError, match=r"functions\[0\]"):
            kernel.llm_generate("Go.", functions=[{"title": "x"}])
    assert [call.tool for call in reply.calls] == ["stop_all"]
