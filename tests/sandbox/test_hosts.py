"""Declared hosts: what is covered, and which addresses a name may lead to."""

from __future__ import annotations

import ipaddress

import pytest

from aiosd import hosts


@pytest.mark.parametrize(
    ("declared", "name", "port", "covered"),
    [
        ("example.org", "example.org", 443, True),
        ("Example.org", "example.org", 80, True),
        ("example.org", "example.org", 8080, False),
        ("example.org", "www.example.org", 443, False),
        ("example.org", "badexample.org", 443, False),
        ("*.example.org", "www.example.org", 443, True),
        ("*.example.org", "a.b.example.org", 443, True),
        ("*.example.org", "example.org", 443, False),
        ("*.example.org", "badexample.org", 443, False),
        ("*.example.org", ".example.org", 443, False),
        ("example.org:8080", "example.org", 8080, True),
        ("example.org:8080", "example.org", 443, False),
        ("127.0.0.1:81", "127.0.0.1", 81, True),
        ("127.0.0.1:81", "localhost", 81, False),
        ("127.0.0.1:81", "127.1", 81, False),
        ("[::1]:81", "::1", 81, True),
        ("[::1]:81", "0:0:0:0:0:0:0:1", 81, True),
        ("localhost:81", "localhost", 81, True),
    ],
)
def test_declared_host_covers(declared: str, name: str, port: int, covered: bool) -> None:
    assert hosts.parse(declared).covers(name, port) is covered


@pytest.mark.parametrize(
    ("declared", "address", "reached"),
    [
        ("example.org", "93.184.215.14", True),
        ("example.org", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("example.org", "127.0.0.1", False),
        ("example.org", "10.1.2.3", False),
        ("example.org", "172.16.0.1", False),
        ("example.org", "192.168.1.1", False),
        ("example.org", "169.254.169.254", False),
        ("example.org", "100.64.0.1", False),
        ("example.org", "0.0.0.0", False),
        ("example.org", "224.0.0.1", False),
        ("example.org", "255.255.255.255", False),
        ("example.org", "::1", False),
        ("example.org", "::", False),
        ("example.org", "fe80::1", False),
        ("example.org", "fd00::1", False),
        ("example.org", "ff02::1", False),
        ("example.org", "::ffff:127.0.0.1", False),
        ("example.org", "::ffff:169.254.169.254", False),
        ("example.org", "64:ff9b::7f00:1", False),
        ("example.org", "64:ff9b::a9fe:a9fe", False),
        ("example.org", "2002:7f00:1::", False),
        ("localhost:81", "127.0.0.1", True),
        ("localhost:81", "::1", True),
        ("localhost:81", "10.0.0.1", False),
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
    ],
)
def test_declared_host_reaches(declared: str, address: str, reached: bool) -> None:
    assert hosts.parse(declared).reaches(ipaddress.ip_address(address)) is reached


@pytest.mark.parametrize(
    "text", ["", "http://example.org", "example.org:0", "example.org:65536", "*", "a b", "*.*.org"]
)
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(OSError, match="network: "):
        hosts.parse(text)
