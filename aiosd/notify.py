"""Telling a service manager how the daemon is: systemd's notification protocol, sd_notify(3).

Without NOTIFY_SOCKET in the environment all of it does nothing.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import MutableMapping
from time import monotonic_ns

log = logging.getLogger(__name__)


class Notifier:
    """The way to the service manager. Takes NOTIFY_SOCKET away, so that no agent inherits it."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        self._address = environ.pop("NOTIFY_SOCKET", "")

    def ready(self, status: str = "") -> None:
        """Start-up, or a reload, is complete."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """The configuration is being read again; `ready` follows."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The daemon has begun to end."""
        self._send("STOPPING=1")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        address = self._address
        if address.startswith("@"):
            address = "\0" + address[1:]
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.connect(address)
                sock.send("\n".join(lines).encode())
        except OSError as error:
            log.warning("can't notify %s: %s", self._address, error)
