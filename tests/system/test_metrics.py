"""Metrics of a real daemon: what its agents did is what they count."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from aiosd.abi.process import LogEvent, Wait
from aiosd.abi.system import Metric, ReadMetrics
from aiosh import app
from tests.daemon import Daemon
from tests.system.agents import end_all
from tests.system.writer import Writer

CORE = '[[cores]]\nname = "c"\ndriver = "fake"\nslots = 2\nprice_out = 1000.0\n'


@pytest.fixture
def daemon(state_dir: Path, runtime_dir: Path, kv_dir: Path) -> Iterator[Daemon]:
    with Daemon(state_dir, runtime_dir, kv_dir, config=CORE) as daemon:
        yield daemon
        end_all(daemon)


def _value(metrics: list[Metric], name: str, **labels: str) -> float:
    found = [
        sample.value
        for metric in metrics
        for sample in metric.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    assert len(found) == 1, (name, labels, found)
    return found[0]


def test_metrics_tell_what_was_done(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Writer(daemon) as agent:
        agent.ask("Once upon a time", max_tokens=5, logit_bias={256: -100.0})
        second = agent.ask("Once upon a time", max_tokens=3, logit_bias={256: -100.0})
        with pytest.raises(ProcessLookupError):
            agent.call(Wait(999))
        agent.call(LogEvent("request.end", {"core": "made up", "finish": "made up"}))
        metrics = agent.call(ReadMetrics())
        assert _value(metrics, "aios_requests_total", core="c", finish="length") == 2
        assert _value(metrics, "aios_request_tokens_total", core="c", kind="output") == 8
        assert _value(metrics, "aios_dollars_total", core="c") == pytest.approx(0.008)
        assert second.usage.dollars == pytest.approx(0.003)
        for name in ("queue", "first_token", "turnaround"):
            assert _value(metrics, f"aios_{name}_seconds_count", core="c") == 2
        assert _value(metrics, "aios_call_errors_total", call="wait", errno="ESRCH") == 1
        assert _value(metrics, "aios_calls_total", call="llm_generate") == 2
        assert _value(metrics, "aios_core_state", core="c", state="ready") == 1
        assert _value(metrics, "aios_core_output_tokens_total", core="c") >= 8
        assert _value(metrics, "aios_agents", state="S") >= 1
        # What an agent says of itself is no news of the kernel's.
        assert _value(metrics, "aios_events_total", kind="agent.event.") == 1

        monkeypatch.setenv("AIOS_SOCKET", daemon.socket)
        assert app.execute(["metrics"]) == 0
        text = capsys.readouterr().out
    families = list(text_string_to_metric_families(text))
    assert {metric.name.removesuffix("_total") for metric in metrics} <= {f.name for f in families}
    assert all(family.type != "unknown" and family.documentation for family in families)
