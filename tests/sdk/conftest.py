"""Fixtures of the SDK's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from aios import place
from tests.sdk.fake_kernel import FakeKernel


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKernel]:
    """A running fake kernel; AIOS_SOCKET points at it and the process has no credential."""
    kernel = FakeKernel(tmp_path / "s")
    monkeypatch.setenv("AIOS_SOCKET", str(kernel.path))
    monkeypatch.delenv("AIOS_CREDENTIAL_FD", raising=False)
    monkeypatch.setattr(place.inherited, "_credential", "")
    kernel.start()
    yield kernel
    kernel.stop()
