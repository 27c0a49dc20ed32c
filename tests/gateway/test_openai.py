"""The OpenAI-compatible endpoint, asked by the official client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

import aios
from agents.gateway.sampling import Ending
from aiosd.abi.inference import ListContexts
from aiosd.abi.system import Sysinfo
from tests.gateway.conftest import Host, Registered
from tests.system.agents import until

HELLO: list[Any] = [{"role": "user", "content": "Say hello."}]
OK = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
STOP: dict[str, Any] = {
    "type": "object",
    "properties": {"now": {"type": "boolean"}},
    "required": ["now"],
}
TOOL: Any = {"type": "function", "function": {"name": "stop", "parameters": STOP}}
FLAT: Any = {"type": "function", "name": "stop", "parameters": STOP, "strict": False}


@pytest.fixture(scope="module")
def client(host: Host, agent: Registered) -> Iterator[openai.OpenAI]:
    """Give a client with an agent's key."""
    url = f"{host.gateway.http}/v1"
    with openai.OpenAI(base_url=url, api_key=agent.key, max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def kernel(host: Host) -> Iterator[aios.Kernel]:
    """Give the SDK, to compare with."""
    with aios.connect(host.daemon.socket, name="sdk") as kernel:
        yield kernel


def test_a_chat_is_what_the_sdk_gets(client: openai.OpenAI, kernel: aios.Kernel) -> None:
    wanted = kernel.llm_generate(messages=HELLO, max_tokens=40)
    found = client.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=40)
    [choice] = found.choices
    assert choice.message.content == wanted.text
    assert (choice.message.role, choice.finish_reason) == ("assistant", wanted.finish_reason)
    assert found.model == wanted.core == "fake"
    assert found.usage is not None
    assert found.usage.prompt_tokens == wanted.usage.prompt_tokens
    assert found.usage.completion_tokens == wanted.usage.completion_tokens


def test_a_stream_is_the_same_text_in_pieces(client: openai.OpenAI, kernel: aios.Kernel) -> None:
    wanted = kernel.llm_generate(messages=HELLO, max_tokens=40, temperature=0.9, seed=7)
    chunks = list(
        client.chat.completions.create(
            model="fake",
            messages=HELLO,
            max_completion_tokens=40,
            temperature=0.9,
            seed=7,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *pieces, last = chunks
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == wanted.text
    assert pieces[0].choices[0].delta.role == "assistant"
    assert pieces[-1].choices[0].finish_reason == wanted.finish_reason
    assert last.usage is not None and not last.choices
    assert last.usage.completion_tokens == wanted.usage.completion_tokens


def test_an_answer_in_json_satisfies_its_schema(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "ok", "schema": OK}}
    loose: Any = {"type": "json_object"}
    for wanted in (form, loose):
        found = client.chat.completions.create(
            model="fake", messages=HELLO, max_tokens=2000, response_format=wanted
        )
        if found.choices[0].finish_reason == "stop":
            assert isinstance(json.loads(found.choices[0].message.content or ""), dict)
        else:
            assert wanted is not form


def test_functions_are_the_client_s_to_carry_out(client: openai.OpenAI) -> None:
    how: dict[str, Any] = {"model": "fake", "tools": [TOOL], "max_tokens": 400}
    first = client.chat.completions.create(
        messages=HELLO, tool_choice="required", parallel_tool_calls=False, **how
    )
    [choice] = first.choices
    assert choice.finish_reason == "tool_calls" and choice.message.tool_calls
    [call] = choice.message.tool_calls
    assert call.type == "function" and call.function.name == "stop"
    assert json.loads(call.function.arguments)["now"] in (True, False)
    told: list[Any] = [
        *HELLO,
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "stopped"},
    ]
    after = client.chat.completions.create(messages=told, tool_choice="none", **how)
    assert after.choices[0].finish_reason == "stop" and after.choices[0].message.content
    named: Any = {"type": "function", "function": {"name": "stop"}}
    stream = client.chat.completions.create(messages=HELLO, tool_choice=named, stream=True, **how)
    chunks = [chunk.choices[0] for chunk in stream]
    made = [call for chunk in chunks for call in chunk.delta.tool_calls or []]
    assert made and {call.function.name for call in made if call.function} == {"stop"}
    assert chunks[-1].finish_reason == "tool_calls"


def test_log_probabilities_are_of_each_token(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(
        model="fake", messages=HELLO, max_tokens=12, logprobs=True
    )
    [choice] = found.choices
    assert choice.logprobs is not None and choice.logprobs.content is not None
    assert found.usage is not None
    assert len(choice.logprobs.content) == found.usage.completion_tokens
    assert "".join(row.token for row in choice.logprobs.content) == choice.message.content
    assert all(row.logprob <= 0 for row in choice.logprobs.content)


def test_the_likeliest_tokens_come_where_they_are_asked_for(client: openai.OpenAI) -> None:
    how: dict[str, Any] = {"model": "fake", "messages": HELLO, "max_tokens": 6, "logprobs": True}
    [choice] = client.chat.completions.create(top_logprobs=3, **how).choices
    assert choice.logprobs and choice.logprobs.content
    rows = choice.logprobs.content
    assert [len(row.top_logprobs) for row in rows] == [3] * 6
    assert "".join(row.top_logprobs[0].token for row in rows) == choice.message.content
    chunks = [
        chunk.choices[0].logprobs
        for chunk in client.chat.completions.create(top_logprobs=3, stream=True, **how)
    ]
    assert [row for part in chunks if part for row in part.content or []] == rows


def test_responses_tell_the_likeliest_tokens(client: openai.OpenAI) -> None:
    how: dict[str, Any] = {
        "model": "fake", "input": "Say hello.", "max_output_tokens": 20, "top_logprobs": 2,
        "include": ["message.output_text.logprobs"],
    }  # fmt: skip
    found = client.responses.create(**how)
    [part] = found.output[0].to_dict()["content"]
    rows = part["logprobs"]
    assert found.usage and len(rows) == found.usage.output_tokens
    assert all(len(row["top_logprobs"]) == 2 for row in rows)
    events = [event.to_dict() for event in client.responses.create(stream=True, **how)]
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [row for event in deltas for row in event["logprobs"]] == rows
    [done] = [event for event in events if event["type"] == "response.output_text.done"]
    assert done["logprobs"] == rows
    with pytest.raises(openai.BadRequestError, match="background: is not served"):
        client.responses.create(model="fake", input="x", background=True)


def test_several_choices_of_one_request(client: openai.OpenAI) -> None:
    how: dict[str, Any] = {"model": "fake", "messages": HELLO, "max_tokens": 12, "temperature": 0.9}
    alone = [client.chat.completions.create(seed=seed, **how) for seed in (7, 8, 9)]
    texts = [one.choices[0].message.content for one in alone]
    create: Any = client.chat.completions.create
    found = create(n=3, seed=7, **how)
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    assert [choice.message.content for choice in found.choices] == texts
    used = [one.usage.completion_tokens for one in alone if one.usage]
    assert found.usage and found.usage.completion_tokens == sum(used)
    told = {"include_usage": True}
    *pieces, last = create(n=3, seed=7, stream=True, stream_options=told, **how)
    said = [["", ""] for _ in texts]
    for [choice] in (piece.choices for piece in pieces):
        said[choice.index][0] += choice.delta.content or ""
        said[choice.index][1] += choice.finish_reason or ""
    assert [text for text, _ in said] == texts and all(end for _, end in said)
    assert last.usage and last.usage.total_tokens == found.usage.total_tokens


def test_completions_of_several_prompts(client: openai.OpenAI) -> None:
    how: dict[str, Any] = {"model": "fake", "max_tokens": 9, "temperature": 0.9, "seed": 3}
    prompts = ["Once upon", "In the end"]
    alone = [client.completions.create(prompt=one, n=2, logprobs=2, **how) for one in prompts]
    wanted = [choice for one in alone for choice in one.choices]
    found = client.completions.create(prompt=prompts, n=2, logprobs=2, **how)
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in found.choices] == [choice.text for choice in wanted]
    assert [choice.logprobs for choice in found.choices] == [one.logprobs for one in wanted]
    told = wanted[3].logprobs
    assert told and told.top_logprobs and all(len(row) == 2 for row in told.top_logprobs)
    assert "".join(told.tokens or []) == wanted[3].text
    chunks = client.completions.create(prompt=prompts, n=2, stream=True, **how)
    texts = [""] * 4
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in wanted]


def test_completions_go_on_from_a_prompt(client: openai.OpenAI, kernel: aios.Kernel) -> None:
    wanted = kernel.llm_generate("Once upon", raw=True, max_tokens=20)
    found = client.completions.create(model="fake", prompt="Once upon", max_tokens=20, logprobs=1)
    assert found.choices[0].text == wanted.text
    assert found.choices[0].logprobs is not None
    assert found.choices[0].logprobs.token_logprobs
    stream = client.completions.create(
        model="fake", prompt=["Once upon"], max_tokens=20, stream=True, echo=True
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == "Once upon" + wanted.text


def test_embeddings_come_as_numbers_and_packed(client: openai.OpenAI, kernel: aios.Kernel) -> None:
    wanted = kernel.llm_embed(["one", "two"])
    packed = client.embeddings.create(model="any", input=["one", "two"])  # base64 on the wire
    plain = client.embeddings.create(model="any", input="two", encoding_format="float")
    for row, vector in zip(packed.data, wanted.vectors, strict=True):
        assert row.embedding == pytest.approx(vector)
    assert plain.data[0].embedding == pytest.approx(wanted.vectors[1])
    with pytest.raises(openai.BadRequestError, match="input"):
        client.embeddings.create(model="any", input=[[1, 2]])


def test_responses_in_their_basic_form(client: openai.OpenAI, kernel: aios.Kernel) -> None:
    wanted = kernel.llm_generate(messages=HELLO, max_tokens=30)
    found = client.responses.create(model="fake", input="Say hello.", max_output_tokens=30)
    assert found.output_text == wanted.text
    assert found.status == ("completed" if wanted.finish_reason == "stop" else "incomplete")
    with client.responses.stream(model="fake", input="Say hello.", max_output_tokens=30) as stream:
        deltas = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        assert deltas == wanted.text
    more = client.responses.create(
        model="fake", input="And now?", previous_response_id=found.id, max_output_tokens=5
    )
    said = {"role": "assistant", "content": wanted.text}
    chat: list[Any] = [*HELLO, said, {"role": "user", "content": "And now?"}]
    same = client.chat.completions.create(model="fake", messages=chat, max_tokens=5)
    assert more.output_text == same.choices[0].message.content
    with pytest.raises(openai.NotFoundError, match="previous_response_id"):
        client.responses.create(model="fake", input="x", previous_response_id="resp_none")


def test_responses_with_functions_and_forms(client: openai.OpenAI) -> None:
    how: dict[str, Any] = {"model": "fake", "tools": [FLAT], "max_output_tokens": 400}
    first = client.responses.create(input="Go.", tool_choice="required", **how)
    calls = [item for item in first.output if item.type == "function_call"]
    assert calls and json.loads(calls[0].arguments)["now"] in (True, False)
    told: list[Any] = [
        {"type": "function_call_output", "call_id": call.call_id, "output": "stopped"}
        for call in calls
    ]
    after = client.responses.create(
        input=told, previous_response_id=first.id, tool_choice="none", **how
    )
    assert after.output_text
    events = list(client.responses.create(input="Go.", tool_choice="required", stream=True, **how))
    assert events[0].type == "response.created" and events[-1].type == "response.completed"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    form: Any = {"format": {"type": "json_schema", "name": "ok", "schema": OK}}
    shaped = client.responses.create(model="fake", input="Sure?", text=form, max_output_tokens=400)
    assert json.loads(shaped.output_text)["ok"] in (True, False)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"messages": []}, "messages: there are none; send"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, r"\[0\].role: .* 'wizard'.* user"),
        ({"temperature": 2.1}, r"temperature: expected float <= 2.0; send that"),
        ({"frequency_penalty": -3}, "frequency_penalty: expected float >= -2.0"),
        ({"max_tokens": 0}, "max_tokens: expected int >= 1"),
        ({"n": 17}, "n: 17 .* 1 to 16"),
        ({"top_logprobs": 3}, "top_logprobs: it goes with logprobs"),
        ({"functions": []}, "functions: .* send tools"),
        ({"modalities": ["text", "audio"]}, "modalities: is not served"),
        ({"tools": [TOOL], "tool_choice": {"function": {"name": "go"}}}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "image_url"),
    ],
)
def test_what_can_t_be_done_is_named(
    client: openai.OpenAI, asked: dict[str, Any], named: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=named) as found:
        client.chat.completions.create(**{"model": "fake", "messages": HELLO, **asked})
    assert found.value.param and found.value.param.partition("[")[0] in asked


def test_a_client_that_goes_ends_its_request(host: Host, agent: Registered) -> None:
    body = {"messages": HELLO, "stream": True, "max_tokens": 4000, "logit_bias": {"256": -100}}
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "
        f"{agent.key}\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    with host.raw() as peer:
        peer.sendall(head.encode() + data)
        assert b" 200 " in peer.recv(1 << 16)
    until(lambda: agent.client.call(Sysinfo()).requests == 0, "the request has ended")
    rows = agent.client.call(ListContexts())
    assert not any(row.busy for row in rows)


def test_stop_strings_are_found_across_pieces() -> None:
    ending = Ending(["END", "\n\n"])
    assert [ending.hear(piece) for piece in ("a E", "N", "x\n", "b", "E")] == [
        "a ", "", "ENx", "\nb", "",
    ]  # fmt: skip
    assert ending.hear("NDING") == "" and ending.over
    assert ending.hear("more") == "" and ending.rest() == ""
    other = Ending(["END"])
    assert other.hear("an EN") + other.rest() == "an EN"
