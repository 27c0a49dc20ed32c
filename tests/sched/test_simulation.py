"""The simulator: what holds of every policy on every workload, and what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosd import sched
from aiosd.sched import simulate, workload
from aiosd.sched.simulation import Result, Simulation, jain, quantile
from aiosd.sched.workload import Agent, Costs, Turn, Workload

names = st.sampled_from(sorted(sched.POLICIES))
turns = st.builds(Turn, st.integers(0, 200), st.integers(1, 40), st.sampled_from((0.0, 0.3, 2.0)))
agents = st.builds(
    Agent,
    st.just("a"),
    st.sampled_from((0.0, 0.1, 1.0)),
    st.lists(turns, min_size=1, max_size=3).map(tuple),
    st.integers(-20, 19),
    st.integers(1, 3),
)
workloads = st.builds(
    Workload, st.just("w"), st.lists(agents, min_size=1, max_size=8).map(tuple), st.integers(1, 4)
)


def run(name: str, work: Workload, quantum: int = 16) -> Result:
    return Simulation(work, sched.make(name, quantum=quantum)).run()


@settings(max_examples=60, deadline=None)
@given(names, workloads, st.integers(1, 64))
def test_no_token_is_lost_or_repeated(name: str, work: Workload, quantum: int) -> None:
    """And no slot is empty while somebody waits: the simulation itself checks that."""
    result = run(name, work, quantum)
    assert len(result.requests) == sum(len(agent.turns) for agent in work.agents)
    for each in result.requests:
        assert (each.prefilled, each.decoded) == (each.asked.prompt, each.asked.output)
        assert each.submitted <= each.started < each.first <= each.ended
    due = sum(each.asked.prompt + each.asked.output for each in result.requests)
    assert sum(sum(window.values()) for window in result.service.values()) == due


@settings(max_examples=20, deadline=None)
@given(workloads)
def test_all_policies_do_the_same_work_when_nobody_must_wait(work: Workload) -> None:
    roomy = Workload("w", work.agents, slots=8)
    for name in sched.POLICIES:
        result = run(name, roomy)
        assert all(each.waited <= 16 * Costs().switch_s + 0.2 for each in result.requests)
        assert result.preemptions == 0


def test_preemption_serves_a_person_beside_long_work() -> None:
    work = workload.make("background")
    waits = {}
    for name in ("fifo", "fair", "mlfq"):
        result = run(name, work, quantum=64)
        own = [each.waited for each in result.requests if each.agent == 16]
        waits[name] = max(own)
    assert waits["fair"] < 0.3
    assert waits["mlfq"] < 1.0
    assert waits["fifo"] > 20


def test_mlfq_shortens_turnaround_where_few_have_much_to_do() -> None:
    work = workload.make("mixed")
    fifo, mlfq = (run(name, work, quantum=64).summary() for name in ("fifo", "mlfq"))
    assert float(mlfq["turnaround_s"]) <= 0.7 * float(fifo["turnaround_s"])
    assert float(mlfq["seconds"]) <= 1.05 * float(fifo["seconds"])


def test_fair_is_even_from_window_to_window() -> None:
    """As it is without a word of configuration; what it costs is stated in fair's head."""
    work = workload.make("steady")
    fair, fifo = run("fair", work, quantum=64), run("fifo", work)
    all_busy = int(min(each.ended for each in fair.requests) // 2)
    windows = [index for window, index in fair.fairness() if 1 <= window < all_busy]
    assert len(windows) >= 4
    assert sum(windows) / len(windows) >= 0.99
    assert fair.seconds <= 1.17 * fifo.seconds


def test_fair_shares_by_weight_while_all_decode() -> None:
    many = tuple(Agent(f"a{n}", 0.0, (Turn(1, 200),), nice=2 * (n % 2)) for n in range(12))
    work = Workload("w", many, slots=4)
    assert min(index for _, index in run("fair", work, quantum=4).fairness()) >= 0.99
    assert min(index for _, index in run("fifo", work).fairness()) < 0.5


def test_ten_thousand_agents() -> None:
    many = tuple(Agent(f"a{n}", 0.0, (Turn(1, 1),), uid=n % 50) for n in range(10_000))
    result = run("fair", Workload("w", many, slots=64))
    assert {each.decoded for each in result.requests} == {1}


def test_measures() -> None:
    assert jain([1, 1, 1, 1]) == 1
    assert jain([4, 0, 0, 0]) == 0.25
    assert jain([0, 0]) == 1
    assert quantile([], 0.5) == 0
    assert [quantile([4, 1, 3, 2], part) for part in (0.0, 0.5, 0.51, 0.95)] == [1, 2, 3, 4]
    costs = Costs(decode_s=((2, 0.01), (4, 0.02)))
    assert [costs.step(width) for width in (1, 2, 3, 4, 8)] == [0.01, 0.01, 0.015, 0.02, 0.04]


@pytest.mark.parametrize("name", sorted(workload.MAKERS))
def test_the_same_seed_makes_the_same(name: str) -> None:
    assert workload.make(name, 3) == workload.make(name, 3)


FILE = """
slots = 2
[costs]
grid = 32
decode_s = {8 = 0.03, 1 = 0.01}
[[agents]]
name = "long"
count = 3
prompt = 300
every = 0.5
[[agents]]
nice = -5
turns = 2
think = 1.5
output = 4
"""


def test_a_workload_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "w.toml"
    path.write_text(FILE)
    work = workload.load(str(path))
    assert [agent.name for agent in work.agents] == ["long.0", "long.1", "long.2", "a1"]
    assert [agent.arrival for agent in work.agents] == [0.0, 0.5, 1.0, 0.0]
    assert work.agents[3].turns == (Turn(1500, 4, 1.5),) * 2
    assert (work.slots, work.costs.grid) == (2, 32)
    assert work.costs.decode_s == ((1, 0.01), (8, 0.03))
    as_json = tmp_path / "w.json"
    as_json.write_text(json.dumps({"agents": [{"prompt": 3}]}))
    assert workload.load(str(as_json)).agents[0].turns == (Turn(3, 64),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no [[agents]]"),
        ("[[agents]]\npromt = 3", "no key 'promt'"),
        ("[[agents]]\nnice = 40", "nice 40"),
        ("[[agents]]\noutput = 0", "output 0"),
        ("[[agents]]\nthink = -1", "less than 0"),
        ("slots = 0\n[[agents]]", "slots 0"),
        ("[costs]\ngrid = 0\n[[agents]]", "grid"),
        ("[[agents]]\nprompt = 'x'", "workload"),
        ("agents = [", "workload"),
    ],
)
def test_a_wrong_workload_is_one_sentence(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "w.toml"
    path.write_text(text)
    assert simulate.main(["-w", str(path)]) == 2
    assert words in capsys.readouterr().err


def test_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate.main(["-p", "fifo", "-p", "fair", "-w", "short", "--slots", "2"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "short: 8 agents, 8 requests, 2 slots"
    assert [line.split()[0] for line in out[1:4]] == ["POLICY", "fifo", "fair"]
    assert any("█" in line for line in out)
    assert simulate.main(["-p", "mlfq", "-w", "short", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["policy"] == "mlfq" and row["requests"] == 8


def test_a_picture_takes_matplotlib(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert simulate.main(["-w", "short", "--png", str(tmp_path / "x.png")]) == 1
    assert "pip install 'aios[plot]'" in capsys.readouterr().err


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="the extra `plot` is not installed")
def test_a_picture_is_written(tmp_path: Path) -> None:
    """In a process of its own: matplotlib keeps its fonts open."""
    command = [sys.executable, "-m", "aiosd.sched.simulate", "-w", "short", "-p", "fair", "--png"]
    subprocess.run([*command, str(tmp_path / "x")], check=True, capture_output=True)
    assert (tmp_path / "x").read_bytes().startswith(b"\x89PNG")
    command += [str(tmp_path / "no/x")]
    failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr.endswith("no/x: No such file or directory\n")


@pytest.mark.parametrize("words", [["-p", "fare"], ["-w", "nothing"], ["--slots", "-1"]])
def test_wrong_words(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate.main(words) == 2
    assert capsys.readouterr().err.startswith("sched simulate: ")


def test_bars_and_sparks() -> None:
    assert simulate.bar(0.5, 8) == "████"
    assert simulate.bar(1 / 64, 8) == "▏"
    assert simulate.spark([0, 0.5, 1], 3) == "▁▅█"
    assert len(simulate.spark([1.0] * 100, 60)) == 50
