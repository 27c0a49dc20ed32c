"""When a provider is left alone, and how often it is asked."""

from __future__ import annotations

from aiosd.cores.breaker import Breaker
from aiosd.cores.pace import BURST, Pace


def test_a_breaker_opens_after_failures_in_a_row_and_for_longer_each_time() -> None:
    breaker = Breaker(failures=3, first=2.0, longest=5.0)
    assert [breaker.failed(0.0), breaker.failed(0.0)] == [False, False]
    breaker.succeeded()
    assert [breaker.failed(1.0) for _ in range(3)] == [False, False, True]
    assert (breaker.state, breaker.until) == ("open", 3.0)
    assert breaker.failed(2.0) is False  # what was still under way
    assert breaker.until == 3.0
    for now, until in ((3.0, 7.0), (7.0, 12.0), (12.0, 17.0)):
        breaker.probe()
        assert breaker.failed(now) and breaker.until == until
    breaker.probe()
    breaker.succeeded()
    assert breaker.state == "closed"
    assert not breaker.failed(20.0)


def test_a_breaker_stays_open_for_as_long_as_the_provider_wants() -> None:
    breaker = Breaker(failures=3, first=2.0, longest=5.0)
    assert breaker.open(1.0, 60.0) and breaker.until == 61.0
    assert not breaker.open(2.0, 90.0) and breaker.until == 61.0
    breaker.probe()
    assert breaker.open(61.0, 1.0) and breaker.until == 65.0  # its own time is longer


def test_a_rate_is_kept_with_a_burst_at_first() -> None:
    pace = Pace(rate=60.0)
    times = []
    now = 100.0
    for _ in range(20):
        now = pace.due(now)
        pace.took(now)
        times.append(now - 100.0)
    burst = 60 // BURST
    assert times[:burst] == [0.0] * burst
    assert times[-1] == 20 - burst  # one a second then
    pace.pause(500.0)
    assert pace.due(now) == 500.0
    assert Pace(rate=0.0).due(7.0) == 7.0
