"""Kill points: named, counted, and each of them somewhere in the source."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import aiosd
from aiosd.killpoint import POINTS, VARIABLE, arm

PROGRAM = "from aiosd.killpoint import reach; reach('db.commit'); reach('db.commit'); print('on')"


def run(value: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={VARIABLE: value, "PYTHONPATH": str(Path(aiosd.__path__[0]).parent)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_point_is_met_in_the_source_and_named() -> None:
    sources = Path(aiosd.__path__[0]).rglob("*.py")
    met = [name for path in sources for name in re.findall(r'reach\("(.+?)"\)', path.read_text())]
    assert sorted(met) == sorted(POINTS)


def test_the_process_dies_at_the_wanted_time_and_once_for_a_mark(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    assert run("").stdout == run("db.commit:3").stdout == run("db.committed").stdout == "on\n"
    assert run("db.commit:2").returncode == -signal.SIGKILL
    assert run(f"db.commit:2:{mark}").returncode == -signal.SIGKILL
    assert mark.exists() and run(f"db.commit:2:{mark}").stdout == "on\n"


def test_a_point_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no kill point 'db\.comit'"):
        arm("db.comit")
