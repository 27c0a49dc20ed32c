"""A real daemon on private directories, with agents below it that are gone afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import Daemon
from tests.system.agents import end_all, processes_below


@pytest.fixture
def daemon(state_dir: Path, runtime_dir: Path, kv_dir: Path) -> Iterator[Daemon]:
    """A running daemon. Afterwards its agents are killed and no process of theirs is left."""
    with Daemon(state_dir, runtime_dir, kv_dir) as daemon:
        yield daemon
        end_all(daemon)
    assert processes_below(state_dir) == []


@pytest.fixture
def impatient(state_dir: Path, runtime_dir: Path, kv_dir: Path) -> Iterator[Daemon]:
    """A daemon whose agents outlive it by a second at most."""
    settings = "[agents]\norphan_timeout = 1.0\nkill_timeout = 1.0\n"
    with Daemon(state_dir, runtime_dir, kv_dir, config=settings) as daemon:
        yield daemon
        end_all(daemon)
    assert processes_below(state_dir) == []
