"""Models: what may run on a core, by package, file or reference to the Hugging Face Hub.

`aiosd.hub` knows the hub and its cache; it runs as a process of its own, one for each question,
which is killed when it takes too long or nobody wants the answer any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from aiosd import modelfile
from aiosd.abi import cores as abi
from aiosd.access import Caller
from aiosd.config import Config
from aiosd.cores.dispatcher import Cores
from aiosd.modelfile import HUB

LOOKING: Final = 60.0  # seconds for a question about the cache
AT_ONCE: Final = 2  # downloads and other questions at a time

_places = asyncio.Semaphore(AT_ONCE)


class Models:
    """The models of this machine."""

    def __init__(self, config: Callable[[], Config], cores: Cores) -> None:
        self._config = config
        self._cores = cores
        cores.fetch = self.fetch

    async def fetch(self, reference: str) -> str:
        """Return the path of a model of the hub, which is downloaded when it is not in the cache.

        Raises OSError that says why it can't be had.
        """
        found = await _ask("find", reference, seconds=self._config().kernel.fetch_timeout)
        assert isinstance(found, str)
        return found

    async def sys_list_models(self, caller: Caller, args: abi.ListModels) -> list[abi.Model]:
        """List what packages carry, what is in the hub's cache, and the files that cores run."""
        found = {row.path: row for row in (*_packaged(), *await _cached())}
        users: dict[str, list[str]] = {}
        for core in self._cores.local:
            if core.driver == "llama" and not core.base:
                users.setdefault(core.setup.model, []).append(core.name)
        for path in users.keys() - found.keys():
            found[path] = abi.Model(path, "file", path, _size(path))
        rows = [
            msgspec.structs.replace(row, cores=users.get(row.path, [])) for row in found.values()
        ]
        return sorted(rows, key=lambda row: (row.kind, row.name))

    async def sys_remove_model(self, caller: Caller, args: abi.RemoveModel) -> int:
        """Delete a model of the hub from its cache; return the bytes that are free again."""
        if not args.name.startswith(HUB):
            text = f"remove_model: {args.name}: only what was fetched from the hub (hf:...) is ours"
            raise OSError(errno.EINVAL, f"{text}; remove a package with pip, a file with rm")
        for row in await self.sys_list_models(caller, abi.ListModels()):
            named = row.name == args.name or row.name.startswith(f"{args.name}:")
            if row.cores and (named or row.path == args.name):
                text = f"remove_model: {row.name} is in use by core {', '.join(row.cores)}"
                raise OSError(errno.EBUSY, f"{text}; remove that first")
        freed = await _ask("remove", args.name, seconds=LOOKING)
        assert isinstance(freed, int)
        return freed


def _packaged() -> list[abi.Model]:
    rows = []
    for name in modelfile.packaged_models():
        with contextlib.suppress(OSError):  # the package is not installed
            path = str(modelfile.find_model(name))
            rows.append(abi.Model(name, "package", path, _size(path)))
    return rows


async def _cached() -> list[abi.Model]:
    try:
        found = await _ask("list", seconds=LOOKING)
    except OSError as error:
        if error.errno == errno.ENOSYS:  # without huggingface_hub there is no cache
            return []
        raise
    return [abi.Model(r["name"], "hub", r["path"], r["bytes"], used=r["used"]) for r in found]


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0


async def _ask(*words: str, seconds: float) -> Any:
    """Run `aiosd.hub` and return its answer; raises the OSError that it gives."""
    async with _places:
        process = subprocess.Popen(
            [sys.executable, "-m", "aiosd.hub", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env={**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        )
        loop = asyncio.get_running_loop()
        reading = loop.run_in_executor(None, process.communicate)
        try:
            async with asyncio.timeout(seconds):
                output, _ = await asyncio.shield(reading)
        except TimeoutError:
            text = f"model {words[-1]}: no answer within {seconds:g} s; what was fetched is kept"
            raise OSError(errno.ETIMEDOUT, f"{text}, try again") from None
        finally:
            if not reading.done():
                process.kill()
                await asyncio.shield(reading)
    try:
        answer = msgspec.json.decode(output)
    except msgspec.DecodeError:
        text = f"model {words[-1]}: its look-up ended with status {process.returncode}"
        raise OSError(errno.EIO, f"{text}; the daemon's log has the reason") from None
    if isinstance(answer, dict) and "errno" in answer:
        raise OSError(answer["errno"], answer["message"])
    return answer
