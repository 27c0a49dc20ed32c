"""Which hosts, and which addresses behind their names, a tool may ask. Pure.

    rules = Rules(["example.org", "*.wikipedia.org", "localhost:8080"])
    rules.check_host("example.org", 443)
    rules.check_address("example.org", 443, "93.184.216.34")

An entry without a port stands for the ports 80 and 443. Names may point anywhere, and whoever owns
a name decides where: an address that is private, or any other than a public one, is refused, unless
the entry with its port names that very host, as an operator writes who means it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator
from typing import Final

PORTS: Final = (80, 443)
_NUMBER: Final = re.compile(r"(0[xX][0-9a-fA-F]*|[0-9]+)")
_NAT64: Final = (
    ipaddress.IPv6Network("64:ff9b::/96"),
    ipaddress.IPv6Network("64:ff9b:1::/48"),
)
_UNICAST: Final = ipaddress.IPv6Network("2000::/3")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Refused(PermissionError):
    """A host or an address that may not be asked; the sentence says why."""


class Rules:
    """An allow list. Entries: a host, "*.domain" for all hosts of it, either with a port."""

    def __init__(self, entries: Iterable[str]) -> None:
        self._entries = [_entry(entry) for entry in entries]

    def check_host(self, host: str, port: int) -> None:
        """Raise Refused when this host is not on the list."""
        name = plain(host)
        if not any(_covers(entry, name, port) for entry in self._entries):
            raise Refused(
                f"{name}:{port} is not among the hosts that this tool may ask: an operator adds it "
                "to network in [tools.needs.http_fetch] of aiosd.toml"
            )
        if (address := literal(name)) and not self._is_meant(name, port):
            check_public(name, address)

    def check_address(self, host: str, port: int, address: str) -> None:
        """Raise Refused when a host's name leads to an address that is nobody's public one."""
        if not self._is_meant(plain(host), port):
            check_public(host, ipaddress.ip_address(address.partition("%")[0]))

    def _is_meant(self, name: str, port: int) -> bool:
        return (name, port) in self._entries


def check_public(host: str, address: Address) -> None:
    """Raise Refused for an address that is not public, or that carries one that is not."""
    for inner in _inside(address):
        if not inner.is_global or inner.is_multicast or not _is_unicast(inner):
            raise Refused(f"{host} leads to {address}, which is not a public address")


def _is_unicast(address: Address) -> bool:
    """Tell whether an address is of the part that is given out: some is_global says are not."""
    return address in _UNICAST if address.version == 6 else not address.is_reserved


def plain(host: str) -> str:
    """Return a host as it is compared: lower case, ASCII, without brackets and the last dot.

    Raises Refused for what is no host, and for numbers that some programs read as addresses.
    """
    name = host.strip("[]").rstrip(".").lower()
    if not name.isascii():
        try:
            name = name.encode("idna").decode()
        except UnicodeError:
            raise Refused(f"{host[:80]!r} is no host") from None
    if not name or not re.fullmatch(r"[a-z0-9_.:-]{1,253}", name):
        raise Refused(f"{host[:80]!r} is no host")
    if _NUMBER.fullmatch(name.rpartition(".")[2]) and literal(name) is None:
        raise Refused(f"{host[:80]!r} is neither a name nor an address")
    return name


def literal(name: str) -> Address | None:
    """Return the address that a host is written as; None for a name."""
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _entry(text: str) -> tuple[str, int]:
    """Take an entry apart; port 0: those of PORTS."""
    host, colon, port = text.strip().rpartition(":")
    if not colon or not port.isdecimal() or (":" in host and not host.startswith("[")):
        host, port = text.strip(), "0"
    return host.strip("[]").rstrip(".").lower(), int(port)


def _covers(entry: tuple[str, int], name: str, port: int) -> bool:
    host, wanted = entry
    if port not in ((wanted,) if wanted else PORTS):
        return False
    return name.endswith(host[1:]) if host.startswith("*.") else name == host


def _inside(address: Address) -> Iterator[Address]:
    """Give an address, and those that are written inside it for a gateway to take out."""
    if not isinstance(address, ipaddress.IPv6Address):
        yield address
    elif address.ipv4_mapped:
        yield address.ipv4_mapped
    elif any(address in network for network in _NAT64):
        yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    else:
        yield address
        yield from filter(None, (address.sixtofour, *(address.teredo or ())))
