"""A service in the test's own process, on a free port: it gives recorded answers, or misbehaves.

    with Recorded() as service:
        service.json("/v0/random", {"list": []})
        ...
        assert service.asked[0].query == {"term": ["word"]}

An answer for "*" is given to whatever is asked. A fault is a way of going wrong that a client must
tell from an answer; see FAULTS.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from email import message_from_bytes, policy
from email.message import MIMEPart
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qs, urlsplit

import msgspec

from tests.daemon import PATIENCE


class Asked(NamedTuple):
    """A request that came."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def parts(self) -> dict[str, bytes]:
        """The fields of multipart/form-data."""
        head = f"Content-Type: {self.headers['content-type']}\r\n\r\n".encode()
        form = message_from_bytes(head + self.body, policy=policy.HTTP)
        return {
            str(part.get_param("name", header="content-disposition")): _content(part)
            for part in form.iter_parts()
        }


def _content(part: MIMEPart) -> bytes:
    found = part.get_content()
    return found.encode() if isinstance(found, str) else bytes(found)


Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Notes a request, and gives the answer that was recorded for its path."""

    protocol_version = "HTTP/1.1"
    timeout = PATIENCE
    service: Recorded

    def do_GET(self) -> None:
        self.service.take(self)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass

    def give(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


class Recorded:
    """The service."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.over = threading.Event()
        self._answers: dict[str, Answer] = {}
        kind = type("OwnHandler", (Handler,), {"service": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(PATIENCE)

    def json(self, path: str, value: Any, status: int = 200, **headers: str) -> None:
        """Answer with JSON."""
        self.body(
            path, msgspec.json.encode(value), status, Content_Type="application/json", **headers
        )

    def body(self, path: str, body: bytes, status: int = 200, **headers: str) -> None:
        """Answer with bytes."""
        self.answer(path, lambda handler: handler.give(status, body, **headers))

    def answer(self, path: str, answer: Answer) -> None:
        """Answer in any way."""
        self._answers[path] = answer

    def forget(self, keep: str = "") -> None:
        """Forget what was asked, and all answers but that for one path."""
        self.asked.clear()
        self._answers = {path: answer for path, answer in self._answers.items() if path == keep}

    def take(self, handler: Handler) -> None:
        """Carry a request out, in a thread of its own."""
        place = urlsplit(handler.path)
        length = int(handler.headers.get("Content-Length", 0))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        query, body = parse_qs(place.query, keep_blank_values=True), handler.rfile.read(length)
        self.asked.append(Asked(handler.command, place.path, query, headers, body))
        answer = self._answers.get(place.path) or self._answers.get("*")
        handler.close_connection = True
        if answer is None:
            handler.give(404, b"nothing is recorded for this path")
        else:
            answer(handler)


def _cut(handler: Handler) -> None:
    """End in the middle of an answer."""
    handler.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"list": [')
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)


def _silent(handler: Handler) -> None:
    """Never answer."""
    handler.service.over.wait(PATIENCE)


def _dripping(handler: Handler) -> None:
    """Answer a byte now and then, so that no single wait is long."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    try:
        while not handler.service.over.wait(0.02):
            handler.wfile.write(b" ")
            handler.wfile.flush()
    except OSError:
        pass  # the client has had enough


def _endless(handler: Handler) -> None:
    """Answer more than anybody wants."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    try:
        while not handler.service.over.is_set():
            handler.wfile.write(b" " * (1 << 20))
    except OSError:
        pass


def _hung_up(handler: Handler) -> None:
    """Say nothing at all, and go."""
    handler.connection.shutdown(socket.SHUT_RDWR)


def _giving(status: int, body: bytes, **headers: str) -> Answer:
    return lambda handler: handler.give(status, body, **headers)


FAULTS: dict[str, tuple[Answer, str]] = {
    "refused": (_giving(400, b'{"error": {"message": "no field"}}'), "HTTP 400: no field"),
    "key": (_giving(403, b'{"message": "not subscribed"}'), "HTTP 403: not subscribed"),
    "limited": (_giving(429, b"{}", Retry_After="17"), "too many requests.*try again in 17 s"),
    "limited, on a day": (
        _giving(429, b"", Retry_After="Sat, 21 Nov 2026 12:00:00 GMT"), "again after Sat, 21 Nov",
    ),
    "limited, no more said": (_giving(429, b"slow down"), "try again later"),
    "broken": (_giving(503, b"<html>nginx</html>"), "out of order.*503"),
    "elsewhere": (_giving(302, b"", Location="http://127.0.0.1:1/"), "sent the request elsewhere"),
    "garbage": (_giving(200, b"\xff\xfe<html>"), "something else than it documents"),
    "empty": (_giving(200, b""), "something else than it documents"),
    "another shape": (_giving(200, b'[{"surprise": 1}]'), "something else than it documents"),
    "packed": (_giving(200, b"\x1f\x8b", Content_Encoding="gzip"), "packed as 'gzip'"),
    "cut": (_cut, "ended early"),
    "hung up": (_hung_up, "can't be reached"),
    "endless": (_endless, "more than .* bytes"),
}  # fmt: skip
"""How a service goes wrong, and what the error then says."""

SLOW: dict[str, Answer] = {"silent": _silent, "dripping": _dripping}
