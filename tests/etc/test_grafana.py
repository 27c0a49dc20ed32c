"""The dashboard asks for metrics that there are, by labels that they have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aiosd.abi.cores import Core
from aiosd.abi.system import CallStatistics, ReadMetrics
from aiosd.access import Caller
from aiosd.meters import Meters

DASHBOARD = Path(__file__).parents[2] / "etc" / "grafana" / "aios.json"
PROMETHEUS = {"le", "instance"}  # labels of Prometheus's own, or of buckets


class _Calls:
    def statistics(self) -> list[CallStatistics]:
        return [CallStatistics("ping", 2, 1, 0.1, 0.1)]

    def failures(self) -> dict[tuple[str, int], int]:
        return {("ping", 22): 1}


def _core() -> Core:
    fields = {field.name: 0 for field in msgspec.structs.fields(Core) if field.required}
    words = dict.fromkeys(("name", "driver", "model", "state", "exact", "setting"), "c")
    return msgspec.convert({**fields, **words}, Core)


@pytest.fixture(scope="module")
def known() -> dict[str, set[str]]:
    """Give the labels of all samples that a kernel has once something happened, by name."""
    figures = dict.fromkeys(
        ("connections", "requests", "kv_ram", "kv_disk", "kv_ram_limit", "kv_disk_limit"), 0
    )
    meters = Meters(_Calls(), lambda: {**figures, "agents": {"S": 1}}, lambda: [_core()])
    meters.happened("sched.preempt", 1, {"core": "c"})
    meters.happened("request.end", 1, {"core": "c", "errno": "EIO", "completion_tokens": 1})
    meters.happened("tool.end", 1, {"tool": "t"})
    metrics = meters.sys_read_metrics(Caller(0, 0, 0), ReadMetrics())
    return {sample.name: set(sample.labels) for metric in metrics for sample in metric.samples}


def _expressions(board: dict[str, Any]) -> Iterator[str]:
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield target["expr"]


def test_every_panel_shows_metrics_that_there_are(known: dict[str, set[str]]) -> None:
    board = json.loads(DASHBOARD.read_text("utf-8"))
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"]) > 10
    for expression in _expressions(board):
        names = re.findall(r"\baios_\w+", expression)
        assert names and set(names) <= known.keys(), expression
        asked = {each for group in re.findall(r"by \(([^)]*)\)", expression)
                 for each in group.split(", ")}  # fmt: skip
        asked |= set(re.findall(r"(\w+)=~?\"", expression))
        assert asked <= known[names[0]] | PROMETHEUS, expression
