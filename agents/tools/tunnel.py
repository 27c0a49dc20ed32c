"""A connection to a server that speaks no HTTP, through the one way out of a sandbox.

A tool in its box reaches the network by an HTTP proxy alone, which the environment names. CONNECT
makes a plain connection of that. Without a proxy the server is reached directly.
"""

from __future__ import annotations

import os
import socket
from typing import Final
from urllib.parse import urlsplit

_MAX_HEAD: Final = 8192


def connect(host: str, port: int, seconds: float) -> socket.socket:
    """Return a connection to a server; each step of it may take so many seconds.

    Raises OSError that says why there is none.
    """
    proxy = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy") or ""
    if not proxy:
        return socket.create_connection((host, port), seconds)
    place = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    sock = socket.create_connection((place.hostname or "", place.port or 80), seconds)
    try:
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        sock.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode("ascii"))
        status = _status(sock)
        if status.split(b" ", 2)[1:2] != [b"200"]:
            said = status.decode("ascii", "replace")[:100]
            raise ConnectionRefusedError(f"the proxy does not let {target} through: {said}")
    except BaseException:
        sock.close()
        raise
    return sock


def _status(sock: socket.socket) -> bytes:
    """Return the first line of the proxy's answer, and read to the end of its head, no further."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        if not byte or len(head) > _MAX_HEAD:
            raise ConnectionAbortedError("the proxy did not answer as one")
        head += byte
    return head.partition(b"\r\n")[0]
