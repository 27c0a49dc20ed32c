"""Fetching pages from hosts that an operator allows.

The way out of the sandbox is the kernel's proxy, which knows the same list and resolves names
itself. This tool checks as well, each redirect too, and where there is no proxy it resolves a name
once, checks every address that comes back, and connects to that very address: a name that points
elsewhere a moment later gains nothing. Nothing of one request (cookies, credentials) goes into the
next one.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Annotated, Any, Final, Literal
from urllib.parse import urljoin, urlsplit

import msgspec

from aios.tools import BadArguments, Meta, Unavailable, setting, tool

from .addresses import Rules, plain
from .files import file_write

REDIRECTS: Final = 5
LARGEST: Final = 1 << 20
AGENT: Final = "aios/0.1 (http_fetch)"
_MOVED: Final = (301, 302, 303, 307, 308)


class Fetched(msgspec.Struct):
    """An answer. url: where it came from in the end. size: bytes that were read.

    text: the body, "" when it was saved. truncated: there was more.
    """

    url: str
    status: int
    content_type: str
    text: str
    size: int
    truncated: bool
    redirects: list[str]


@tool(limits={"time": 60, "output": 4 << 20}, idempotent=True)
def http_fetch(
    url: Annotated[str, Meta(min_length=8, max_length=2000)],
    method: Literal["GET", "HEAD"] = "GET",
    accept: Annotated[str, Meta(max_length=200, pattern=r"^[ -~]*$")] = "*/*",
    limit: Annotated[int, Meta(ge=1, le=LARGEST)] = 200_000,
    save_as: Annotated[str, Meta(max_length=4096)] = "",
    timeout: Annotated[float, Meta(gt=0, le=50)] = 20,
) -> Fetched:
    """Fetch a page or file from the web by http or https.

    url: its address; only hosts that the operator allows
    method: HEAD for the status and type alone
    accept: media types that are wanted
    limit: most bytes to read
    save_as: path in the workspace to save the body to instead of giving it as text
    timeout: seconds that all of it may take
    """
    deadline = time.monotonic() + timeout
    rules = Rules(_allowed())
    passed: list[str] = []
    while True:
        answer = _ask(rules, url, method, accept, limit, deadline)
        target = answer.location
        if not target:
            return _fetched(url, answer, passed, save_as)
        if len(passed) == REDIRECTS:
            raise ValueError(f"{passed[0]} redirects more than {REDIRECTS} times")
        passed.append(url)
        target = urljoin(url, target)
        if url.startswith("https:") and not target.startswith("https:"):
            raise PermissionError(f"{url} redirects to {target[:200]}, which is not encrypted")
        url = target


class _Answer(msgspec.Struct):
    """What one request gave. location: where a redirect leads."""

    status: int
    content_type: str
    encoding: str
    location: str
    body: bytes
    truncated: bool


def _allowed() -> list[str]:
    entries = setting("AIOS_TOOL_NETWORK").split()
    if not entries:
        raise Unavailable(
            "http_fetch may not ask any host here: an operator names some under network in "
            "[tools.needs.http_fetch] of aiosd.toml"
        )
    return entries


def _fetched(url: str, answer: _Answer, passed: list[str], save_as: str) -> Fetched:
    import base64

    text = ""
    if save_as:
        file_write(save_as, base64.b64encode(answer.body).decode(), "base64")
    else:
        try:
            text = answer.body.decode(answer.encoding, "replace")
        except LookupError:  # the server names an encoding that does not exist
            text = answer.body.decode("utf-8", "replace")
    return Fetched(
        url, answer.status, answer.content_type, text, len(answer.body), answer.truncated, passed
    )


def _ask(rules: Rules, url: str, method: str, accept: str, limit: int, deadline: float) -> _Answer:
    """Make one request, to the address that was checked. Redirects are not followed here."""
    import httpx2

    host, port = _place(url)
    scheme = urlsplit(url).scheme
    rules.check_host(host, port)
    proxy = _proxy(scheme)
    address = host if proxy else _address(rules, host, port)
    left = max(0.1, deadline - time.monotonic())
    default = {"http": 80, "https": 443}[scheme]
    headers = {
        "Host": _netloc(host, port, default),
        "User-Agent": AGENT,
        "Accept": accept,
        "Accept-Encoding": "identity",  # what is counted is what comes in
    }
    target = httpx2.URL(url).copy_with(host=address, port=port, fragment=None)
    extensions: dict[str, Any] = {} if proxy else {"sni_hostname": host}
    try:
        with (
            httpx2.Client(proxy=proxy, trust_env=False, timeout=left) as client,
            client.stream(
                method, target, headers=headers, extensions=extensions, follow_redirects=False
            ) as reply,
        ):
            body, truncated = _body(reply, limit, deadline)
    except httpx2.TimeoutException:
        raise TimeoutError(f"{host} did not answer in time") from None
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise ConnectionError(f"{host} can't be asked: {type(error).__name__}: {error}") from None
    moved = reply.headers.get("location", "") if reply.status_code in _MOVED else ""
    return _Answer(
        reply.status_code, reply.headers.get("content-type", ""), reply.charset_encoding or "utf-8",
        moved, body, truncated,
    )  # fmt: skip


def _place(url: str) -> tuple[str, int]:
    """Return host and port of an address. Raises BadArguments for what is none of the web's."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise BadArguments(f"{url[:200]!r} is no address: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadArguments(f"{url[:200]!r} is no address that begins with http:// or https://")
    if parts.username is not None or "\\" in url or any(ord(char) <= 32 for char in url):
        raise BadArguments(f"{url[:200]!r} holds a name, a password, \\ or a blank before its path")
    return plain(parts.hostname), port or {"http": 80, "https": 443}[parts.scheme]


def _proxy(scheme: str) -> str | None:
    """Return the kernel's proxy, which is the way out of a sandbox; none outside of one."""
    name = f"{scheme}_proxy"
    return os.environ.get(name.upper()) or os.environ.get(name) or None


def _address(rules: Rules, host: str, port: int) -> str:
    """Resolve a host and return one of its addresses, all of which have been checked."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConnectionError(f"{host} is not known: {error.strerror}") from None
    addresses = [str(each[4][0]) for each in found]
    for address in addresses:
        rules.check_address(host, port, address)
    return addresses[0]


def _netloc(host: str, port: int, default: int) -> str:
    name = f"[{host}]" if ":" in host else host
    return name if port == default else f"{name}:{port}"


def _body(reply: Any, limit: int, deadline: float) -> tuple[bytes, bool]:
    """Read an answer as far as the limit. Raises TimeoutError when it drips beyond the deadline."""
    body = bytearray()
    for part in reply.iter_raw():
        body += part
        if len(body) > limit:
            return bytes(body[:limit]), True
        if time.monotonic() > deadline:
            raise TimeoutError(f"{reply.url.host} answers too slowly")
    return bytes(body), False
