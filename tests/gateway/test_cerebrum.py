"""Cerebrum's API: what its client sends, and what it reads."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from typing import Any

import pytest

from aiosd.abi.accounts import Grant
from aiosd.abi.process import RegisterAgent, Spawn, Wait
from aiosd.abi.storage import StoList
from tests.daemon import PATIENCE
from tests.gateway.conftest import Answer, Host, Registered

TOOL = {
    "type": "function",
    "function": {
        "name": "demo_author/arxiv",
        "description": "finds papers",
        "parameters": {
            "type": "object",
            "properties": {"query": {"enum": ["kv"]}},
            "required": ["query"],
            "additionalProperties": False,
        },
    },
}
TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}]

Ask = Callable[..., Any]


def _query(host: Host, key: str, kind: str, data: dict[str, Any]) -> Answer:
    """Ask as Cerebrum's client does: the key is the password in the address."""
    basic = base64.b64encode(f"aios:{key}".encode()).decode()
    body = {"query_type": kind, "agent_name": "test_agent", "query_data": data}
    return host.ask("/query", "", body, Authorization=f"Basic {basic}")


@pytest.fixture
def ask(host: Host, agent: Registered) -> Ask:
    """Give what makes a query and returns its response."""

    def query(kind: str, **data: Any) -> Any:
        answer = _query(host, agent.key, kind, {"query_class": kind, **data})
        assert answer.status == 200, answer.body
        return answer.json["response"] if isinstance(answer.json, dict) else answer.json

    return query


def _llm(action: str, **more: Any) -> dict[str, Any]:
    """Return an llm query as the client's model of it is dumped, defaults and all."""
    usual = {
        "llms": None, "messages": TURNS, "tools": [], "action_type": action, "temperature": 1.0,
        "max_new_tokens": 12, "message_return_type": "text", "response_format": None,
    }  # fmt: skip
    return usual | more


def test_a_chat_is_answered_with_its_times(host: Host, agent: Registered) -> None:
    told = _query(host, agent.key, "llm", _llm("chat", llms=[{"name": "gpt-4o"}])).json
    reply = told["response"]
    assert reply["response_class"] == "llm" and reply["status_code"] == 200
    assert reply["response_message"] and reply["finished"] and reply["error"] is None
    [start], [end] = told["start_times"], told["end_times"]
    [waited], [took] = told["waiting_times"], told["turnaround_times"]
    assert start <= end and 0 <= waited <= took


def test_json_is_what_was_asked_for(ask: Ask) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"],
              "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "response", "schema": schema}}
    reply = ask("llm", **_llm("chat_with_json_output", response_format=form, max_new_tokens=100))
    assert json.loads(reply["response_message"]) == {"n": 7}


def test_a_model_calls_tools_by_their_own_names(ask: Ask) -> None:
    seen = set()
    for number in range(20):  # the fake model calls, or writes a text: it goes by the prompt
        turns = [{"role": "user", "content": f"Find paper {number}."}]
        query = _llm("chat_with_tool_call_output", tools=[TOOL], max_new_tokens=200)
        query |= {"messages": turns, "temperature": 0.0}
        reply = ask("llm", **query)
        assert (reply["response_message"] is None) == bool(reply["tool_calls"])
        for call in reply["tool_calls"] or []:
            assert call["name"] == "demo_author/arxiv" and call["id"]
            assert call["parameters"] == {"query": "kv"}
        seen.add(bool(reply["tool_calls"]))
    assert True in seen


def test_what_the_kernel_refuses_is_told_in_the_answer(ask: Ask) -> None:
    reply = ask("llm", **_llm("chat", messages=[{"role": "nobody", "content": "x"}]))
    assert reply["finished"] and reply["error"] and reply["status_code"] == 400
    reply = ask("tool", tool_calls=[{"name": "author/nothing", "parameters": {}}])
    assert reply["response_class"] == "tool" and reply["status_code"] == 404
    reply = ask("tool", tool_calls=[{"name": "demo_author/arxiv", "parameters": {"query": 1}}])
    assert "'arxiv_search'" in reply["error"] or "tool arxiv_search: " in reply["error"]
    assert "'arxiv'" not in reply["error"]
    assert ask("tool", tool_calls=[])["finished"] is False
    assert "no operation" in ask("memory", operation_type="dream", params={})["error"]
    assert "no operation" in ask("storage", operation_type="dream", params={})["error"]
    assert (
        "public link" in ask("storage", operation_type="share", params={"file_path": "a"})["error"]
    )


def test_memory_is_kept_found_changed_and_forgotten(ask: Ask) -> None:
    def memory(operation: str, **params: Any) -> Any:
        return ask("memory", operation_type=operation, params=params)

    about = {"tags": ["pets"], "priority": "high"}
    made = memory("add_memory", content="The cat sleeps.", metadata=about)
    number = made["memory_id"]
    assert made["success"] and isinstance(number, str)
    found = memory("retrieve_memory", content="cat", k=3)["search_results"]
    assert [(row["memory_id"], row["tags"]) for row in found] == [(number, ["pets"])]
    changed = memory("update_memory", memory_id=number, content=None, metadata={"tags": ["cats"]})
    assert changed["success"]
    kept = memory("get_memory", memory_id=number)
    assert kept["content"] == "The cat sleeps."
    assert kept["metadata"]["tags"] == ["cats"] and kept["metadata"]["priority"] == "high"
    assert memory("remove_memory", memory_id=number)["success"]
    lost = memory("get_memory", memory_id=number)
    assert lost["success"] is False and lost["error"]
    assert memory("get_memory", memory_id="mem_123abc")["success"] is False
    analyzed = memory("add_agentic_memory", content="A long note.", metadata={})
    assert analyzed["success"]
    metadata = memory("get_memory", memory_id=analyzed["memory_id"])["metadata"]
    assert {"timestamp"} <= metadata.keys()


def test_files_have_versions(ask: Ask) -> None:
    def storage(operation: str, **params: Any) -> Any:
        return ask("storage", operation_type=operation, params=params)

    assert storage("mount", root_dir="/data")["finished"]
    assert storage("create_dir", dir_path="notes")["error"] is None
    assert "created" in storage("create_file", file_path="notes/a.txt")["response_message"]
    assert "already" in storage("create_file", file_path="/notes/a.txt")["response_message"]
    for text in ("the first zebra", "the second zebra"):
        assert storage("write", file_path="notes/a.txt", content=text)["error"] is None
    told = storage("retrieve", query_text="zebra", n=5, keywords=None)["response_message"]
    [found] = json.loads(told)
    assert found["document_summary"] == "the second zebra"
    assert found["metadata"]["file_path"] == "notes/a.txt"
    assert storage("rollback", file_path="notes/a.txt", n="1")["error"] is None
    again = json.loads(storage("retrieve", query_text="zebra", n=5)["response_message"])
    assert again[0]["document_summary"] == "the first zebra"
    assert storage("rollback", file_path="notes/a.txt", n=99)["status_code"] == 404
    assert storage("write", file_path="../..", content="x")["status_code"] == 400


def test_a_file_is_shared_with_a_group(host: Host, agent: Registered, ask: Ask) -> None:
    def share(**params: Any) -> Any:
        return ask("storage", operation_type="share", params={"file_path": "plan.txt", **params})

    ask("storage", operation_type="write", params={"file_path": "plan.txt", "content": "Meet."})
    assert "group" in share()["error"]
    with host.daemon.connect() as client:
        client.call(Grant(subject=f"agent:{agent.aid}", capability="member", object="group:crew"))
    told = json.loads(share()["response_message"])
    assert told["share_link"] == "pool:crew/plan.txt" and told["file_name"] == "plan.txt"
    [copy] = agent.client.call(StoList(pool="crew"))
    assert (copy.name, copy.size) == ("plan.txt", 5)
    assert share(group="others")["status_code"] == 403


def test_a_model_works_with_files(ask: Ask) -> None:
    told = ask("llm", **_llm("operate_file", max_new_tokens=400))
    assert isinstance(told, str) and told


def test_its_companions_tell_of_cores(host: Host, agent: Registered) -> None:
    assert host.ask("/status", agent.key).json["status"] == "ok"
    assert set(host.ask("/core/status", agent.key).json.values()) == {"active"}
    listed = host.ask("/core/llms/list", agent.key).json
    assert listed["status"] == "success" and listed["llms"][0]["name"] == "fake"
    chosen = [{"name": "fake", "provider": "aios"}]
    assert host.ask("/user/select/llms", agent.key, chosen).json["status"] == "success"
    assert "fake" in host.ask("/user/selected/llms", agent.key).json["message"]
    refused = host.ask("/core/refresh", agent.key, {})
    assert refused.status == 403 and "aiosd.toml" in refused.json["detail"]
    assert host.ask("/get/mcp/server", agent.key).json["status"] == "warning"
    for path in ("/status", "/core/llms/list", "/agents/ps"):
        assert host.ask(path).status == 401
    assert _query(host, "wrong", "llm", _llm("chat")).status == 401
    assert host.ask("/query", agent.key, {"query_type": "llm"}).status == 400
    assert host.ask("/query", agent.key, {"query_type": "llm", "agent_name": "a",
                                          "query_data": {"messages": 1}}).status == 422  # fmt: skip


def test_selected_models_are_those_of_queries(host: Host) -> None:
    with host.daemon.connect() as client:
        key = client.call(RegisterAgent(name="chooser")).credential
        assert host.ask("/user/selected/llms", key).json["status"] == "warning"
        one, other = ({"name": name, "provider": "aios"} for name in ("fake", "absent"))
        host.ask("/user/select/llms", key, [one])
        assert _query(host, key, "llm", _llm("chat")).json["response"]["error"] is None
        assert _query(host, key, "llm", _llm("chat", llms=[one])).status == 200
        refused = _query(host, key, "llm", _llm("chat", llms=[other]))
        assert refused.status == 400 and "not among those selected" in refused.json["detail"]
        host.ask("/user/select/llms", key, [])
        assert _query(host, key, "llm", _llm("chat", llms=[other])).status == 200


def test_a_submitted_agent_runs_to_its_result(host: Host, agent: Registered) -> None:
    asked = {"agent_id": "example/math", "agent_config": {"task": "Add 2 and 3."}}
    started = host.ask("/agents/submit", agent.key, asked).json
    assert started["status"] == "success"
    aid = started["execution_id"]
    assert agent.client.call(Wait(aid=aid, timeout=PATIENCE)) is not None
    told = host.ask(f"/agents/{aid}/status", agent.key).json
    assert told["status"] == "completed" and told["execution_id"] == aid
    assert told["result"]["exit_code"] == 0 and "solve" in told["result"]["result"]
    rows = {row["execution_id"]: row for row in host.ask("/agents/ps", agent.key).json["processes"]}
    assert rows[aid]["task"] == "Add 2 and 3." and rows[aid]["status"] == "completed"

    assert host.ask("/agents/999999/status", agent.key).status == 404
    lost = {"agent_id": "author/nothing-of-this-name", "agent_config": {"task": "x"}}
    assert host.ask("/agents/submit", agent.key, lost).status == 404
    missing = {"agent_id": "math", "agent_config": {}}
    assert host.ask("/agents/submit", agent.key, missing).status == 422


CLIENT = """
import json, os, urllib.parse, requests
url = os.environ["CEREBRUM_KERNEL_URL"]
data = {"messages": [{"role": "user", "content": "hi"}], "action_type": "chat", "tools": None,
        "max_new_tokens": 5}
body = {"query_type": "llm", "agent_name": "a", "query_data": data}
reply = requests.post(f"{url}/query", json=body)
reply.raise_for_status()
assert reply.json()["response"]["finished"] is True, reply.json()
"""


def test_a_program_finds_its_key_in_the_address(host: Host, agent: Registered) -> None:
    pytest.importorskip("requests")
    started = agent.client.call(Spawn([sys.executable, "-c", CLIENT]))
    status = agent.client.call(Wait(aid=started.aid, timeout=PATIENCE))
    assert status is not None and status.code == 0
