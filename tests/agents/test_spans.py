"""Spans of what agents do, as a collector of OpenTelemetry gets them."""

from __future__ import annotations

import http.server
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from aiosd.abi.process import Exit
from tests.aiosh.conftest import door, surroundings
from tests.daemon import PATIENCE, ROOT, Daemon
from tests.system.agents import until
from tests.system.writer import Writer

CORE = '[[cores]]\nname = "c"\ndriver = "fake"\nslots = 2\n'


def _unit(name: str, collector: str) -> list[str]:
    """Return what a unit has aiosctl do, for another collector."""
    lines = (ROOT / "etc" / name).read_text().splitlines()
    [start] = [line for line in lines if line.startswith("ExecStart=")]
    env, program, *words = start.removeprefix("ExecStart=").split()
    assert (env, program) == ("/usr/bin/env", "aiosctl")
    return [word.replace("${COLLECTOR}", collector) for word in words]


def test_both_units_do_the_same() -> None:
    ours, theirs = (_unit(f"aios-spans{kind}.service", "x") for kind in ("", "-user"))
    assert ours == theirs


class Collector:
    """A server that keeps what it is sent."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["content-length"]))
                told = ExportTraceServiceRequest.FromString(data)
                collector.spans += [
                    span
                    for resource in told.resource_spans
                    for scope in resource.scope_spans
                    for span in scope.spans
                ]
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def serving(self) -> Iterator[Collector]:
        """Serve."""
        thread = threading.Thread(target=self._server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def named(self, name: str) -> list[Any]:
        """Return the spans of a name that have come so far."""
        return [span for span in self.spans if span.name == name]


def _facts(span: Any) -> dict[str, Any]:
    return {
        pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in span.attributes
    }


@pytest.fixture
def daemon(state_dir: Path, runtime_dir: Path, kv_dir: Path) -> Iterator[Daemon]:
    with Daemon(state_dir, runtime_dir, kv_dir, config=CORE) as daemon:
        yield daemon


def test_an_agents_life_is_a_trace(daemon: Daemon) -> None:
    environ = {
        **surroundings(), "AIOS_SOCKET": daemon.socket, "OTEL_BSP_SCHEDULE_DELAY": "20",
        "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    with Collector().serving() as collector:
        command = door("ctl", *_unit("aios-spans.service", collector.url))
        exporter = subprocess.Popen(command, env=environ)
        try:
            with Writer(daemon, "poet") as poet:

                def told() -> bool:  # it begins to watch at a moment that nobody is told
                    poet.ask("A rose", max_tokens=3, logit_bias={256: -100.0})
                    return bool(collector.named("chat fake"))

                until(told, "a span")
                poet.call(Exit())
            until(lambda: bool(collector.named("invoke_agent poet")), "the span of its life")
        finally:
            exporter.send_signal(signal.SIGTERM)
            assert exporter.wait(PATIENCE) == 0
    [life] = collector.named("invoke_agent poet")
    chat = collector.named("chat fake")[0]
    assert chat.trace_id == life.trace_id and chat.parent_span_id == life.span_id
    assert life.start_time_unix_nano <= chat.start_time_unix_nano <= chat.end_time_unix_nano
    facts = _facts(chat)
    assert facts["gen_ai.operation.name"] == "chat" and facts["gen_ai.agent.name"] == "poet"
    assert facts["gen_ai.usage.output_tokens"] == 3 and facts["aios.core"] == "c"
    assert [event.name for event in chat.events] == ["first token"]
    assert _facts(life)["gen_ai.agent.id"] == str(poet.aid)
