"""What a client is told when a request can't be served: a status, and an error as OpenAI words it.

raise Refusal(400, "temperature: it is above 10", param="temperature")
status, headers, body = told(error)           # of a Refusal or the kernel's OSError
"""

from __future__ import annotations

import errno
import re
from typing import Any, Final

import aios

_STATUS: Final = {
    errno.EINVAL: (400, "invalid_request_error", ""),
    errno.EMSGSIZE: (413, "invalid_request_error", ""),
    errno.ENOSPC: (400, "invalid_request_error", "context_length_exceeded"),
    errno.ENOTSUP: (400, "invalid_request_error", "unsupported"),
    errno.EACCES: (401, "authentication_error", "invalid_api_key"),
    errno.EPERM: (403, "permission_error", ""),
    errno.ENOENT: (404, "invalid_request_error", "not_found"),
    errno.ESRCH: (401, "authentication_error", "invalid_api_key"),
    errno.ENODEV: (404, "invalid_request_error", "model_not_found"),
    errno.EBUSY: (409, "conflict_error", ""),
    errno.EDQUOT: (429, "insufficient_quota", "insufficient_quota"),
    errno.EAGAIN: (429, "rate_limit_error", "rate_limit_exceeded"),
    errno.ENOMEM: (503, "server_error", ""),
    errno.ENOSYS: (501, "server_error", "unsupported"),
    errno.ESHUTDOWN: (503, "server_error", ""),
    errno.ECONNREFUSED: (503, "server_error", ""),
    errno.ECONNRESET: (503, "server_error", ""),
    errno.ETIMEDOUT: (504, "server_error", "timeout"),
}
_KINDS: Final = {
    401: "authentication_error", 403: "permission_error", 429: "rate_limit_error",
}  # fmt: skip

_FIELD: Final = re.compile(r"llm_generate: ([a-z_]+(?:\[\d+\]|\.[a-z_]+)*): ")
"""How the kernel begins when it names a field."""


class Refusal(Exception):
    """A request that the gateway itself refuses.

    param: the field. retry_after: seconds. allow: the methods that a path is asked with.
    """

    def __init__(
        self,
        status: int,
        sentence: str,
        *,
        code: str = "",
        param: str = "",
        retry_after: float = 0.0,
        allow: str = "",
    ) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.code = code
        self.param = param
        self.retry_after = retry_after
        self.allow = allow


def unserved(**fields: Any) -> None:
    """Refuse fields that would make an answer another one, where they say anything at all."""
    for name, given in fields.items():
        if given:
            sentence = f"{name}: is not served here; leave it out"
            raise Refusal(400, sentence, param=name, code="unsupported")


def told(error: Refusal | OSError) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Return the status, the headers and the body that say what is wrong."""
    if isinstance(error, Refusal):
        kind = _KINDS.get(error.status, "invalid_request_error")
        kind = "server_error" if error.status >= 500 else kind
        headers = {"retry-after": f"{error.retry_after:g}"} if error.retry_after else {}
        headers |= {"allow": error.allow} if error.allow else {}
        return error.status, headers, _body(error.sentence, kind, error.code, error.param)
    status, kind, code = _STATUS.get(error.errno or 0, (500, "server_error", ""))
    headers = {}
    if isinstance(error, aios.Busy):
        headers["retry-after"] = f"{max(error.retry_after or 1.0, 0.01):g}"
    if error.errno == errno.EDQUOT:  # to ask again at once is of no use
        headers["x-should-retry"] = "false"
    sentence = error.strerror or str(error)
    field = _FIELD.match(sentence) if status == 400 else None
    return status, headers, _body(sentence, kind, code, field[1] if field else "")


def _body(sentence: str, kind: str, code: str, param: str) -> dict[str, Any]:
    said = {"message": sentence, "type": kind, "param": param or None, "code": code or None}
    return {"error": said}
