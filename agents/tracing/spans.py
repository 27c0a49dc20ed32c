"""From the kernel's events to spans, by OpenTelemetry's conventions for generative AI.

    spans = Spans(provider, ids, names, boot_id)
    spans.hear(event)

An agent's life is a trace: its span `invoke_agent` ends with it, and what it generated and which
tools it called lie below that. So that they are known as one before it ends, the ids of a trace
follow from the kernel's boot and the agent's number.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue

import aios

KINDS: Final = ("request.end", "tool.end", "agent.exit")
"""The events that are heard."""
SYSTEM: Final = "aios"

Attributes = dict[str, AttributeValue]


class Ids(IdGenerator):
    """Gives the ids that were set, once, and random ones else."""

    def __init__(self) -> None:
        self.trace = 0
        self.span = 0

    def generate_trace_id(self) -> int:
        """Return the id of a new trace."""
        given, self.trace = self.trace, 0
        return given or secrets.randbits(128) or 1

    def generate_span_id(self) -> int:
        """Return the id of a new span."""
        given, self.span = self.span, 0
        return given or secrets.randbits(64) or 1


class Spans:
    """Makes spans of events. agent: the row of an agent, None when there is none to be seen.

    model: the model of a core, by its name.
    """

    def __init__(
        self,
        provider: TracerProvider,
        ids: Ids,
        boot_id: str,
        agent: Callable[[int], aios.Agent | None],
        model: Callable[[str], str],
    ) -> None:
        self._tracer = provider.get_tracer("aios")
        self._ids = ids
        self._boot = boot_id
        self._agent = agent
        self._model = model

    def hear(self, event: aios.Event) -> None:
        """Make a span of an event, if it is one of KINDS."""
        if event.kind == "request.end":
            self._generation(event)
        elif event.kind == "tool.end":
            self._tool(event)
        elif event.kind == "agent.exit":
            self._life(event)

    def _generation(self, event: aios.Event) -> None:
        data = event.data
        core = str(data.get("core", ""))
        model = self._model(core)
        began = _number(data, "t_submit") or event.t
        attributes: Attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": SYSTEM,
            "gen_ai.request.model": model,
            "gen_ai.response.model": model,
            "gen_ai.response.id": str(data.get("id", "")),
            "gen_ai.response.finish_reasons": (str(data.get("finish", "")),),
            "gen_ai.conversation.id": str(data.get("cid", "")),
            "gen_ai.usage.input_tokens": int(_number(data, "prompt_tokens")),
            "gen_ai.usage.output_tokens": int(_number(data, "completion_tokens")),
            "gen_ai.usage.cache_read.input_tokens": int(_number(data, "cached_tokens")),
            "aios.core": core,
            "aios.queue_s": _number(data, "waiting_s"),
            "aios.dollars": _number(data, "dollars"),
        }
        span = self._begin(f"chat {model}", SpanKind.CLIENT, event.aid, began, attributes)
        if _number(data, "completion_tokens"):
            first = began + _number(data, "first_token_s")
            span.add_event("first token", timestamp=_nanos(first))
        _end(span, _number(data, "t_end") or event.t, data)

    def _tool(self, event: aios.Event) -> None:
        name = str(event.data.get("tool", ""))
        attributes: Attributes = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": name,
            "gen_ai.tool.type": "function",
            "gen_ai.tool.call.id": str(event.data.get("call", "")),
        }
        began = event.t - _number(event.data, "seconds")
        title = f"execute_tool {name}"
        span = self._begin(title, SpanKind.INTERNAL, event.aid, began, attributes)
        _end(span, event.t, event.data)

    def _life(self, event: aios.Event) -> None:
        row = self._agent(event.aid)
        if row is None:
            return
        self._ids.trace, self._ids.span = self._known(event.aid)
        span = self._tracer.start_span(
            f"invoke_agent {row.name}",
            context=trace.set_span_in_context(trace.INVALID_SPAN),
            kind=SpanKind.INTERNAL,
            attributes={**self._whose(row), "gen_ai.operation.name": "invoke_agent"},
            start_time=_nanos(row.created),
        )
        failed = event.data.get("code") or event.data.get("signal")
        _end(span, event.t, {"errno": event.data.get("reason") or "failed"} if failed else {})

    def _begin(
        self, title: str, kind: SpanKind, aid: int, began: float, attributes: Attributes
    ) -> trace.Span:
        """Begin a span below its agent's."""
        row = self._agent(aid)
        about = self._whose(row) if row is not None else {"gen_ai.agent.id": str(aid)}
        above = trace.SpanContext(
            *self._known(aid),
            is_remote=True,
            trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED),
        )
        return self._tracer.start_span(
            title,
            context=trace.set_span_in_context(trace.NonRecordingSpan(above)),
            kind=kind,
            attributes={**attributes, **about},
            start_time=_nanos(began),
        )

    def _known(self, aid: int) -> tuple[int, int]:
        """Return the ids of an agent's trace and of the span that is its life."""
        digest = hashlib.sha256(f"{self._boot}:{aid}".encode()).digest()
        return int.from_bytes(digest[:16]) or 1, int.from_bytes(digest[16:24]) or 1

    @staticmethod
    def _whose(row: aios.Agent) -> Attributes:
        return {
            "gen_ai.agent.id": str(row.aid),
            "gen_ai.agent.name": row.name,
            "enduser.id": str(row.uid),
        }


def _end(span: trace.Span, moment: float, data: Mapping[str, Any]) -> None:
    failure = data.get("errno") or ""
    if failure:
        span.set_attribute("error.type", str(failure))
        span.set_status(Status(StatusCode.ERROR, str(data.get("error") or failure)[:256]))
    span.end(_nanos(moment))


def _number(data: Mapping[str, Any], field: str) -> float:
    value = data.get(field, 0.0)
    return float(value) if isinstance(value, int | float) else 0.0


def _nanos(moment: float) -> int:
    return int(moment * 1e9)
