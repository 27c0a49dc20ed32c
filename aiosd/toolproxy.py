"""The only way out of a box: a proxy for HTTP and CONNECT that knows the declared hosts."""

from __future__ import annotations

import socket


class Proxy:
    """Refuses every connection."""

    def __init__(self, hosts: tuple[str, ...], listening: socket.socket) -> None:
        self._listening = listening

    def close(self) -> None:
        """Stop listening."""
        self._listening.close()
