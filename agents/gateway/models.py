"""Models: what `GET /v1/models` lists, and which core a model's name in a request stands for."""

from __future__ import annotations

from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

import aios

from .office import Office
from .refusal import Refusal
from .reply import Json

ANY = "aios"
"""The name of no model in particular: the kernel chooses."""


class Choice(NamedTuple):
    """What llm_generate is told: a core by its name, or a class of cores; both "": any."""

    core: str = ""
    needs: str = ""


def routes(office: Office) -> list[BaseRoute]:
    """Return the routes of this family."""

    async def listed(request: Request) -> Response:
        async with office.caller(request.headers) as kernel:
            return Json({"object": "list", "data": await rows(kernel, office)})

    async def one(request: Request) -> Response:
        async with office.caller(request.headers) as kernel:
            for row in await rows(kernel, office):
                if row["id"] == request.path_params["name"]:
                    return Json(row)
        raise _unknown(request.path_params["name"])

    return [Route("/v1/models", listed), Route("/v1/models/{name:path}", one)]


async def rows(kernel: aios.AsyncKernel, office: Office) -> list[dict[str, Any]]:
    """Return what may be named as a model, as OpenAI's models."""
    cores = [core for core in await kernel.list_cores() if core.kind != "tool"]
    names = dict.fromkeys([ANY, *(core.name for core in cores), *office.setup.models])
    return [{"id": name, "object": "model", "created": 0, "owned_by": "aios"} for name in names]


async def choose(kernel: aios.AsyncKernel, office: Office, model: str) -> Choice:
    """Return what a model's name stands for. Raises Refusal for one that stands for nothing."""
    wanted = office.setup.models.get(model, model)
    if not wanted or wanted == ANY:
        return Choice()
    if wanted in await office.cores(kernel):
        return Choice(core=wanted)
    if wanted != model:
        return Choice(needs=wanted)
    if office.setup.unknown == "refuse":
        raise _unknown(model)
    return Choice()


def _unknown(model: str) -> Refusal:
    sentence = f"model: there is no model {model[:200]!r}; GET /v1/models lists those that are"
    return Refusal(404, sentence, code="model_not_found", param="model")
