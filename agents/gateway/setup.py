"""What the kernel tells the gateway at its start: the table [gateway] and where the kernel is."""

from __future__ import annotations

import msgspec


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """The settings; aiosd.toml says what they mean. kernel: its socket. address: http://..., or "".

    Fields that are not known here are passed over: the kernel may be newer.
    """

    kernel: str
    address: str = ""
    hosts: list[str] = []
    origins: list[str] = []
    models: dict[str, str] = {}
    unknown: str = "any"
    metrics: str = "key"
    max_body: int = 16 << 20
    max_connections: int = 1024
    max_keys: int = 256
    request_timeout: float = 30.0
    send_timeout: float = 60.0
    idle: float = 600.0
