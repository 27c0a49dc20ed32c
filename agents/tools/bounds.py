"""A bound on time for work that Python itself carries out: sympy's, for one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class OutOfTime(BaseException):
    """The time is over; no library's `except Exception` takes it for an error of its own."""


@contextmanager
def seconds(limit: float, what: str) -> Iterator[None]:
    """Interrupt what runs under it after `limit` seconds of wall time; main thread only.

    Raises TimeoutError, which names `what`. A call into C that does not come back is not
    interrupted: there the kernel's own limit holds.
    """

    def ring(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    except OutOfTime:
        raise TimeoutError(f"{what} takes longer than {limit:g} s: ask for less") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
