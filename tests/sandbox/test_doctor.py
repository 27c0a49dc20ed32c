"""What is said of a machine, and that nothing runs where a layer is missing."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aiosd import boxview, landlock, layers, sandbox
from aiosd.sandbox import Box
from tests.sandbox.boxes import needs_layers


def test_missing_bubblewrap_is_named_with_its_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boxview, "bubblewrap", lambda: "")
    found = {report.layer: report for report in layers.doctor()}
    assert found["namespaces"].available is False
    with pytest.raises(OSError, match=r"namespaces \(bwrap is not installed\); install bubblewrap"):
        sandbox.start(Box(argv=("/bin/true",), workspace=str(tmp_path)))


@needs_layers
def test_missing_landlock_is_named_with_its_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landlock, "version", lambda: 0)
    with pytest.raises(OSError, match="landlock") as caught:
        sandbox.check(Box(argv=("/bin/true",), workspace=str(tmp_path)))
    assert caught.value.errno == errno.ENOTSUP


@needs_layers
@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({"argv": ()}, errno.EINVAL, "argv is empty"),
        ({"layers": frozenset({"walls"})}, errno.EINVAL, "there is no walls"),
        ({"workspace": "/no/such"}, errno.ENOENT, "/no/such"),
        ({"read": ("/no/such",)}, errno.ENOENT, "/no/such"),
        ({"write": ("relative",)}, errno.ENOENT, "relative"),
        ({"read": ("/etc/ssl",), "hidden": ("/etc",)}, errno.EACCES, "/etc/ssl"),
        ({"network": ("http://example.org",)}, errno.EINVAL, "network"),
    ],
)
def test_nonsense_is_refused(
    tmp_path: Path, fields: dict[str, object], error: int, text: str
) -> None:
    box = Box(**{"argv": ("/bin/true",), "workspace": str(tmp_path), **fields})  # type: ignore[arg-type]
    with pytest.raises(OSError, match=text) as caught:
        sandbox.check(box)
    assert caught.value.errno == error


KERNEL = """
import asyncio, os, sys
from aiosd import sandbox
async def main():
    box = sandbox.Box(argv=("/bin/sh", "-c", "(setsid sleep 1000 &) ; echo started; sleep 1000"),
                      workspace=sys.argv[1], layers=frozenset(sys.argv[2:]))
    sandbox.start(box, stdout=1)
    await asyncio.sleep(1000)
asyncio.run(main())
"""


@pytest.mark.parametrize(
    "layers", [pytest.param(sandbox.ALL, marks=needs_layers), frozenset()], ids=["all", "none"]
)
def test_box_dies_with_its_kernel(tmp_path: Path, layers: frozenset[str]) -> None:
    kernel = subprocess.Popen(
        [sys.executable, "-c", KERNEL, str(tmp_path), *layers],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    with kernel:
        assert kernel.stdout is not None
        assert kernel.stdout.readline() == b"started\n"
        kernel.send_signal(signal.SIGKILL)
        assert kernel.stdout.read() == b""  # comes when nobody holds the other end any more
