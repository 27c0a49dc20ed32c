"""Workers for the engine's tests, ended with each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from aiosd.engine.protocol import CoreSetup
from tests.engine.kernel import Worker, fake_setup

Start = Callable[..., Worker]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start workers on a setup (default: a fake one of 4 slots)."""
    workers: list[Worker] = []

    def open_worker(setup: CoreSetup | None = None, load: bool = True) -> Worker:
        workers.append(Worker(setup or fake_setup(), load))
        return workers[-1]

    yield open_worker
    for worker in workers:
        worker.end()
