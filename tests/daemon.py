"""A real daemon for tests, and a client that speaks nothing but frames.

    with Daemon(state_dir, runtime_dir, kv_dir) as daemon:
        client = daemon.connect()
        assert client.call(Ping(b"x")).payload == b"x"

Every wait has a deadline; none is a sleep.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import msgspec

from aiosd.abi import LEVEL, wire
from aiosd.abi.call import Call
from aiosd.abi.system import Hello
from aiosd.abi.table import BY_ARGS

PATIENCE = 60.0  # seconds before a test gives up on a peer; on a quiet machine nothing takes one
ROOT = Path(__file__).resolve().parent.parent


class Client:
    """A blocking client on one connection."""

    def __init__(self, path: str, *, hello: bool = True, credential: str = "") -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(path)
        self._frames = wire.Frames()
        self._ready: list[wire.Reply] = []
        self.next_id = 1
        if hello:
            try:
                self.welcome = self.call(Hello(level=LEVEL, credential=credential))
            except OSError:
                self.close()
                raise

    def send(self, args: Call) -> int:
        """Send a request; return its id."""
        return self._send(BY_ARGS[type(args)].number, args)

    def send_raw(self, number: int, body: bytes) -> int:
        """Send a request with an encoded body; return its id."""
        return self._send(number, body)

    def send_all(self, calls: Sequence[Call]) -> None:
        """Send several requests at once."""
        first, self.next_id = self.next_id, self.next_id + len(calls)
        frames = [
            wire.request(id, BY_ARGS[type(call)].number, call)
            for id, call in enumerate(calls, first)
        ]
        self.sock.sendall(b"".join(frames))

    def _send(self, number: int, body: Call | bytes) -> int:
        used = self.next_id
        self.next_id += 1
        self.sock.sendall(wire.request(used, number, body))
        return used

    def read(self) -> wire.Reply:
        """Return the next reply; raises EOFError when the peer hung up."""
        self._receive()
        return self._ready.pop(0)

    def read_all(self) -> list[wire.Reply]:
        """Return the replies that have arrived, waiting for the first of them."""
        self._receive()
        replies, self._ready = self._ready, []
        return replies

    def _receive(self) -> None:
        while not self._ready:
            data = self.sock.recv(1 << 16)
            if not data:
                raise EOFError
            self._ready = [wire.decode_reply(payload) for payload in self._frames.feed(data)]

    def call(self, args: Call) -> Any:
        """Make a call and return its typed answer; raises OSError for an error."""
        wanted = self.send(args)
        reply = self.read()
        assert reply.id == wanted
        return answer(reply, BY_ARGS[type(args)].reply)

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def answer(reply: wire.Reply, kind: Any = Any) -> Any:
    """Return a reply's body as `kind`; raises OSError for an error."""
    if reply.errno:
        raise OSError(reply.errno, msgspec.msgpack.decode(reply.body))
    return msgspec.msgpack.decode(reply.body, type=kind)


class Daemon:
    """A daemon process without cores, ready when the `with` block begins."""

    def __init__(
        self, state_dir: Path, runtime_dir: Path, kv_dir: Path, *, config: str = ""
    ) -> None:
        self.state_dir = state_dir
        self.runtime_dir = runtime_dir
        self.socket = str(runtime_dir / "aiosd.sock")
        self.config = state_dir / "aiosd.toml"
        self._kv_dir = kv_dir
        self.configure(config)
        self.notices: list[str] = []
        self.environ: dict[str, str] = {}  # what the process finds in its environment besides

    def configure(self, text: str) -> None:
        """Write the configuration: `text`, and what every test needs; no cores unless it has."""
        cores = "" if "[[cores]]" in text else "cores = []\n"
        if "[tools" not in text:  # to know those that packages bring takes seconds
            text += "\n[tools]\npackages = []\n"
        self.config.write_text(f'{cores}{text}\n[context]\nkv_dir = "{self._kv_dir}"\n')

    def arguments(self, *more: str) -> Sequence[str]:
        """Return the command line."""
        places = ["--state-dir", str(self.state_dir), "--runtime-dir", str(self.runtime_dir)]
        return [sys.executable, "-m", "aiosd", "--config", str(self.config), *places, *more]

    def start(self) -> Self:
        """Start the process and return once it says that it is ready."""
        self.launch()
        self.await_notice("READY=1")
        return self

    def launch(self) -> None:
        """Start the process."""
        path = str(self.state_dir / "notify")
        with suppress(FileNotFoundError):
            os.unlink(path)
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(path)
        self._notify.settimeout(PATIENCE)
        self.log = self.state_dir / "stderr"
        environ = os.environ | {"NOTIFY_SOCKET": path, "PYTHONPATH": str(ROOT)} | self.environ
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.arguments(), stderr=log, env=environ)

    def await_notice(self, wanted: str) -> None:
        """Return when the daemon has sent a notice with this line."""
        while True:
            ready, _, _ = select.select([self._notify], [], [], PATIENCE)
            assert ready, f"no {wanted} within {PATIENCE} s: {self.log.read_text()}"
            notice = self._notify.recv(4096).decode()
            self.notices.append(notice)
            if wanted in notice.splitlines():
                return

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another aiosd with the same places to its end."""
        return subprocess.run(
            self.arguments(*arguments),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            check=False,
        )

    def connect(self, *, hello: bool = True) -> Client:
        """Return a new client."""
        return Client(self.socket, hello=hello)

    def send_signal(self, number: int) -> None:
        """Send the daemon a signal."""
        self.process.send_signal(number)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the daemon by a signal; return its exit status."""
        self.send_signal(number)
        status = self.process.wait(PATIENCE)
        self._notify.close()
        return status

    def resident(self) -> int:
        """Return the bytes of memory that the daemon holds."""
        statm = Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii")
        return int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.stop(signal.SIGTERM)
        self._notify.close()
