"""A bridge without Ray, for tests: the node is this process, its files are below `place.address`.

    python -m tests.cores.bridge --fd N

It is told as the real one is, by a Place. Files in the directory have it do things: it is lost when
there is one named `cut`, which is gone then; it has no room when there is one named `full`. It
makes one named `stored` when something was carried to it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from aiosd import raybridge
from aiosd.raynode import About, Heard, Node
from aiosd.rayplace import Place
from aiosd.rayrelay import Gone, Refused


class Cluster(Node):
    """One node."""

    def __init__(self, place: Place) -> None:
        super().__init__(place.address)
        self._told = place

    async def join(self) -> None:
        if not os.path.isdir(self._told.address):
            raise Gone(f"no directory {self._told.address}")

    def check_room(self) -> None:
        if self._told.num_gpus:
            raise Refused(12, "there are no GPUs here")

    async def open(self, nice: int) -> tuple[About, str]:  # type: ignore[override]
        about = await super().open(self._told.runner, self._told.model, nice)
        assert isinstance(about, About)
        return about, await self.directory()

    async def receive(self, patience: float) -> Heard:
        if (cut := Path(self._told.address, "cut")).exists():
            cut.unlink()
            raise Gone("the cable was cut")
        return await super().receive(patience)

    async def store(self, name: str, start: int, data: bytes) -> str:
        if Path(self._told.address, "full").exists():
            return "no space is left here"
        Path(self._told.address, "stored").touch()
        return await super().store(name, start, data)

    async def leave(self) -> None:
        await self.close()


if __name__ == "__main__":
    status = raybridge.run(Cluster)
    sys.stderr.flush()
    os._exit(status)
