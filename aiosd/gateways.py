"""The gateway's supervision: where it listens, its process, and what agents are told of it.

    gateways = Gateways(config, events)
    gateways.open(); gateways.reload(); await gateways.close()
    gateways.environment(key)          # for programs that know nothing of AIOS

The gateway (agents/gateway) speaks HTTP in a process of its own and has no rights: what a request
brings as its key is an agent's credential, and the kernel serves that agent. The kernel holds the
listening sockets, so that addresses stay while the process is started again, and starts it when
there is somebody at the door: one that is never used costs nothing.

What must hold: whatever the process does, the kernel goes on, its addresses stay, and between two
starts that failed lies a pause which doubles up to a minute; who comes in a long one is told so.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from time import time
from typing import Any, Final

import msgspec

from aiosd.abi.system import Gateway, GetGateway
from aiosd.access import Caller
from aiosd.claim import Door
from aiosd.environment import ADDRESSES
from aiosd.events import Events
from aiosd.gatewayaway import Away
from aiosd.gatewaylife import End, Life
from aiosd.settings import Config

log = logging.getLogger(__name__)

NEEDS: Final = ("starlette", "uvicorn", "httptools")
CURE: Final = "install it with `pip install 'aios[gateway]'`"
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 60.0
PATIENT_S: Final = 1.0
"""Pauses from here on are told to those who are at a door; in shorter ones they wait."""
PORT: Final = "gateway.port"
"""The file in the state directory that says which port was free the last time."""


class Gateways:
    """The one gateway of this kernel. config: called for what is configured now."""

    def __init__(self, config: Callable[[], Config], events: Events) -> None:
        self._config = config
        self._events = events
        self._doors: list[socket.socket] = []
        self._door: Door | None = None
        self._http = ""
        self._state = "off"
        self._reason = ""
        self._since = time()
        self._restarts = 0
        self._failures = 0
        self._life: Life | None = None
        self._served: Any = None  # the settings that the process was started with
        self._task: asyncio.Task[None] | None = None
        self._knock = asyncio.Event()

    def open(self) -> None:
        """Listen, unless it is not wanted or not installed. What can't be had is logged."""
        settings = self._config().gateway
        if not settings.serve:
            self._reason = "it is not wanted ([gateway] serve)"
            return
        missing = [name for name in NEEDS if find_spec(name) is None]
        if missing:
            self._reason = f"it lacks {', '.join(missing)}: {CURE}"
            log.info("no gateway: %s", self._reason)
            return
        self._listen()
        if self._doors:
            self._task = asyncio.get_running_loop().create_task(self._supervise())

    def reload(self) -> None:
        """Have it served by a process with the new settings, where they have changed."""
        if self._life is not None and self._served != self._setup():
            self._life.leave()

    async def close(self) -> None:
        """Listen no more, and end the process."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        if self._door is not None:
            self._door.remove()
        for door in self._doors:
            door.close()
        self._doors.clear()

    def environment(self, key: str) -> dict[str, str]:
        """Return what a spawned program finds in its environment, {} when there is no HTTP."""
        if not self._http:
            return {}
        return {
            **dict.fromkeys(ADDRESSES, f"{self._http}/v1"),
            "OPENAI_API_KEY": key,
            "CEREBRUM_KERNEL_URL": self._http.replace("://", f"://aios:{key}@", 1),
        }

    def sys_get_gateway(self, caller: Caller, args: GetGateway) -> Gateway:
        """Say where it listens, and how it is."""
        return Gateway(
            state=self._state,
            http=self._http,
            socket=self._door.path if self._door is not None else "",
            pid=self._life.pid if self._life is not None else 0,
            since=self._since,
            restarts=self._restarts,
            reason=self._reason,
        )

    # Where it listens.

    def _listen(self) -> None:
        config = self._config()
        try:
            self._door = Door(config.gateway.socket, config.kernel.group)
            self._doors.append(self._door.socket)
        except OSError as error:
            self._complain(config.gateway.socket, error)
        if not config.gateway.http:
            return
        try:
            door = _bind(config.gateway.http, f"{config.kernel.state_dir}/{PORT}")
        except OSError as error:
            self._complain(config.gateway.http, error)
            return
        self._doors.append(door)
        host = config.gateway.http.rpartition(":")[0]
        self._http = f"http://{host}:{door.getsockname()[1]}"

    def _complain(self, place: str, error: OSError) -> None:
        self._reason = f"it can't listen on {place}: {error.strerror or error}"
        log.error("the gateway: %s", self._reason)

    # Its process.

    async def _supervise(self) -> None:
        while True:
            self._became("listening", self._reason)
            await self._knocked()
            end = await self._live()
            if end.left:
                self._failures = 0
                continue
            self._restarts += 1
            self._failures += 1
            pause = min(FIRST_PAUSE_S * 2 ** min(self._failures - 1, 32), LONGEST_PAUSE_S)
            log.warning("the gateway: %s; it may be started again in %g s", end.reason, pause)
            self._became("waiting", end.reason)
            with Away(self._doors if pause >= PATIENT_S else (), end.reason, pause):
                await asyncio.sleep(pause)

    async def _knocked(self) -> None:
        """Return when somebody is at a door."""
        loop = asyncio.get_running_loop()
        self._knock.clear()
        for door in self._doors:
            loop.add_reader(door.fileno(), self._knock.set)
        try:
            await self._knock.wait()
        finally:
            for door in self._doors:
                loop.remove_reader(door.fileno())

    async def _live(self) -> End:
        """Start the process; return why it has ended, with nothing left of it."""
        settings = self._config().gateway
        self._became("starting", self._reason)
        self._served = self._setup()
        life: Life | None = None
        try:
            life = self._life = Life(
                _module(), self._doors, self._served, settings.nice, self._ready
            )
            return await asyncio.shield(life.ended)
        except OSError as error:
            return End(f"it can't be started: {error.strerror or error}", False)
        finally:
            self._life = None
            if life is not None:
                await _surely(life)

    def _ready(self) -> None:
        self._failures = 0
        self._became("ready", "")

    def _became(self, state: str, reason: str) -> None:
        if state != self._state:
            self._since = time()
        self._state, self._reason = state, reason
        self._events.emit("gateway.state", state=state, reason=reason)

    def _setup(self) -> dict[str, Any]:
        """Return what the process is told."""
        config = self._config()
        settings: dict[str, Any] = msgspec.to_builtins(config.gateway)
        return {**settings, "kernel": config.kernel.socket, "address": self._http}


async def _surely(life: Life) -> None:
    """Close a life to the end, cancelled or not."""
    closing = asyncio.ensure_future(life.close())
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.shield(closing)
        return
    await asyncio.wait({closing})
    raise asyncio.CancelledError


def _module() -> str:
    """Return the name of the program: in an installed package, or in a checkout."""
    inside = Path(__file__).resolve().parent / "agents" / "gateway"
    return "aiosd.agents.gateway" if inside.is_dir() else "agents.gateway"


def _bind(place: str, memory: str) -> socket.socket:
    """Listen on ADDRESS:PORT; port 0 is the one in the file `memory`, if that is free again."""
    host, _, port = place.rpartition(":")
    address = host.strip("[]")
    wanted = [int(port)] if int(port) else [_remembered(memory), 0]
    for number in wanted:
        door = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        try:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            door.bind((address, number))
            door.listen(socket.SOMAXCONN)
        except OSError as error:
            door.close()
            if error.errno != errno.EADDRINUSE or number == wanted[-1]:
                raise
            continue
        door.setblocking(False)
        Path(memory).write_text(f"{door.getsockname()[1]}\n", encoding="ascii")
        return door
    raise AssertionError("unreachable: the last one either binds or raises")


def _remembered(memory: str) -> int:
    with contextlib.suppress(OSError, ValueError):
        number = int(Path(memory).read_text(encoding="ascii"))
        return number if 0 < number < 1 << 16 else 0
    return 0
