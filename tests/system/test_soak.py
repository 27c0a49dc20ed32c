"""A short soak: the kernel dies at its kill points and, as its worker does, at random moments."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from aiosd.killpoint import POINTS
from tests.daemon import Daemon
from tests.soak import CORE, Soak, squeezed

ELSEWHERE = ("identity", "snapshot", "memory", "storage", "quota", "tool", "weights")
"""What is met in tests of its own."""
MET = [name for name in POINTS if not name.startswith(ELSEWHERE)]
"""Points that every run of the agents comes to."""


@pytest.mark.timeout(1200)
def test_kills_at_every_point_and_at_random(
    state_dir: Path, runtime_dir: Path, kv_dir: Path
) -> None:
    with squeezed(Daemon(state_dir, runtime_dir, kv_dir, config=CORE)) as daemon:
        soak = Soak(daemon, seed=5)
        asyncio.run(soak.run(6, MET))
    assert soak.points.keys() >= set(MET)  # what the kills at random meet comes on top
