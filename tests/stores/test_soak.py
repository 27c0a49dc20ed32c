"""A short soak of what agents keep and may use: kills at write points and at random moments."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from aiosd.killpoint import POINTS
from tests.daemon import Daemon
from tests.soak import CORE, KEEPERS, SPENDERS, Soak
from tests.soakstores import LIMITS

MET = [name for name in POINTS if name.startswith(("memory", "storage", "quota"))]


@pytest.mark.timeout(1200)
def test_kills_amid_memory_storage_quotas_and_grants(
    state_dir: Path, runtime_dir: Path, kv_dir: Path
) -> None:
    with Daemon(state_dir, runtime_dir, kv_dir, config=CORE + LIMITS) as daemon:
        turn = (*MET, "db.commit")
        soak = Soak(daemon, seed=7, agents=0, keepers=KEEPERS, spenders=SPENDERS, turn=turn)
        asyncio.run(soak.run(6, MET))
    assert soak.points.keys() >= set(MET)
