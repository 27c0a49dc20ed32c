"""The kernel's metrics for Prometheus: `GET /metrics`, with any agent's key or, where the setting
`metrics` is "open", without one.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

import aios

from .office import RECONNECT_S, Office

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def routes(office: Office) -> list[BaseRoute]:
    """Return the routes of this family."""

    async def metrics(request: Request) -> Response:
        if office.setup.metrics == "open" and "authorization" not in request.headers:
            here = aios.connect_async(office.setup.kernel, reconnect=RECONNECT_S)
            async with here as kernel:
                return _told(await kernel.read_metrics())
        async with office.caller(request.headers) as kernel:
            return _told(await kernel.read_metrics())

    return [Route("/metrics", metrics)]


def _told(metrics: list[aios.Metric]) -> Response:
    return PlainTextResponse(aios.exposition(metrics), media_type=CONTENT_TYPE)
