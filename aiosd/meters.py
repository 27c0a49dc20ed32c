"""The kernel's meters: what is counted as it happens, and what is read when somebody asks.

    meters.happened(kind, aid, data)      # of everything that happens
    dispatcher.bind(meters)               # serves read_metrics

Counting costs a dictionary's entry per event and never fails: an event that lacks a field is
counted without it. Names of agents are no labels: whoever may ask for metrics need not see agents.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

from aiosd.abi import LEVEL
from aiosd.abi.cores import Core
from aiosd.abi.system import CallStatistics, Metric, ReadMetrics
from aiosd.access import Caller
from aiosd.history import OWN
from aiosd.metrics import Counter, Histogram, Labels, counter, gauge
from aiosd.system import VERSION, resident

STATES: Final = ("loading", "ready", "restarting", "draining", "failed")


class Calls(Protocol):
    """What the dispatcher knows of the calls."""

    def statistics(self) -> list[CallStatistics]:
        """Return the numbers of every call that was made."""

    def failures(self) -> dict[tuple[str, int], int]:
        """Return how often each call failed with each errno."""


class Meters:
    """All metrics of this kernel.

    figures: the numbers of sysinfo. cores: the rows of list_cores.
    """

    def __init__(
        self,
        calls: Calls,
        figures: Callable[[], Mapping[str, Any]],
        cores: Callable[[], Iterable[Core]],
    ) -> None:
        self._calls = calls
        self._figures = figures
        self._cores = cores
        self._started = time.time()
        self._events = Counter("aios_events_total", "things that happened, by kind", "kind")
        self._preempted = Counter(
            "aios_preemptions_total", "sequences taken off a core for others", "core"
        )
        self._ended = Counter(
            "aios_requests_total", "generations that ended, and how", "core", "finish"
        )
        self._failed = Counter("aios_request_errors_total", "generations that failed", "core")
        self._tokens = Counter(
            "aios_request_tokens_total",
            "tokens of generations that ended: new ones of prompts, those that were cached, output",
            "core",
            "kind",
        )
        self._dollars = Counter("aios_dollars_total", "what generations cost", "core")
        self._waiting = Histogram(
            "aios_queue_seconds", "from a generation's submission to its first batch", "core"
        )
        self._first = Histogram(
            "aios_first_token_seconds", "from a generation's submission to its first token", "core"
        )
        self._turnaround = Histogram(
            "aios_turnaround_seconds", "from a generation's submission to its end", "core"
        )
        self._tools = Counter("aios_tool_calls_total", "calls of tools", "tool", "outcome")
        self._tool_seconds = Histogram("aios_tool_seconds", "how long tools worked", "tool")
        self._hears: dict[str, Callable[[Mapping[str, Any]], None]] = {
            "request.end": self._request_ended,
            "sched.preempt": lambda data: self._preempted.add(_text(data, "core")),
            "tool.end": self._tool_ended,
        }

    def happened(self, kind: str, aid: int, data: Mapping[str, Any]) -> None:
        """Count something that happened."""
        self._events.add(OWN if kind.startswith(OWN) else kind)
        hear = self._hears.get(kind)
        if hear is not None:
            hear(data)

    def _request_ended(self, data: Mapping[str, Any]) -> None:
        core = _text(data, "core")
        self._ended.add(core, _text(data, "finish"))
        if data.get("errno"):
            self._failed.add(core)
        cached = _number(data, "cached_tokens")
        self._tokens.add(core, "prompt", amount=max(0.0, _number(data, "prompt_tokens") - cached))
        self._tokens.add(core, "cached", amount=cached)
        self._tokens.add(core, "output", amount=_number(data, "completion_tokens"))
        self._dollars.add(core, amount=_number(data, "dollars"))
        self._waiting.observe(_number(data, "waiting_s"), core)
        self._turnaround.observe(_number(data, "turnaround_s"), core)
        if _number(data, "completion_tokens"):
            self._first.observe(_number(data, "first_token_s"), core)

    def _tool_ended(self, data: Mapping[str, Any]) -> None:
        tool = _text(data, "tool")
        self._tools.add(tool, _text(data, "errno") or "ok")
        self._tool_seconds.observe(_number(data, "seconds"), tool)

    # What is read when somebody asks.

    def sys_read_metrics(self, caller: Caller, args: ReadMetrics) -> list[Metric]:
        """Return every metric as it is now."""
        kept = (
            self._events, self._preempted, self._ended, self._failed, self._tokens, self._dollars,
            self._waiting, self._first, self._turnaround, self._tools, self._tool_seconds,
        )  # fmt: skip
        return [
            *self._of_kernel(self._figures()),
            *self._of_calls(),
            *self._of_cores(list(self._cores())),
            *(each.metric() for each in kept),
        ]

    def _of_kernel(self, figures: Mapping[str, Any]) -> list[Metric]:
        info = ((VERSION, str(LEVEL)), 1.0)
        agents = [((state,), number) for state, number in sorted(figures["agents"].items())]
        held = [(("ram",), figures["kv_ram"]), (("disk",), figures["kv_disk"])]
        limits = [(("ram",), figures["kv_ram_limit"]), (("disk",), figures["kv_disk_limit"])]
        return [
            gauge("aios_info", "always 1; which kernel this is", ("version", "level"), [info]),
            _plain("aios_start_time_seconds", "when the kernel started, Unix time", self._started),
            _plain("aios_resident_bytes", "memory of the kernel's process", resident()),
            _plain("aios_open_files", "descriptors of the kernel's process", _open_files()),
            _plain("aios_connections", "connections to the socket", figures["connections"]),
            gauge("aios_agents", "agents by state, as ps shows it", ("state",), agents),
            _plain("aios_requests_in_flight", "generations under way", figures["requests"]),
            gauge("aios_kv_bytes", "KV of contexts off the cores", ("tier",), held),
            gauge("aios_kv_limit_bytes", "what a tier may hold", ("tier",), limits),
        ]

    def _of_calls(self) -> list[Metric]:
        calls = self._calls.statistics()
        failures = [
            ((name, errno.errorcode.get(code, str(code))), float(times))
            for (name, code), times in self._calls.failures().items()
        ]
        return [
            counter(
                "aios_calls_total",
                "system calls answered",
                ("call",),
                [((row.name,), row.calls) for row in calls],
            ),
            counter(
                "aios_call_seconds_total",
                "time from a call to its answer",
                ("call",),
                [((row.name,), row.seconds) for row in calls],
            ),
            counter(
                "aios_call_errors_total",
                "system calls answered with an error",
                ("call", "errno"),
                failures,
            ),
        ]

    def _of_cores(self, cores: list[Core]) -> list[Metric]:
        states = [
            ((core.name, state), float(core.state == state)) for core in cores for state in STATES
        ]
        return [
            gauge(
                "aios_core_info",
                "always 1; what a core is",
                ("core", "driver", "kind", "model", "exact"),
                [((c.name, c.driver, c.kind, c.model, c.exact), 1.0) for c in cores],
            ),
            gauge("aios_core_state", "1 for the state a core is in", ("core", "state"), states),
            *(
                (counter if kind == "counter" else gauge)(
                    f"aios_core_{name}", text, ("core",), [((c.name,), getter(c)) for c in cores]
                )
                for name, kind, text, getter in _CORE
            ),
        ]


_CORE: Final[tuple[tuple[str, str, str, Callable[[Core], float]], ...]] = (
    ("slots", "gauge", "sequences that may run at once", lambda core: core.slots),
    ("running", "gauge", "sequences that run", lambda core: core.running),
    ("queued", "gauge", "sequences that wait for a slot", lambda core: core.queued),
    ("resident", "gauge", "contexts with KV in slots", lambda core: core.resident),
    ("kv_bytes", "gauge", "KV in slots", lambda core: core.kv_bytes),
    ("worker_bytes", "gauge", "memory of the worker's process", lambda core: core.rss),
    ("tokens_per_second", "gauge", "output of late", lambda core: core.tokens_per_s),
    ("restarts_total", "counter", "times its worker was started anew", lambda core: core.restarts),
    ("switches_total", "counter", "contexts brought into a slot", lambda core: core.switches),
    ("device_seconds_total", "counter", "time spent computing", lambda core: core.device_s),
    ("prompt_tokens_total", "counter", "tokens of prompts computed", lambda core: core.tokens_in),
    ("output_tokens_total", "counter", "tokens sampled", lambda core: core.tokens_out),
)
"""What is told of each core: name, kind, text, and the field of its row."""


def _plain(name: str, text: str, value: float) -> Metric:
    none: Labels = ()
    return gauge(name, text, none, [(none, value)])


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd")) - 1


def _text(data: Mapping[str, Any], field: str) -> str:
    return str(data.get(field, ""))


def _number(data: Mapping[str, Any], field: str) -> float:
    value = data.get(field, 0.0)
    return float(value) if isinstance(value, int | float) else 0.0
