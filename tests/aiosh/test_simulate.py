"""`sched simulate`: the simulator through the shell's door, with no daemon."""

from __future__ import annotations

import json
from pathlib import Path

from tests.aiosh.conftest import Run


def test_sched_simulate(ctl: Run, tmp_path: Path) -> None:
    work = tmp_path / "w.toml"
    work.write_text("[[agents]]\ncount = 3\nprompt = 10\noutput = 4\n")
    table = ctl("sched", "simulate", "-p", "fair", "-p", "fifo", "-w", str(work), "--slots", "1")
    assert (table.status, table.err) == (0, "")
    assert "3 requests, 1 slots" in table.out
    rows = json.loads(ctl("simulate", "--policy", "mlfq", "-w", "short", "--json").out)
    assert [row["policy"] for row in rows] == ["mlfq"]


def test_a_policy_that_is_not(ctl: Run) -> None:
    refused = ctl("sched", "simulate", "-p", "fare", "-w", "short")
    assert refused.status == 2
    assert "did you mean 'fair'" in refused.err
