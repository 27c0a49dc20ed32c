"""A service on the network that a tool asks: one request, one answer, both bounded.

    WIKIPEDIA = Service("wikipedia_query", "Wikipedia", "WIKIPEDIA_URL", "https://en.wikipedia.org")
    found = WIKIPEDIA.get("/w/api.php", Answer, params={"action": "query"})

A service's address, and what else an operator may say of it, comes from the environment, which
`[tools.settings.TOOL]` of aiosd.toml fills; a key comes from the store of secrets by its name. What
must hold:
- every error names the tool and the service and says what would help; no key is ever in one;
- an answer is read only as far as its limit, and has come after `SERVICE_TIMEOUT` seconds or never;
- an answer is decoded into the fields that its service documents; what does not fit is an error;
- a redirect is not followed: a key meant for one host would reach another.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, TypeVar

import httpx2
import msgspec

from aios.tools import Unavailable, secret, setting

Answer = TypeVar("Answer")

MAX_ANSWER: Final = 4 << 20
"""Bytes of an answer."""

TIMEOUT: Final = 20.0
"""Seconds that an answer may take where SERVICE_TIMEOUT says nothing else."""

_CONNECT: Final = 5.0
_EXPLANATION: Final = 300
_PROXY: Final = b"aiosd: "
"""How the proxy of a sandbox begins what it says of a host that it does not let through."""


class ServiceError(Exception):
    """A service gave no answer that can be used; the text is for the agent.

    status: that of HTTP; 0 without one.
    """

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Service:
    """What a tool asks. setting: the variable that holds its address; default: that without one."""

    tool: str
    name: str
    setting: str
    default: str = ""

    def key(self, name: str, source: str) -> str:
        """Return a key by its name in the store. source: where one gets it, for the error."""
        try:
            return secret(name)
        except Unavailable:
            raise Unavailable(
                f"{self.tool}: no key for {self.name}; get one at {source} and put it into the "
                f"kernel's store of secrets as {name} (see aios-tool-catalog(7))"
            ) from None

    def option(self, name: str, meaning: str) -> str:
        """Return a setting that the tool can't do without. meaning: what it is, for the error."""
        found = setting(name).strip()
        if not found:
            raise Unavailable(
                f"{self.tool}: {self.name} needs {meaning}; set {name} in [tools.settings."
                f"{self.tool}] of aiosd.toml (see aios-tool-catalog(7))"
            )
        return found

    @property
    def address(self) -> str:
        """The service's base address, without a slash at its end."""
        found = setting(self.setting).strip() or self.default
        if not found:
            found = self.option(self.setting, "its address")
        if not found.startswith(("https://", "http://")):
            raise Unavailable(f"{self.tool}: {self.setting} is {found[:80]!r}, not an http(s) URL")
        return found.rstrip("/")

    def get(self, path: str, shape: type[Answer], **request: Any) -> Answer:
        """Return what GET answers, decoded from JSON. See `fetch` for the rest."""
        return self.decode(self.fetch("GET", path, **request), shape)

    def post(self, path: str, shape: type[Answer], **request: Any) -> Answer:
        """Return what POST answers, decoded from JSON. See `fetch` for the rest."""
        return self.decode(self.fetch("POST", path, **request), shape)

    def decode(self, body: bytes, shape: type[Answer]) -> Answer:
        """Return JSON as `shape`; ServiceError when it is something else."""
        try:
            return msgspec.json.decode(body, type=shape)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise self.garbage(str(error)) from None

    def garbage(self, why: str) -> ServiceError:
        """Return the error for an answer that is not what the service documents."""
        return ServiceError(
            f"{self.tool}: {self.name} answered something else than it documents: {why}"
        )

    def fetch(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        form: Mapping[str, str] | None = None,
        files: Mapping[str, tuple[str, bytes, str]] | None = None,
        conceal: tuple[str, ...] = (),
        limit: int = MAX_ANSWER,
    ) -> bytes:
        """Return the body of a good answer.

        path: begins with a slash. form: fields of a form; files: (name, content, type) by field.
        conceal: keys, which no error may show. limit: bytes of the answer. Raises ServiceError.
        """
        seconds = self.patience()
        url = self.address + path
        # Nothing packed: what comes in is then what is counted, and a small answer stays small.
        sent = {"User-Agent": f"aios/0.1 ({self.tool})", "Accept-Encoding": "identity"}
        try:
            with (
                _client(seconds) as http,
                http.stream(
                    method, url, params=params, headers={**sent, **(headers or {})}, json=json,
                    data=form, files=files,
                ) as reply,
            ):  # fmt: skip
                body = self._read(reply, limit, time.monotonic() + seconds)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise self._unreached(error, seconds, conceal) from None
        if not reply.is_success:
            raise self._refused(reply, body, conceal)
        return body

    def patience(self) -> float:
        """Return how many seconds an answer may take."""
        text = setting("SERVICE_TIMEOUT")
        try:
            seconds = float(text) if text else TIMEOUT
        except ValueError:
            seconds = 0.0
        if not 0 < seconds <= 3600:
            raise Unavailable(
                f"{self.tool}: SERVICE_TIMEOUT is {text[:80]!r}, not seconds up to 3600"
            )
        return seconds

    def _read(self, reply: httpx2.Response, limit: int, deadline: float) -> bytes:
        if reply.headers.get("Content-Encoding", "identity") != "identity":
            raise self.garbage(f"packed as {reply.headers['Content-Encoding'][:40]!r}, unasked")
        body = bytearray()
        for part in reply.iter_raw():
            body += part
            if len(body) > limit:
                raise ServiceError(
                    f"{self.tool}: {self.name} answered more than {limit} bytes; ask for less"
                )
            if time.monotonic() > deadline:
                raise self._late(self.patience())
        return bytes(body)

    def _late(self, seconds: float) -> ServiceError:
        return ServiceError(
            f"{self.tool}: {self.name} did not answer within {seconds:g} s; try again later, or set"
            f" SERVICE_TIMEOUT in [tools.settings.{self.tool}]"
        )

    def _unreached(
        self, error: httpx2.HTTPError | httpx2.InvalidURL, seconds: float, conceal: tuple[str, ...]
    ) -> ServiceError:
        """Say why there is no answer at all."""
        if isinstance(error, httpx2.TimeoutException):
            return self._late(seconds)
        why = f"{type(error).__name__}: {error}"
        if isinstance(error, httpx2.ProxyError):
            why += f"; its host must be in the tool's network ([tools.settings.{self.tool}])"
        elif isinstance(error, httpx2.RemoteProtocolError):
            why = f"the answer ended early or is no HTTP ({error})"
        return ServiceError(f"{self.tool}: {self.name} can't be reached: {cover(why, conceal)}")

    def _refused(
        self, reply: httpx2.Response, body: bytes, conceal: tuple[str, ...]
    ) -> ServiceError:
        """Say what a status outside of 2xx means."""
        if body.startswith(_PROXY):  # it never got as far as the service
            why = clip(cover(body.decode("utf-8", "replace"), conceal), _EXPLANATION)
            return ServiceError(f"{self.tool}: {self.name} can't be reached: {why}")
        status = reply.status_code
        said = cover(explanation(body), conceal)
        if status == 429:
            wait = reply.headers.get("Retry-After", "")[:40]
            cure = f"; try again in {wait} s" if wait.isdecimal() else "; try again later"
            cure = f"; try again after {wait}" if wait and not wait.isdecimal() else cure
            meaning = "has had too many requests"
        elif status in (401, 403) and any(conceal):
            meaning, cure = "refused the key, or what it may do", "; check the tool's key and plan"
        elif status in (401, 403):
            meaning, cure = "does not serve this machine", "; it may want to be asked less often"
        elif 300 <= status < 400:
            meaning, cure = "sent the request elsewhere", f"; set {self.setting} to where it is now"
        elif status >= 500:
            meaning, cure = "is out of order", "; try again later"
        else:
            meaning, cure = "refused the request", ""
        said = f": {said}" if said else ""
        return ServiceError(
            f"{self.tool}: {self.name} {meaning} (HTTP {status}{said}){cure}", status
        )


@cache
def _trusted() -> ssl.SSLContext:
    """Return which certificates count: read once, since that takes longer than many an answer."""
    return httpx2.create_ssl_context()


def _client(seconds: float) -> httpx2.Client:
    timeout = httpx2.Timeout(seconds, connect=min(_CONNECT, seconds))
    return httpx2.Client(timeout=timeout, verify=_trusted())


def explanation(body: bytes) -> str:
    """Return what a service says of an error: the message in its JSON, or nothing."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return ""
    for field in ("error", "errors", "message", "msg", "info", "title"):
        while isinstance(found, list) and found:
            found = found[0]
        if isinstance(found, dict) and field in found:
            found = found[field]
    return " ".join(found.split())[:_EXPLANATION] if isinstance(found, str) else ""


def cover(text: str, secrets: tuple[str, ...]) -> str:
    """Return a text without the secrets in it; one of a few letters would cover half of it."""
    for known in secrets:
        if len(known) > 3:
            text = text.replace(known, "***")
    return text


def clip(text: str, characters: int) -> str:
    """Return a text of at most so many characters, with a mark where it was cut."""
    text = text.strip()
    return text if len(text) <= characters else text[: characters - 1].rstrip() + "…"
