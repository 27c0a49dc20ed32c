"""Fetching: what is allowed, and the ways in which an allowed host might lead elsewhere."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from agents.tools.addresses import Refused, Rules
from agents.tools.web import http_fetch
from aios.tools import BadArguments, Unavailable

PAGES = {
    "/": (200, {"Content-Type": "text/plain; charset=latin-1"}, "grün".encode("latin-1")),
    "/big": (200, {}, b"x" * 500_000),
    "/odd": (200, {"Content-Type": "text/plain; charset=nonsense"}, b"odd"),
    "/moved": (302, {"Location": "/"}, b""),
    "/loop": (302, {"Location": "/loop"}, b""),
    "/metadata": (302, {"Location": "http://169.254.169.254/latest"}, b""),
    "/other": (302, {"Location": "http://other.test/"}, b""),
    "/file": (302, {"Location": "file:///etc/passwd"}, b""),
    "/gone": (404, {}, b"no"),
}


class Server(ThreadingHTTPServer):
    """A server of PAGES, which remembers what it was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, dict[str, str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Answers GET, and as a proxy would."""

    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))
        path = self.path.partition("9999")[2] or self.path
        status, headers, body = PAGES[path]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Set-Cookie", "a=b")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Be quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that the operator allows by its address and port, and no proxy."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    with Server() as server:
        port = server.server_port
        monkeypatch.setenv("AIOS_TOOL_NETWORK", f"127.0.0.1:{port} named.test:{port} other.test")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def resolve_to(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Let names resolve to these addresses, the next ones each time; gives what was asked."""
    real, asked, left = socket.getaddrinfo, [], list(answers)

    def lookup(host: str, port: int, *rest: Any, **more: Any) -> Any:
        if not str(host).endswith(".test"):
            return real(host, port, *rest, **more)
        asked.append(host)
        return [(2, 1, 6, "", (address, port)) for address in left.pop(0)]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return asked


def test_a_page_is_fetched_within_its_limit(server: Server) -> None:
    page = http_fetch(f"{server.url}/moved#here")
    assert (page.status, page.text, page.size) == (200, "grün", 4)
    assert page.redirects == [f"{server.url}/moved#here"] and not page.truncated
    assert "Cookie" not in server.asked[1][1]
    big = http_fetch(f"{server.url}/big", limit=1000)
    assert big.size == 1000 and big.truncated
    assert http_fetch(f"{server.url}/odd").text == "odd"
    assert http_fetch(f"{server.url}/gone").status == 404
    with pytest.raises(ValueError, match="more than 5 times"):
        http_fetch(f"{server.url}/loop")


def test_a_page_is_saved(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = http_fetch(server.url, save_as="pages/one")
    assert page.text == "" and (tmp_path / "pages/one").read_bytes() == "grün".encode("latin-1")
    with pytest.raises(BadArguments):
        http_fetch(server.url, save_as="../one")


def test_a_redirect_leads_to_allowed_public_hosts_only(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Refused, match="not among the hosts"):
        http_fetch(f"{server.url}/metadata")
    with pytest.raises(BadArguments, match="begins with http"):
        http_fetch(f"{server.url}/file")
    resolve_to(monkeypatch, ["169.254.169.254"])
    with pytest.raises(Refused, match="not a public address"):
        http_fetch(f"{server.url}/other")
    assert [path for path, _ in server.asked] == ["/metadata", "/file", "/other"]


def test_a_name_is_resolved_once_and_all_that_it_leads_to_is_checked(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = resolve_to(monkeypatch, ["127.0.0.1"], ["8.8.8.8", "10.0.0.1"])
    page = http_fetch(f"http://named.test:{server.server_port}/")
    assert page.status == 200 and asked == ["named.test"]
    assert server.asked[0][1]["Host"] == f"named.test:{server.server_port}"
    with pytest.raises(Refused, match=r"other.test leads to 10.0.0.1"):
        http_fetch("http://other.test/")


def test_a_proxy_resolves_names_itself(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.url)
    monkeypatch.setenv("AIOS_TOOL_NETWORK", "named.test:9999")
    asked = resolve_to(monkeypatch)
    assert http_fetch("http://named.test:9999/").text == "grün"
    assert server.asked[0][0] == "http://named.test:9999/" and asked == []
    with pytest.raises(Refused):
        http_fetch("http://127.0.0.1/")


def test_without_a_list_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIOS_TOOL_NETWORK", raising=False)
    with pytest.raises(Unavailable, match=r"\[tools.needs.http_fetch\]"):
        http_fetch("http://example.org/")


def test_who_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("AIOS_TOOL_NETWORK", place)
        with pytest.raises(TimeoutError, match=r"^127\.0\.0\.1 did not answer"):
            http_fetch(f"http://{place}/", timeout=0.3)


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://example.org/", "http://", "http:///x", "http://a:b@example.org/",
     "http://example.org\\@127.0.0.1/", "http://example.org:99999/", "http://[::1/", "example.org",
     "http://exa mple.org/", "http://example.org/\r\nHost: x"],
)  # fmt: skip
def test_what_is_no_address_of_the_web_is_refused(url: str, server: Server) -> None:
    with pytest.raises(BadArguments):
        http_fetch(url)


@pytest.mark.parametrize(
    ("host", "port"),
    [("example.org", 80), ("EXAMPLE.org.", 443), ("a.b.example.com", 443), ("8.8.8.8", 443),
     ("localhost", 8080), ("127.0.0.1", 8081), ("bücher.example.com", 80)],
)  # fmt: skip
def test_hosts_on_the_list_may_be_asked(host: str, port: int) -> None:
    RULES.check_host(host, port)


@pytest.mark.parametrize(
    ("host", "port"),
    [("example.org", 8080), ("evil-example.org", 80), ("example.org.evil.net", 80),
     ("example.com", 80), ("xexample.com", 80), ("localhost", 80), ("localhost", 8081),
     ("127.0.0.1", 80), ("127.0.0.1", 8080), ("10.0.0.1", 80),
     ("0x7f000001", 8081), ("2130706433", 80),
     ("127.1", 8081), ("017700000001", 80), ("0x7f.1", 80), ("", 80), ("a/b", 80), ("[::1]", 80)],
)  # fmt: skip
def test_all_others_may_not(host: str, port: int) -> None:
    with pytest.raises(Refused):
        RULES.check_host(host, port)


RULES = Rules(
    ["example.org", "*.example.com", "8.8.8.8", "localhost:8080", "127.0.0.1:8081", "10.0.0.1"]
)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
     "0.0.0.0", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "::1", "::",
     "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1",
     "2002:7f00:1::", "2001:0:7f00:1::", "2001:db8::1", "fec0::1"],
)  # fmt: skip
def test_no_name_may_lead_to_an_address_that_is_not_public(address: str) -> None:
    with pytest.raises(Refused):
        RULES.check_address("example.org", 443, address)
    RULES.check_address("localhost", 8080, address)  # an operator means it


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2606:4700::1", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::"]
)
def test_public_addresses_are_public(address: str) -> None:
    RULES.check_address("example.org", 443, address)
