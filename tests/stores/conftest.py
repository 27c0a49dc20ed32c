"""A real daemon whose embedder is the fake one, and agents on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aiosd.abi.process import RegisterAgent
from tests.daemon import Client, Daemon

FAKE = '[memory]\nembedder = "fake"\n'

Start = Callable[..., Daemon]


@pytest.fixture
def start(state_dir: Path, runtime_dir: Path, kv_dir: Path) -> Iterator[Start]:
    """Give a way to start daemons on one state directory, one after the other."""
    running: list[Daemon] = []

    def start(config: str = FAKE) -> Daemon:
        running.append(Daemon(state_dir, runtime_dir, kv_dir, config=config))
        return running[-1].start()

    yield start
    for daemon in running:
        daemon.__exit__()


@pytest.fixture
def daemon(start: Start) -> Daemon:
    """A running daemon."""
    return start()


@pytest.fixture
def agent(daemon: Daemon) -> Iterator[Client]:
    """A registered agent."""
    with daemon.connect() as client:
        client.call(RegisterAgent(name="keeper"))
        yield client
