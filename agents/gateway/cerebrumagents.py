"""Agents as Cerebrum submits them and looks after them: `/agents/submit`, `/agents/ps` and so on.

A submitted agent is a program on the kernel's agent path that gets its task as its only argument,
as a child of whoever submits it; the number of its execution is its aid.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

import aios

from .cerebrumform import worded
from .office import Office
from .refusal import Refusal
from .reply import Json, read

LINES: Final = 1000
"""Records of an agent's output that its result is made of."""
ENDED: Final = "ZX"


class Submission(msgspec.Struct, frozen=True):
    """What is to be run. agent_config: its task, and whatever else its author put there."""

    agent_id: str
    agent_config: dict[str, Any]


def routes(office: Office, as_bearer: Callable[[Headers], Headers]) -> list[BaseRoute]:
    """Return the routes about agents. as_bearer: finds the key in a request's headers."""

    async def submit(request: Request) -> Response:
        asked = await read(request, Submission)
        task = asked.agent_config.get("task")
        if not isinstance(task, str):
            raise Refusal(422, "agent_config: its task is missing, or no text")
        name = asked.agent_id.rpartition("/")[2]
        async with office.caller(as_bearer(request.headers)) as kernel:
            started = await kernel.spawn([name, task])
        message = f"{name} runs as agent {started.aid}"
        return Json({"status": "success", "execution_id": started.aid, "message": message})

    async def status(request: Request) -> Response:
        aid = request.path_params["aid"]
        async with office.caller(as_bearer(request.headers)) as kernel:
            agent = await _agent(kernel, aid)
            if agent.state not in ENDED:
                message = f"agent {aid} is at work"
                return Json({"status": "running", "message": message, "execution_id": aid})
            result = {
                "agent_name": agent.name,
                "result": await _output(kernel, aid),
                "exit_code": agent.exit_code,
            }
        return Json({"status": "completed", "result": result, "execution_id": aid})

    async def ps(request: Request) -> Response:
        async with office.caller(as_bearer(request.headers)) as kernel:
            rows = [
                _process(agent) for agent in await kernel.list_agents(all=True) if agent.program
            ]
        return Json({"status": "success", "processes": rows})

    return [
        Route("/agents/submit", worded(submit), methods=["POST"]),
        Route("/agents/ps", worded(ps)),
        Route("/agents/{aid:int}/status", worded(status)),
    ]


async def _agent(kernel: aios.AsyncKernel, aid: int) -> aios.Agent:
    for agent in await kernel.list_agents(all=True, aid=aid):
        if agent.aid == aid:
            return agent
    raise Refusal(404, f"there is no execution {aid}")


async def _output(kernel: aios.AsyncKernel, aid: int) -> str:
    """Return what an agent has printed of late."""
    async with kernel.read_log(aid, tail=LINES) as records:
        return "".join([record.text async for record in records if record.stream == "out"])


def _process(agent: aios.Agent) -> dict[str, Any]:
    told = {
        "agent_id": agent.name,
        "execution_id": agent.aid,
        "status": "completed" if agent.state in ENDED else "running",
        "start_time": _iso(agent.started or agent.created),
        "config": {},
        "task": " ".join(agent.argv[1:]),
    }
    return told | ({"end_time": _iso(agent.ended)} if agent.ended else {})


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat()
