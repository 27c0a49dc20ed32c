"""A kernel to measure: the real daemon in directories of its own, and gone at the end.

    with Kernel(core("a"), core("b", slots=4), sched='policy = "priority"') as kernel:
        kernel.client().call(Ping())

Its KV directory lies on tmpfs, as it would in use. Whatever ends the block ends the daemon.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from aiosd.abi.cores import Core, ListCores
from aiosd.abi.process import RegisterAgent
from tests.daemon import Client, Daemon

LOADING_S = 120.0  # for a model to load and be probed
TMPFS = "/dev/shm"
N_CTX = 2048


class Kernel(Daemon):
    """A daemon with these `[[cores]]` tables; without any it has no core."""

    def __init__(self, *cores: str, sched: str = "") -> None:
        self._base = Path(tempfile.mkdtemp(prefix="aios-bench-", dir="/tmp"))
        self.kv = Path(tempfile.mkdtemp(prefix="aios-bench-", dir=TMPFS))
        for name in ("state", "run"):
            (self._base / name).mkdir(mode=0o700)
        tables = "\n".join(cores) if cores else "cores = []\n"
        self._text = f"{tables}\n[sched]\n{sched}\n" if cores else f"{tables}\n"
        super().__init__(self._base / "state", self._base / "run", self.kv)

    def configure(self, text: str) -> None:
        """Write the configuration of this kernel; `text` is not used."""
        self.config.write_text(f'{self._text}\n[context]\nkv_dir = "{self.kv}"\n')

    def client(self, name: str = "") -> Client:
        """Return a new connection; with a name it is an agent."""
        client = self.connect()
        if name:
            client.call(RegisterAgent(name=name))
        return client

    def cores(self) -> list[Core]:
        """Return the cores once all of them are ready; raises RuntimeError when one is not."""
        with self.client() as client:
            until = time.monotonic() + LOADING_S
            while True:
                found: list[Core] = client.call(ListCores())
                if all(core.state == "ready" for core in found):
                    return found
                failed = [core.error for core in found if core.state == "failed"]
                if failed or time.monotonic() > until:
                    raise RuntimeError(f"no core: {failed or found}; see {self.log}")
                time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        try:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()
            self._notify.close()
            shutil.rmtree(self._base, ignore_errors=True)
            shutil.rmtree(self.kv, ignore_errors=True)


def core(
    name: str,
    *,
    slots: int = 8,
    threads: int = 0,
    exact: bool = True,
    grid: int = 64,
    quantize: str = "",
) -> str:
    """Return a `[[cores]]` table for the packaged model, N_CTX tokens a slot."""
    return (
        f'[[cores]]\nname = "{name}"\nslots = {slots}\nthreads = {threads}\n'
        f"n_ctx = {N_CTX}\nexact = {str(exact).lower()}\ngrid = {grid}\n"
        f'quantize = "{quantize}"\n'
    )
