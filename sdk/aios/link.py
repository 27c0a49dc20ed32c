"""What outlives a single connection: who we are, and how to come back after a loss. No I/O.

A `Plan` is a generator that yields steps (`Open` a connection, `Exchange` a call for its reply,
`Pause`); a face carries the steps out, blocking or awaiting, and sends the outcome back in. So the
order of things is written once for both faces.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Generator
from typing import Any, Final, TypeVar

import msgspec

from aios import errors
from aios.place import Inherited
from aios.session import Finish
from aiosd.abi import LEVEL
from aiosd.abi.call import Call
from aiosd.abi.process import Exit, RegisterAgent, SetAid, Started
from aiosd.abi.system import Hello, Welcome
from aiosd.abi.table import BY_ARGS

FIRST_PAUSE: Final = 0.02
LONGEST_PAUSE: Final = 1.0


class Open(msgspec.Struct, frozen=True):
    """Open a new connection to `path`; what remains of the old one is closed."""

    path: str


class Exchange(msgspec.Struct, frozen=True):
    """Make a call and give its reply. raw: on the connection as it is, without attaching first."""

    args: Call
    finish: Finish | None = None
    raw: bool = False


class Pause(msgspec.Struct, frozen=True):
    """Wait this many seconds."""

    seconds: float


Step = Open | Exchange | Pause
T = TypeVar("T")
Plan = Generator[Step, Any, T]


def new_key() -> str:
    """Return a fresh key, so that a call asked again after a lost connection is done once."""
    return os.urandom(12).hex()


def client_name() -> str:
    """Return what the kernel's log calls this program."""
    return os.path.basename(sys.argv[0] if sys.argv else "")[:100] or "python"


class Link:
    """The identity of a `Kernel` object and its way back to the kernel.

    path: the socket. aid: 0 until this is an agent. patience: seconds to go on trying after a
    lost connection. registered: whether this object made the process an agent itself.
    """

    def __init__(
        self,
        path: str,
        name: str | None,
        credential: str | None,
        patience: float,
        inherited: Inherited,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self.name = name or ""
        self.patience = patience
        self.aid = 0
        self.registered = False
        self.over = False
        self.welcome: Welcome | None = None
        self._inherited = inherited
        self._credential = inherited.take() if credential is None else credential
        self._register_key = new_key()
        self._clock = clock
        self._pid = os.getpid()

    def check(self) -> None:
        """Raise OSError where this object can't be used: closed, or another process's."""
        if os.getpid() != self._pid:
            raise OSError(
                errno.EBADF,
                f"this connection belongs to process {self._pid}, which forked this one; "
                "call aios.connect() here for one of its own",
            )
        if self.over:
            raise OSError(errno.EBADF, "this connection to aiosd is closed; call aios.connect()")

    @property
    def own_process(self) -> bool:
        """Whether this is the process that made the link, not a fork of it."""
        return os.getpid() == self._pid

    def attach(self) -> Plan[None]:
        """Connect and say who we are; after a loss go on trying for `patience` seconds."""
        until = self._clock() + (self.patience if self.welcome else 0.0)
        pause = FIRST_PAUSE
        while True:
            try:
                yield Open(self.path)
                yield from self._greet()
                return
            except OSError as error:
                if not _passing(error) or self._clock() + pause > until:
                    raise
            yield Pause(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    def call(self, args: Call, finish: Finish | None = None) -> Plan[Any]:
        """Make a call; when the connection is lost meanwhile, come back and ask once more.

        That is safe: a call that is not idempotent carries a key. A kernel that is going down is
        asked again until the next one answers, for `patience` seconds.
        """
        step = Exchange(args, finish)
        try:
            reply = yield step
        except errors.ConnectionLost:
            if isinstance(args, Exit):  # the kernel hangs up on an agent that ended
                self.over = True
                return None
            reply = yield from self._again(step)
        except OSError as error:
            if error.errno != errno.ESHUTDOWN:
                raise
            reply = yield from self._outlast(step)
        self._learn(args, reply)
        return reply

    def _outlast(self, step: Exchange) -> Plan[Any]:
        """Ask again until a kernel answers that is not going down."""
        until = self._clock() + self.patience
        pause = FIRST_PAUSE
        while True:
            yield Pause(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
            try:
                return (yield step)
            except OSError as error:
                if not _passing(error) or self._clock() + pause > until:
                    raise

    def _again(self, step: Exchange) -> Plan[Any]:
        """Ask once more; where nobody answers, say what that leaves open."""
        try:
            return (yield step)
        except ConnectionRefusedError as error:
            after = f", and aiosd did not come back within {self.patience:g} s"
            raise errors.lost(BY_ARGS[type(step.args)], step.args, True, after) from error

    def _greet(self) -> Plan[None]:
        """Say hello; the first time, become the agent that was asked for."""
        first = self.welcome is None
        old = self._credential
        client = f"{client_name()} (aios, level {LEVEL})"
        try:
            welcome: Welcome = yield Exchange(
                Hello(level=LEVEL, client=client, credential=old), raw=True
            )
        except OSError as error:
            if error.errno == errno.EPROTO and not isinstance(error, errors.VersionError):
                raise errors.refused_level(self.path, error.strerror or "") from error
            raise
        if welcome.level < LEVEL:
            raise errors.too_old(self.path, welcome.level)
        if welcome.credential:
            self._credential = welcome.credential
            self._inherited.replace(old, welcome.credential)
        self.aid = welcome.aid
        self.welcome = welcome
        if first and self.name and not self.aid:
            args = RegisterAgent(name=self.name, key=self._register_key)
            self._learn(args, (yield Exchange(args, raw=True)))
            self.registered = True

    def _learn(self, args: Call, reply: Any) -> None:
        """Note what an answer says about who this connection is."""
        if isinstance(args, RegisterAgent):
            started: Started = reply
            self.aid, self._credential = started.aid, started.credential or self._credential
        elif isinstance(args, SetAid):
            self.aid, self._credential = args.aid, args.credential
            self.registered = False
        elif isinstance(args, Exit):
            self.over = True


def _passing(error: OSError) -> bool:
    """Whether an error is one that a kernel which restarts gives: away, or going down."""
    return isinstance(error, ConnectionError) or error.errno == errno.ESHUTDOWN


def exit_code(error: BaseException | None) -> int:
    """Return the exit status that leaving a with-block with this exception stands for."""
    if error is None:
        return 0
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, SystemExit):
        if isinstance(error.code, int):
            return error.code & 0xFF
        return 0 if error.code is None else 1
    return 1
