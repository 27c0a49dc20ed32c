"""The bridge to a core on a Ray cluster: `python -m aiosd.raybridge --fd N`, started by the kernel.

N is the inherited end of a socketpair that speaks `aiosd.engine.protocol`, as a core worker's does:
to the kernel this process is the worker. The first command says where to run (rayplace.Place); an
actor with that much of a node is started (raycluster.py) and the engine in it opens the model. From
then on frames and snapshot files are relayed (rayrelay.py), both through Ray.

This process dies with its kernel, and the actor with this process. Exit status: 0 when told to
leave, 1 when the core can't be had (the kernel was told why), 75 (EX_TEMPFAIL) when the node or the
cluster has gone, with the reason on standard error: another bridge may find another node; 70 when
the engine broke down, in its own words.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from aiosd.abi.wire import FrameError, Frames, frame
from aiosd.child import EX_PROTOCOL, EX_TEMPFAIL, begin
from aiosd.engine import protocol as p
from aiosd.raynode import About, code
from aiosd.rayplace import Place
from aiosd.rayrelay import Gone, Node, Refused, Relay
from aiosd.rayshelf import Shelf

EX_SOFTWARE: Final = 70
NICE: Final = "5"

log = logging.getLogger("aiosd.raybridge")


class Cluster(Node, Protocol):
    """What a bridge asks of a cluster (see raycluster.Cluster)."""

    async def join(self) -> None:
        """Become a part of it; raises Gone."""

    def check_room(self) -> None:
        """Raise Refused when no node is large enough."""

    async def open(self, nice: int) -> tuple[About, str]:
        """Start an engine on a node; raises Gone and Refused."""

    async def leave(self) -> None:
        """End it."""


class Kernel:
    """The socket to the kernel."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._lock = asyncio.Lock()

    async def receive(self) -> bytes:
        """Return what the kernel has sent, b"" when it has gone."""
        try:
            return await asyncio.get_running_loop().sock_recv(self._sock, 1 << 18)
        except OSError:
            return b""

    async def send(self, data: bytes) -> None:
        """Send to the kernel; when it has gone, `receive` says so."""
        async with self._lock:
            try:
                await asyncio.get_running_loop().sock_sendall(self._sock, data)
            except OSError as error:
                log.info("the kernel has gone: %s", error)


class Bridge:
    """One core's. cluster: makes one of a place."""

    def __init__(self, sock: socket.socket, cluster: Callable[[Place], Cluster]) -> None:
        self._kernel = Kernel(sock)
        self._frames = Frames(p.MAX_MESSAGE)
        self._cluster = cluster

    async def run(self) -> int:
        """Have the core run until it or the kernel ends; returns the exit status."""
        load = await self._first()
        if load is None:
            return 0
        place = msgspec.json.decode(load.setup.model, type=Place)
        cluster = self._cluster(place)
        try:
            relay = await self._entered(cluster, load, place)
            heard = await relay.run(self._frames)
        except Refused as error:
            await self._kernel.send(frame(p.encode_event(p.Failed(error.code, str(error)))))
            return 1
        except Gone as error:
            sys.stderr.write(f"the node has gone: {error}\n")
            return EX_TEMPFAIL
        finally:
            await cluster.leave()
        return _broken(heard.ended) if heard is not None and heard.ended else 0

    async def _first(self) -> p.Load | None:
        """Wait for the first command, which names the place."""
        while (payload := self._frames.take()) is None:
            data = await self._kernel.receive()
            if not data:
                return None
            self._frames.add(data)
        command = p.decode_command(payload)
        if not isinstance(command, p.Load):
            raise ValueError(f"the first command was {type(command).__name__}, not Load")
        return command

    async def _entered(self, cluster: Cluster, load: p.Load, place: Place) -> Relay:
        """Have an engine started and told what to open.

        What goes wrong the first time is the user's to know; later it may be gone by itself.
        """
        try:
            await cluster.join()
            if not load.again:
                cluster.check_room()
            about, directory = await cluster.open(int(os.environ.get("AIOS_ENGINE_NICE", "19")))
        except Gone as error:
            if load.again:
                raise
            raise Refused(errno.EBUSY, str(error)) from None
        if about.code != code():
            text = f"node {about.host} runs another aios: install there what runs here"
            raise Refused(errno.EPROTO, text)
        threads = place.threads or int(place.num_cpus) or about.cpus
        setup = msgspec.structs.replace(
            load.setup, runner=place.runner, model=about.model, threads=threads
        )
        await cluster.send(frame(p.encode_command(msgspec.structs.replace(load, setup=setup))))
        shelf = Shelf(place.cache, time.monotonic)
        where = f"node {about.host}"
        return Relay(self._kernel, cluster, directory, shelf, place.silence, where)


def _broken(status: int) -> int:
    """Say how the engine ended; one that was killed from outside may go on elsewhere."""
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    sys.stderr.write(f"the engine on the node {how}\n")
    return EX_TEMPFAIL if status == -signal.SIGKILL else EX_SOFTWARE


def run(cluster: Callable[[Place], Cluster]) -> int:
    """Be a bridge to a cluster; returns the exit status."""
    os.environ.setdefault("AIOS_BRIDGE_NICE", NICE)
    sock = begin("aiosd.raybridge", "AIOS bridge to a core on Ray", "AIOS_BRIDGE_NICE")
    logging.basicConfig(level=logging.WARNING, format="bridge: %(message)s")
    try:
        return asyncio.run(Bridge(sock, cluster).run())
    except (FrameError, msgspec.MsgspecError, ValueError) as error:
        sys.stderr.write(f"aiosd.raybridge: {error}\n")
        return EX_PROTOCOL


def main() -> int:
    """Run a bridge to a cluster of Ray's; returns the exit status."""
    from aiosd import raycluster  # imports Ray

    return run(raycluster.Cluster)


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # the cluster sees the connection end; Ray's own way out may wait for it
