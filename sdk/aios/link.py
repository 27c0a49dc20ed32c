"""What outlives a single connection: who we are, and how to come back after a loss. No I/O.

A `Plan` is a generator that yields steps (`Open` a connection, `Exchange` a call for its reply,
`Begin` a stream, `Pause`); a face carries the steps out, blocking or awaiting, and sends the
outcome back in. So the order of things is written once for both faces.

What must hold: a call is asked again only where that does it no second time (it has a key, or is
idempotent), a stream only from the first token that did not come; and never for longer than
`reconnect` seconds without success.
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
from aios.session import Finish, InFlight
from aiosd.abi import LEVEL
from aiosd.abi.call import Call
from aiosd.abi.inference import LlmGenerate
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


class Begin(msgspec.Struct, frozen=True):
    """Send a streaming call and give its request in flight."""

    args: Call
    finish: Finish | None = None


class Pause(msgspec.Struct, frozen=True):
    """Wait this many seconds."""

    seconds: float


Step = Open | Exchange | Begin | Pause
T = TypeVar("T")
Plan = Generator[Step, Any, T]


def new_key() -> str:
    """Return a fresh key, so that a call asked again after a lost connection is done once."""
    return os.urandom(12).hex()


def client_name() -> str:
    """Return what the kernel's log calls this program."""
    return os.path.basename(sys.argv[0] if sys.argv else "")[:100] or "python"


class Tries:
    """Pauses between tries that double, with jitter, so that a crowd does not come back at once.

    They begin with the first `again`, and are over when `seconds` have passed since.
    """

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._clock = clock
        self._until: float | None = None
        self._pause = FIRST_PAUSE

    def again(self) -> Pause | None:
        """Return how long to wait before the next try; None when the time is over."""
        now = self._clock()
        if self._until is None:
            self._until = now + self._seconds
        pause = self._pause * (0.5 + os.urandom(1)[0] / 510)
        if now + pause > self._until:
            return None
        self._pause = min(self._pause * 2, LONGEST_PAUSE)
        return Pause(pause)


class Link:
    """The identity of a `Kernel` object and its way back to the kernel.

    path: the socket. aid: 0 until this is an agent. reconnect: seconds to go on trying after a
    lost connection. registered: whether this object made the process an agent itself.
    """

    def __init__(
        self,
        path: str,
        name: str | None,
        credential: str | None,
        reconnect: float,
        inherited: Inherited,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self.name = name or ""
        self.reconnect = reconnect
        self.aid = 0
        self.registered = False
        self.over = False
        self.welcome: Welcome | None = None
        self._inherited = inherited
        self._credential = inherited.take() if credential is None else credential
        self._spawned = credential is None and bool(self._credential)
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

    def tries(self) -> Tries:
        """Return a fresh set of tries."""
        return Tries(self.reconnect, self._clock)

    def attach(self) -> Plan[None]:
        """Connect and say who we are; after a loss go on trying for `reconnect` seconds."""
        tries = self.tries()
        while True:
            try:
                yield Open(self.path)
                yield from self._greet()
                return
            except OSError as error:
                # At first, nobody waits for a kernel that is not there, but for the one that
                # started this process.
                known = self._spawned or self.welcome is not None
                if not _passing(error) or not known or (pause := tries.again()) is None:
                    raise
            yield pause

    def call(self, args: Call, finish: Finish | None = None) -> Plan[Any]:
        """Make a call; when the connection is lost meanwhile, come back and ask again.

        A kernel that is going down is asked again until the next one answers. Raises
        ConnectionLost when it can't be known whether the call was done, or the time is over.
        """
        step, tries, lost = Exchange(args, finish), self.tries(), False
        while True:
            try:
                reply = yield step
                break
            except OSError as error:
                if isinstance(error, errors.ConnectionLost) and isinstance(args, Exit):
                    self.over = True  # the kernel hangs up on an agent that ended
                    return None
                pause = self._again(args, error, tries, lost)
                lost = lost or isinstance(error, errors.ConnectionLost)
            yield pause
        self._learn(args, reply)
        return reply

    def begin(self, args: Call, finish: Finish | None, tries: Tries) -> Plan[InFlight]:
        """Send a streaming call, as `call` does."""
        while True:
            try:
                pending: InFlight = yield Begin(args, finish)
                return pending
            except OSError as error:
                pause = self._again(args, error, tries, lost=False)
            yield pause

    def resume(self, stream: InFlight, seen: int, error: OSError, tries: Tries) -> Plan[InFlight]:
        """Go on with a stream that an error has cut off; seen: tokens that came before it.

        Raises that error where it is no lost connection, or the stream can't be taken up again.
        """
        args = resumed(stream.args, seen)
        if args is None or not _cut(error):
            raise error
        if (pause := tries.again()) is None:
            raise error
        yield pause
        return (yield from self.begin(args, stream.finish, tries))

    def _again(self, args: Call, error: OSError, tries: Tries, lost: bool) -> Pause:
        """Return how long to wait before asking again; raise the error when that is no use.

        lost: whether the call was lost before, so that it may have been done.
        """
        refused = isinstance(error, ConnectionRefusedError)
        if not _cut(error) and not (lost and refused):
            raise error
        call = BY_ARGS[type(args)]
        if isinstance(error, errors.ConnectionLost) and not _repeatable(args) and error.maybe_done:
            raise error
        pause = None if self.over else tries.again()
        if pause is not None:
            return pause
        if lost and refused:
            after = f", and aiosd did not come back within {self.reconnect:g} s"
            raise errors.lost(call, args, True, after) from error
        raise error

    def _greet(self) -> Plan[None]:
        """Say hello; the first time, become the agent that was asked for."""
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
        if self.name and not self.aid:
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


def resumed(args: Call, seen: int) -> Call | None:
    """Return what to ask for the rest of a stream, None where there is no way to say that."""
    if not isinstance(args, LlmGenerate) or not args.key:
        return None
    return msgspec.structs.replace(args, resume=seen)


def _repeatable(args: Call) -> bool:
    """Whether asking twice does no more than asking once."""
    return BY_ARGS[type(args)].idempotent or bool(getattr(args, "key", ""))


def _cut(error: OSError) -> bool:
    """Whether a call was cut off by its kernel's end."""
    return isinstance(error, errors.ConnectionLost) or error.errno == errno.ESHUTDOWN


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
