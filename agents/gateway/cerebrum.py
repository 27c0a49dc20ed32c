"""The research system's kernel API: programs written for Cerebrum run against this kernel.

`POST /query` carries what they ask (llm, tool, memory, storage), by `cerebrumllm.py` and
`cerebrumstores.py`; its companions tell of cores and agents, choose models for those queries that
name none, and submit agents (`cerebrumagents.py`). Each answer is in the form that its client
reads, what is refused too: the sentence is `detail` there.

Such programs bring no key, but their HTTP library sends what stands in the address, and the
CEREBRUM_KERNEL_URL of a spawned program is http://aios:KEY@..., so its key comes as a password.
All is done as the agent whose key it is; the name in a query is what the program calls itself.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final
from weakref import WeakKeyDictionary

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

import aios

from . import cerebrumagents, cerebrumllm, cerebrumstores
from .cerebrumform import Answer, Done, Query, Selections, failed, worded
from .office import Office
from .refusal import Refusal
from .reply import Json, read, unless_gone

PARTS: Final = ("llms", "storage", "memory", "tool", "scheduler", "factory")
"""What that system has managers for; here the kernel is all of them."""
MAX_SELECTED: Final = 64


Work = Callable[[aios.AsyncKernel, Office, Query], Awaitable[Done]]

_WORK: Final[dict[str, Work]] = {
    "llm": cerebrumllm.generate,
    "tool": cerebrumllm.call_tools,
    "storage": cerebrumstores.storage,
    "memory": cerebrumstores.memory,
}


def routes(office: Office) -> list[BaseRoute]:
    """Return the routes of this family."""
    selected: Selections = WeakKeyDictionary()
    return [
        _route("/query", _Queries(office, selected).query, "POST"),
        *_companions(office),
        *_selection(office, selected),
        *cerebrumagents.routes(office, as_bearer),
    ]


def _route(path: str, answer: Answer, method: str = "GET") -> Route:
    return Route(path, worded(answer), methods=[method])


class _Queries:
    """Answers queries."""

    def __init__(self, office: Office, selected: Selections) -> None:
        self._office = office
        self._selected = selected

    async def query(self, request: Request) -> Response:
        """Carry out a query and answer with what came of it, and when it was done."""
        asked = await read(request, Query)
        async with self._office.caller(as_bearer(request.headers)) as kernel:
            return Json(await unless_gone(request.receive, self._answer(kernel, asked)))

    async def _answer(self, kernel: aios.AsyncKernel, asked: Query) -> Any:
        began = time.time()
        if asked.query_type == "llm":
            asked = cerebrumllm.narrowed(asked, self._selected.get(kernel, []))
        try:
            done = await _WORK[asked.query_type](kernel, self._office, asked)
        except ConnectionError:
            raise
        except OSError as error:
            done = Done(failed(asked.query_type, error))
        if isinstance(done.response, str):
            return done.response
        ended = time.time()
        return {
            "response": done.response,
            "start_times": [began + done.waiting],
            "end_times": [ended],
            "waiting_times": [done.waiting],
            "turnaround_times": [ended - began],
        }


def _companions(office: Office) -> list[BaseRoute]:
    """Return the routes about the kernel itself."""

    async def status(request: Request) -> Response:
        async with office.caller(as_bearer(request.headers)):
            return Json({"status": "ok", "message": "aiosd is serving"})

    async def core_status(request: Request) -> Response:
        async with office.caller(as_bearer(request.headers)):
            return Json(dict.fromkeys(PARTS, "active"))

    async def llms(request: Request) -> Response:
        async with office.caller(as_bearer(request.headers)) as kernel:
            rows = [
                {"name": core.name, "backend": core.driver, "model": core.model}
                for core in await kernel.list_cores()
                if core.kind != "tool"
            ]
        return Json({"status": "success", "llms": rows})

    async def check(request: Request) -> Response:
        async with office.caller(as_bearer(request.headers)) as kernel:
            cores = await kernel.list_cores()
            return Json([core.name for core in cores if core.kind != "tool"])

    async def server(request: Request) -> Response:
        async with office.caller(as_bearer(request.headers)):
            told = "there is no script of an MCP server: use `aiosctl mcp`, or /mcp here"
        return Json({"status": "warning", "message": told})

    async def settings(request: Request) -> Response:
        raise Refusal(403, "the kernel's settings are in aiosd.toml, and its operator's to change")

    return [
        _route("/status", status),
        _route("/core/status", core_status),
        _route("/core/llms/list", llms),
        _route("/core/llms/check", check),
        _route("/get/mcp/server", server),
        *(
            _route(f"/core/{name}", settings, "POST")
            for name in ("refresh", "cleanup", "config/update")
        ),
    ]


def _selection(office: Office, selected: Selections) -> list[BaseRoute]:
    """Return the routes about the models of queries that name none, by who asks."""

    async def select(request: Request) -> Response:
        wanted = await read(request, list[dict[str, Any]])
        if len(wanted) > MAX_SELECTED:
            raise Refusal(400, f"{len(wanted)} models, at most {MAX_SELECTED} can be selected")
        async with office.caller(as_bearer(request.headers)) as kernel:
            selected[kernel] = wanted
        if not wanted:
            return Json({"status": "warning", "message": "none is selected"})
        return Json({"status": "success", "message": f"selected: {wanted}"})

    async def selection(request: Request) -> Response:
        async with office.caller(as_bearer(request.headers)) as kernel:
            if wanted := selected.get(kernel):
                return Json({"status": "success", "message": f"selected: {wanted}"})
        return Json({"status": "warning", "message": "none is selected"})

    return [
        _route("/user/select/llms", select, "POST"),
        _route("/user/selected/llms", selection),
    ]


def as_bearer(headers: Headers) -> Headers:
    """Return a request's headers with the key as a bearer's, where it came as a password."""
    kind, _, coded = headers.get("authorization", "").partition(" ")
    if kind.lower() != "basic":
        return headers
    try:
        _, _, key = base64.b64decode(coded, validate=True).decode("ascii").partition(":")
    except (binascii.Error, ValueError):
        raise Refusal(401, "the password in the address is no key of an agent") from None
    return Headers({"authorization": f"Bearer {key}"})
