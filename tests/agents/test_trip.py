"""The Trip Agent does the seven steps of the paper's first figure, with tools and a real model."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiosd.abi.accounts import AuditRecord, ReadAudit
from tests.conftest import World
from tests.daemon import PATIENCE, ROOT, Daemon, answer
from tests.system.agents import until
from tests.system.writer import core

SEVEN = {path.stem for path in (ROOT / "agents/trip_tools").glob("*.toml")}
FAKE = 'driver = "fake"\nslots = 2\nn_ctx = 16384\n'
REAL = "slots = 1\nn_ctx = 4096\nexact = false\n"


@pytest.fixture
def tools(world: World) -> Path:
    """Give the tools of the agent, without their sandbox: not every machine has one."""
    copy = world.make(must_end_empty=False) / "trip_tools"
    shutil.copytree(ROOT / "agents/trip_tools", copy)
    for path in copy.glob("*.toml"):
        path.write_text(f'isolation = "none"\n{path.read_text()}')
    return copy


@pytest.fixture
def daemon(
    request: pytest.FixtureRequest, tools: Path, state_dir: Path, runtime_dir: Path, kv_dir: Path
) -> Iterator[Daemon]:
    config = f'[tools]\npath = ["{tools}"]\npackages = []\n[[cores]]\nname = "c"\n{request.param}'
    with Daemon(state_dir, runtime_dir, kv_dir, config=config) as daemon:
        until(lambda: core(daemon).state == "ready", "the core is ready")
        yield daemon


def trip(daemon: Daemon, *words: str, status: int = 0) -> list[str]:
    """Run the agent; return the lines that it printed."""
    done = subprocess.run(
        [sys.executable, ROOT / "agents/trip.py", *words],
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'sdk'}", "AIOS_SOCKET": daemon.socket},
        capture_output=True,
        text=True,
        timeout=5 * PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (status, "")
    return done.stdout.splitlines()


def called(daemon: Daemon) -> list[str]:
    """Return the tools that agents called and that worked, from the audit log, in order."""
    with daemon.connect() as person:
        person.send(ReadAudit(kind="tool.end"))
        records: list[AuditRecord] = []
        while (reply := person.read()).more:
            records += answer(reply, list[AuditRecord])
    return [record.data["tool"] for record in records if "digest" in record.data]


@pytest.mark.model
@pytest.mark.parametrize("daemon", [REAL], indirect=True, ids=["real"])
def test_all_seven_steps_are_done_and_on_record(daemon: Daemon) -> None:
    plan, *steps, _ = trip(daemon)
    assert set(plan.removeprefix("plan: ").split(", ")) == SEVEN
    done = called(daemon)
    assert set(done) == SEVEN and done.count("process_payment") == 1
    assert all(sum(f": {tool} " in line for line in steps) >= 1 for tool in SEVEN)
    assert done.index("process_payment") > done.index("select_seat")
    assert done.index("add_to_calendar") > done.index("process_payment")


@pytest.mark.parametrize("daemon", [FAKE], indirect=True, ids=["fake"])
def test_without_a_tool_the_trace_is_another(daemon: Daemon, tools: Path) -> None:
    (tools / "select_seat.toml").unlink()
    daemon.stop()
    daemon.start()
    until(lambda: core(daemon).state == "ready", "the core is ready")
    photo = tools / "photo.jpg"
    photo.write_bytes(b"a face")
    plan, *steps = trip(daemon, "--photo", str(photo), status=1)
    assert set(plan.removeprefix("plan: ").split(", ")) == SEVEN - {"select_seat"}
    assert set(called(daemon)) == SEVEN - {"select_seat", "process_payment", "add_to_calendar"}
    assert sum(hashlib.sha256(b"a face").hexdigest()[:16] in line for line in steps) == 1
