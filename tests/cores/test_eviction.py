"""What is given up first: pure choices."""

from __future__ import annotations

from aiosd.cores.costs import Costs
from aiosd.cores.eviction import SOONEST, Holding, victims, wanted_in
from aiosd.engine.protocol import DECODE, PREFILL, Run, Step
from aiosd.sched.weights import weight


def keys(chosen: list[Holding] | None) -> list[str] | None:
    return None if chosen is None else [h.key for h in chosen]


def test_the_dearest_and_the_soonest_stay() -> None:
    cheap = Holding("cheap", 100, back=0.1, soon=10)
    dear = Holding("dear", 100, back=2.0, soon=10)
    soon = Holding("soon", 100, back=0.1, soon=0.1)
    assert keys(victims([soon, dear, cheap], 100)) == ["cheap"]
    assert keys(victims([soon, dear, cheap], 101)) == ["cheap", "dear"]
    assert keys(victims([soon, dear, cheap], 0)) == []
    assert victims([soon, dear, cheap], 301) is None


def test_of_equal_cost_the_larger_goes() -> None:
    small, large = Holding("small", 10, 1.0, 1.0), Holding("large", 1000, 1.0, 1.0)
    assert keys(victims([small, large], 5)) == ["large"]


def test_a_higher_priority_stays_longer() -> None:
    urgent = Holding("urgent", 100, 1.0, 1.0, weight(-10))
    patient = Holding("patient", 100, 1.0, 1.0, weight(10))
    assert keys(victims([urgent, patient], 1)) == ["patient"]


def test_nothing_gives_way_to_what_is_worth_less() -> None:
    held, newcomer = Holding("held", 100, 1.0, 1.0), Holding("new", 100, 1.0, 5.0)
    assert victims([held], 100, below=newcomer.worth) is None
    assert keys(victims([newcomer], 100, below=held.worth)) == ["new"]


def test_when_an_agent_is_expected_back() -> None:
    assert wanted_in(True, False, 100.0, 1.0) == SOONEST
    assert wanted_in(True, True, 5.0, 1.0) > 60
    assert wanted_in(False, False, 2.0, 10.0) == 8.0  # it usually takes 10 s
    assert wanted_in(False, False, 15.0, 10.0) == 2.5  # any moment now
    assert wanted_in(False, False, 100.0, 10.0) == 100.0  # it is not coming soon
    assert wanted_in(False, False, 0.0, 0.0) < wanted_in(False, False, 50.0, 0.0)


def test_costs_are_those_that_were_seen() -> None:
    costs = Costs()
    costs.step(Step([(1, PREFILL, 0, 64), (2, PREFILL, 0, 36)], [], 1.0, 1.0))
    costs.step(Step([(1, DECODE, 64, 65)], [], 0.5, 0.5))
    record = [Run(PREFILL, 0, 100), Run(DECODE, 100, 110), Run(PREFILL, 110, 120)]
    assert abs(costs.again(record, 0) - (1.1 + 5.0)) < 1e-9
    assert abs(costs.again(record, 105) - (2.5 + 0.1)) < 1e-9
    costs.restored("disk", 1_000_000, 2.0)
    assert costs.read("disk", 500_000) == 1.0
    costs.restored("disk", 1_000_000, 1.0)
    assert 0.9 < costs.read("disk", 500_000) < 1.0
    costs.restored("ram", 10, 5.0)  # says nothing of a byte
    assert costs.read("ram", 1_000_000) < 0.01
