"""Many cores in simulated time: spread, scale, and machines that die."""

from __future__ import annotations

import json

import pytest

from aiosd import sched
from aiosd.sched import simulate
from aiosd.sched.farm import Farm
from aiosd.sched.simulation import Result, Simulation
from aiosd.sched.workload import Agent, Turn, Workload, make


def farm(count: int, work: Workload, *deaths: float) -> Result:
    return Farm(work, [sched.make("fair", quantum=16) for _ in range(count)], deaths).run()


def crowd(cores: int) -> Workload:
    """Four agents for each core, all there from the beginning."""
    turns = (Turn(200, 20, 0.5), Turn(50, 20))
    return Workload("crowd", tuple(Agent(f"a{n}", 0.0, turns) for n in range(4 * cores)), slots=2)


@pytest.mark.parametrize("policy", sched.POLICIES)
def test_one_core_of_a_farm_is_a_core(policy: str) -> None:
    work = make("chat", 3)
    alone = Simulation(work, sched.make(policy)).run()
    assert Farm(work, [sched.make(policy)]).run().summary() == alone.summary()


def test_twice_the_cores_serve_twice_the_agents_in_the_same_time() -> None:
    one, many = farm(1, crowd(1)), farm(8, crowd(8))
    assert many.seconds == pytest.approx(one.seconds, rel=1e-9)
    assert many.summary()["tokens_per_s"] == pytest.approx(8 * float(one.summary()["tokens_per_s"]))
    assert many.switches == 8 * one.switches and many.cores == 8


def test_a_machine_that_dies_costs_time_and_nothing_else() -> None:
    whole, broken = farm(4, crowd(4)), farm(4, crowd(4), 0.5, 1.0, 90.0)
    count = [(each.prefilled, each.decoded) for each in broken.requests]
    assert sorted(count) == sorted((each.prefilled, each.decoded) for each in whole.requests)
    assert broken.again > 0 == whole.again
    assert broken.seconds > whole.seconds


def test_the_command_takes_cores_and_deaths(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-w", "chat", "-p", "rr", "--cores", "3", "--death", "1"]
    assert simulate.main([*words, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["cores"] == 3 and row["again"] > 0 and row["requests"] == 72
    assert simulate.main(words) == 0
    assert "on each of 3 cores" in capsys.readouterr().out
    assert simulate.main(["--cores", "0"]) == 2
