"""What the clients of providers send by: connections, whom they trust, and what is wrong with them.

client = transport.made(setup)
raise transport.lost(error.__cause__ or error)     # the Trouble that a broken connection is
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import Final

import httpx2

from aiosd.endpoints.endpoint import Trouble, line
from aiosd.endpoints.protocol import Setup

NOT_SENT: Final = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)


def timeouts(setup: Setup) -> httpx2.Timeout:
    """Return the timeouts of connecting; those of a reply are kept by who reads it."""
    return httpx2.Timeout(None, connect=setup.connect, pool=setup.connect)


def made(setup: Setup) -> httpx2.AsyncClient:
    """Return a client for a core. Raises OSError for a ca_file that is of no use.

    It makes as many connections as there are requests: how many those may be is the kernel's to
    say, and one that waited here for another would look like a provider that can't be reached.
    """
    return httpx2.AsyncClient(
        verify=_trusted(setup.ca_file) if setup.ca_file else True,
        timeout=timeouts(setup),
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=16),
        trust_env=True,
    )


def lost(cause: BaseException) -> Trouble:
    """Return what it means that a connection was not made, or has ended."""
    for each in _causes(cause):
        if isinstance(each, ssl.SSLCertVerificationError):
            return Trouble(
                "unreachable",
                f"its certificate is not trusted: {each.verify_message}; name the file of the "
                "authority that signed it as ca_file in [cores.remote]",
            )
    if isinstance(cause, NOT_SENT):
        return Trouble("unreachable", f"it can't be reached: {line(cause)}")
    return Trouble("cut", f"the connection was lost: {line(cause)}")


def _trusted(path: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=path)
    except ssl.SSLError as error:
        raise OSError(error.errno, f"ca_file {path}: it has no certificates in PEM form") from None
    except OSError as error:
        raise OSError(error.errno, f"ca_file {path}: {error.strerror}") from None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what has led to it."""
    for _ in range(8):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__
