"""Network hosts as tools declare them, and which addresses a declaration reaches. Pure.

    example.org          ports 80 and 443 of that name
    *.example.org        of every name below it
    example.org:8080     that port alone; an address or localhost works the same way
    [2001:db8::1]:443    an IPv6 address with a port

A name may lead only to addresses of the public Internet: what it resolves to is in other people's
hands, and an address of this machine or its network never is meant. An operator who does mean one
declares it as an address, or as localhost with its port.
"""

from __future__ import annotations

import errno
import ipaddress
import re
from typing import Final

import msgspec

USUAL_PORTS: Final = (80, 443)
NAME: Final = re.compile(r"(?=.{1,253}$)(\*\.)?[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_-]+)*")
PORTS: Final = 65536
NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Host(msgspec.Struct, frozen=True):
    """One declared host. port 0: the usual ones. address: where it was declared by its address."""

    name: str
    port: int = 0
    address: Address | None = None

    def covers(self, name: str, port: int) -> bool:
        """Tell whether a request for this name (as `plain` gives it) and port is declared."""
        if port != self.port and not (self.port == 0 and port in USUAL_PORTS):
            return False
        if self.address is not None:
            return address(name) == self.address
        if self.name.startswith("*."):
            return name.endswith(self.name[1:]) and len(name) > len(self.name) - 1
        return name == self.name

    def reaches(self, found: Address) -> bool:
        """Tell whether a connection to this address, which the name resolved to, is allowed."""
        if self.address is not None:
            return found == self.address
        inner = _embedded(found)
        if self.name == "localhost":
            return inner.is_loopback
        return inner.is_global and not (inner.is_multicast or inner.is_reserved)


def parse(text: str) -> Host:
    """Read a declared host. Raises OSError(EINVAL) that says what is wrong with it."""
    name, port = split(text, 0)
    if (where := address(name)) is not None:
        return Host(str(where), port, where)
    name = plain(name)
    if not NAME.fullmatch(name):
        raise OSError(errno.EINVAL, f"network: {text!r} is no host; say NAME, *.NAME or NAME:PORT")
    return Host(name, port)


def split(text: str, usual: int) -> tuple[str, int]:
    """Split host and port. Raises OSError(EINVAL) where that can't be."""
    if text.startswith("["):
        name, closed, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
        good = bool(closed) and rest[:1] in ("", ":")
    elif text.count(":") > 1:
        name, port, good = text, "", True  # an IPv6 address without a port
    else:
        name, _, port = text.partition(":")
        good = True
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else 0
    if not good or (port and not 0 < number < PORTS):
        raise OSError(errno.EINVAL, f"network: {text!r} has no port from 1 to {PORTS - 1}")
    return name, number or usual


def plain(name: str) -> str:
    """Spell a name in its one form."""
    return name.lower().removesuffix(".")


def address(name: str) -> Address | None:
    """Return the address that a name is, if it is one in its usual form."""
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _embedded(found: Address) -> Address:
    """Return the IPv4 address that an IPv6 one stands for, where it does."""
    if isinstance(found, ipaddress.IPv4Address):
        return found
    if found in NAT64:
        return ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
    return found.ipv4_mapped or found.sixtofour or (found.teredo or (None, found))[1]
