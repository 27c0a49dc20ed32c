"""The exporter of spans: `aiosctl spans --endpoint URL` runs it, until it is told to end."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections import OrderedDict
from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

import aios

from .spans import KINDS, Ids, Spans

KEPT: Final = 1024
"""Agents whose names are remembered."""
PAUSE_S: Final = 1.0
"""Between two looks for a kernel that has gone."""


class Told(Exception):
    """It is to end."""


def main() -> int:
    """Export spans until a signal comes; return the exit status."""
    parser = argparse.ArgumentParser(prog="aiosctl spans")
    parser.add_argument("--endpoint", required=True, help="the collector, as http://host:4318")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _told)
    ids = Ids()
    resource = Resource.create({"service.name": "aiosd"})
    provider = TracerProvider(id_generator=ids, resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=f"{options.endpoint.rstrip('/')}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    try:
        while True:
            try:
                follow(provider, ids)
            except OSError as error:
                print(f"aiosctl: spans: {error.strerror or error}", file=sys.stderr, flush=True)
            time.sleep(PAUSE_S)
    except Told:
        return 0
    finally:
        provider.shutdown()  # what was gathered goes out, as far as the collector takes it


def follow(provider: TracerProvider, ids: Ids) -> None:
    """Make spans of what happens in a kernel's life. Raises OSError when it ends."""
    with aios.connect(reconnect=0) as kernel:
        rows = Rows(kernel)
        spans = Spans(provider, ids, kernel.welcome.boot_id, rows.agent, rows.model)
        print("watching", file=sys.stderr, flush=True)
        for event in kernel.watch(kinds=list(KINDS)):
            if event.kind == "watch.lost":
                count = event.data.get("count")
                print(f"aiosctl: spans: {count} events were lost", file=sys.stderr, flush=True)
            spans.hear(event)


class Rows:
    """What events say nothing of: names of agents, and models of cores."""

    def __init__(self, kernel: aios.Kernel) -> None:
        self._kernel = kernel
        self._agents: OrderedDict[int, aios.Agent] = OrderedDict()
        self._models: dict[str, str] = {}

    def agent(self, aid: int) -> aios.Agent | None:
        """Return an agent's row, as it was when it was first asked for."""
        if aid not in self._agents:
            for row in self._kernel.list_agents(all=True, aid=aid):
                self._agents[row.aid] = row
            while len(self._agents) > KEPT:
                self._agents.popitem(last=False)
        return self._agents.get(aid)

    def model(self, core: str) -> str:
        """Return the model of a core; the core's name where there is none of that name any more."""
        if core not in self._models:
            self._models = {row.name: row.model for row in self._kernel.list_cores()}
        return self._models.get(core) or core


def _told(number: int, frame: object) -> None:
    raise Told


if __name__ == "__main__":
    sys.exit(main())
