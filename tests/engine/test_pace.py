"""Threads: all of them while the machine is ours, fewer while it is not."""

from __future__ import annotations

import os
import time

from aiosd.engine.idle import GLANCE_S, Idle
from aiosd.engine.pace import LONGEST_REST_S, PATIENCE, Pace, choices


def run(pace: Pace, cores: float, now: float, seconds: float, call: float = 0.03) -> float:
    """Calls for a while on a machine that has `cores` for us; the time after them."""
    end = now + seconds
    while now < end:
        now += call
        pace.after(call, call * min(cores, pace.threads), now)
    return now


def test_an_undisturbed_device_uses_all_its_threads() -> None:
    pace = Pace(choices(4))
    run(pace, 4, 0.0, 10.0)
    assert pace.threads == 4


def test_threads_are_given_up_and_taken_back() -> None:
    pace = Pace(choices(2))
    now = run(pace, 1.1, 0.0, 0.03 * PATIENCE)
    assert pace.threads == 1
    now = run(pace, 2, now, LONGEST_REST_S + 1)
    assert pace.threads == 2


def test_a_crowded_machine_is_tried_seldom() -> None:
    pace = Pace(choices(2))
    tries, now = 0, 0.0
    for _ in range(2000):
        now += 0.03
        before = pace.threads
        pace.after(0.03, 0.03 * min(1.1, pace.threads), now)
        tries += before == 2
    assert tries < 20


def test_one_lost_call_is_no_crowd() -> None:
    pace = Pace(choices(2))
    pace.after(0.03, 0.03, 1.0)
    pace.after(0.03, 0.06, 1.1)
    pace.after(0.03, 0.03, 1.2)
    assert pace.threads == 2


def test_as_many_threads_as_there_are_cores_to_be_had() -> None:
    pace = Pace(choices(8))
    run(pace, 5, 0.0, 0.2)
    assert pace.threads == 4
    assert Pace(choices(1)).after(1.0, 0.1, 1.0) == 1
    assert choices(6) == [6, 3, 1]


def test_a_rest_ends_as_soon_as_there_is_room() -> None:
    pace = Pace(choices(2))
    now = run(pace, 1.1, 0.0, 5.0)
    while not pace.resting:
        now = run(pace, 1.1, now, 0.03)
    pace.room(0.1)
    assert pace.after(0.03, 0.03, now + 0.01) == 1
    pace.room(0.9)
    assert pace.after(0.03, 0.03, now + 0.02) == 2


def test_idle_cores_are_counted_between_looks() -> None:
    idle = Idle()
    began = time.monotonic()
    assert idle.cores(began) is None  # the first look has nothing to compare with
    assert idle.cores(began + GLANCE_S / 2) is None  # too soon
    found = None
    while found is None:  # after a second, too, there is nothing to compare with
        began = time.monotonic()
        idle.cores(began)
        while time.monotonic() < began + 3 * GLANCE_S:
            pass  # one core is busy with this
        found = idle.cores(time.monotonic())
    assert 0.0 <= found <= len(os.sched_getaffinity(0)) - 0.3
