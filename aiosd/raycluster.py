"""The cluster as a bridge sees it: joining it, finding room, and the actor that is started there.

    cluster = Cluster(place)
    await cluster.join()
    about, directory = await cluster.open(nice)
    await cluster.send(data); ...               # see rayrelay.Node
    cluster.leave()

Ray is used here and nowhere else. What it says in its own words, at length, becomes one sentence:
Refused for what will not get better by itself, Gone for what may.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from typing import Any, Final

import ray

from aiosd.raynode import About, Heard, Node
from aiosd.rayplace import Place
from aiosd.rayrelay import Gone, Refused

CONNECT_S: Final = 60.0
"""Seconds for the cluster to take this process in."""
CLOSE_S: Final = 1.0
"""Seconds for an actor to delete its files."""
CALLS: Final = 8
"""Calls that an actor carries out at a time: one each of send and receive, and files."""

log = logging.getLogger(__name__)


class Cluster:
    """One cluster, and one actor on it."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._handle: Any = None

    async def join(self) -> None:
        """Become a driver of the cluster's. Raises Gone with the cure.

        Whether anybody listens there is found out first: Ray itself would try for minutes.
        """
        host, _, port = self._place.address.rpartition(":")
        try:
            async with asyncio.timeout(CONNECT_S):
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
                writer.close()
                await asyncio.to_thread(self._join)
        except TimeoutError:
            why = f"it does not answer for {CONNECT_S:g} s"
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            why = _sentence(error)
        else:
            return
        at = self._place.address
        raise Gone(
            f"the Ray cluster at {at} can't be reached: {why}. This machine must be a node of it: "
            f"ray start --address={at} --num-cpus=0"
        )

    def _join(self) -> None:
        ray.init(
            address=self._place.address,
            namespace="aios",
            runtime_env=self._place.runtime_env or None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )

    def check_room(self) -> None:
        """Raise Refused when no node is large enough, however idle it is."""
        known: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        nodes = [node["Resources"] for node in known if node["Alive"]]
        wants = self._place.wants
        if any(all(node.get(name, 0.0) >= n for name, n in wants.items()) for node in nodes):
            return
        most = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in wants}
        text = f"no node of the Ray cluster at {self._place.address} has {_words(wants)}"
        how = f"the most that one of its {len(nodes)} nodes has is {_words(most)}"
        raise Refused(errno.ENOMEM, f"{text}; {how}")

    async def open(self, nice: int) -> tuple[About, str]:
        """Start an actor where there is room, and the engine in it.

        Returns what the node says of itself, and where it keeps files.
        """
        self._handle = _actor(self._place)
        place = self._place
        try:
            async with asyncio.timeout(place.wait):
                about: About | str = await self._call("open", place.runner, place.model, nice)
        except TimeoutError:
            text = f"no node of the Ray cluster has had {_words(place.wants)} free for"
            raise Gone(f"{text} {place.wait:g} s") from None
        if isinstance(about, str):
            raise Refused(errno.ENOENT, about)
        return about, await self._call("directory")

    async def leave(self) -> None:
        """End the actor: the cluster would notice that we have gone, but later."""
        if self._handle is None:
            return
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._handle.close.remote()
        except (TimeoutError, ray.exceptions.RayError) as error:
            log.info("the actor's files are left to the next one on its node: %s", error)
        ray.kill(self._handle)

    # What the relay asks for.

    async def send(self, data: bytes) -> None:
        """See rayrelay.Node."""
        await self._call("send", data)

    async def receive(self, patience: float) -> Heard:
        """See rayrelay.Node."""
        heard: Heard = await self._call("receive", patience)
        return heard

    async def fetch(self, name: str, start: int, end: int) -> bytes:
        """See rayrelay.Node; what is large comes through the object store."""
        data: bytes = await self._call("fetch", name, start, end)
        return data

    async def store(self, name: str, start: int, data: bytes) -> str:
        """See rayrelay.Node; the data go into the object store, and the node fetches them."""
        reference = await asyncio.to_thread(ray.put, data)
        why: str = await self._call("store", name, start, reference)
        return why

    async def remove(self, names: list[str]) -> None:
        """See rayrelay.Node."""
        await self._call("remove", names)

    async def _call(self, name: str, *arguments: object) -> Any:
        try:
            return await getattr(self._handle, name).remote(*arguments)
        except ray.exceptions.RuntimeEnvSetupError as error:
            raise Refused(errno.EINVAL, f"runtime_env: {_sentence(error)}") from None
        except ray.exceptions.RayTaskError as error:
            if isinstance(cause := error.cause, OSError):
                raise OSError(cause.errno or errno.EIO, cause.strerror or str(cause)) from None
            raise
        except ray.exceptions.RayError as error:
            raise Gone(_sentence(error)) from None


def _actor(place: Place) -> Any:
    """Ask Ray for an actor; it is placed in its own time."""
    wanted: dict[str, Any] = {
        "num_cpus": place.num_cpus,
        "num_gpus": place.num_gpus,
        "resources": place.resources,
        "scheduling_strategy": place.strategy,
        "max_restarts": 0,
        "max_task_retries": 0,
        "max_concurrency": CALLS,
    }
    if place.memory:
        wanted["memory"] = place.memory
    return ray.remote(Node).options(**wanted).remote()


def _words(resources: dict[str, float]) -> str:
    return ", ".join(f"{n:g} {name}" for name, n in resources.items()) or "anything"


def _sentence(error: BaseException) -> str:
    """Return the first line of an error of Ray's, which may have hundreds."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:500]
