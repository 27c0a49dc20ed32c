"""What a core is to the kernel: something that answers requests on contexts.

Whatever computes (a worker on this machine, a provider's endpoint, a cluster), the rest of the
kernel knows it by this interface alone. What only holds for a core whose KV is in our hands
(placement, snapshots, tokens) is asked of `LocalCore`, which `Context.local` gives or refuses.

A driver makes a core from its `Parts`; `drivers.py` is the list of them.

What must hold: a request that was submitted ends once, in its sequence's sink; one that is held is
given no further token; `requests` counts what was given to a core and has not ended, and is counted
by whoever gives it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from aiosd.abi import cores as abi
from aiosd.config import Core as CoreConfig
from aiosd.cores.price import Price
from aiosd.cores.runqueue import RunQueue
from aiosd.cores.sequence import Sequence
from aiosd.cores.tiers import Tiers
from aiosd.engine.protocol import CoreSetup
from aiosd.sched.policy import Policy

if TYPE_CHECKING:
    from aiosd.cores.bridge import Bridge


class Core(Protocol):
    """One core.

    base: the core that it stands beside, as a slot class does; "" for most. state: loading, ready,
    restarting, draining, failed, removed, absent. error: why it is not ready, "". queue: of what is
    to run on it. certain: whether it promises the tokens of a solo run. window: tokens that a
    context holds at most, 0: not known. bytes_per_token: of KV that is kept here.
    capability: its class (local, frontier, ...), unless its configuration says another. features:
    what requests may ask of it (offer.py has the words that they use without saying so). width:
    requests that run at once.
    """

    name: str
    base: str
    state: str
    error: str
    draining: bool
    capability: str
    features: frozenset[str]
    price: Price
    queue: RunQueue
    requests: int
    restarts: int
    preemptions: int

    @property
    def tokens_in(self) -> int:
        """Tokens that it has read."""

    @property
    def tokens_out(self) -> int:
        """Tokens that it has written."""

    @property
    def accepting(self) -> bool:
        """Whether new requests may be given to it."""

    @property
    def loading(self) -> bool:
        """Whether those that are given to it wait for it to get ready first."""

    @property
    def certain(self) -> bool:
        """Whether it promises the tokens of a solo run."""

    @property
    def width(self) -> int:
        """Requests that run at once."""

    @property
    def window(self) -> int:
        """Tokens that a context holds at most; 0: not known."""

    @property
    def image_tokens(self) -> int:
        """Tokens that a picture counts at most; 0: it sees none, whatever is configured."""

    @property
    def max_output(self) -> int:
        """Tokens of a reply, where nobody says how many it may have."""

    @property
    def tokens_per_s(self) -> float:
        """Tokens of output per second over the last seconds."""

    @property
    def bytes_per_token(self) -> int:
        """Bytes of KV that are kept here."""

    def row(self) -> abi.Core:
        """Describe it; the dispatcher adds what it knows."""

    async def start(self) -> None:
        """Begin to work, and return when it is ready; raises OSError with the reason if not."""

    async def ready(self) -> None:
        """Wait until it has been ready once; raises OSError when that failed."""

    async def stop(self, timeout: float = 2.0) -> None:
        """End it for good; requests on it fail with ECANCELED. timeout: seconds."""

    def check(self) -> None:
        """Raise OSError (EIO, ENODEV) with the reason when it will compute no more."""

    def drain(self) -> None:
        """Take nothing new; what is here goes on."""

    async def embed(self, texts: list[str]) -> Vectors:
        """Return a vector for each text. Raises OSError (ENOTSUP where it does not embed)."""

    # Sequences.

    def add(self, sequence: Sequence) -> None:
        """Take charge of a sequence; it computes nothing until it is submitted."""

    def submit(self, sequence: Sequence) -> None:
        """Begin to work on a sequence whose goal and sink have been set."""

    def cancel(self, sequence: Sequence) -> None:
        """End a sequence's goal, if it has one; its sink is told nothing more."""

    def hold(self, sequence: Sequence, why: str) -> None:
        """Keep a sequence from getting on, from the next token on, until released."""

    def release(self, sequence: Sequence, why: str) -> None:
        """Lift one hold; with the last one the sequence goes on."""

    def forget(self, sequence: Sequence) -> None:
        """Drop a sequence with its goal and all that is kept of it here."""

    def part(self, sequence: Sequence) -> None:
        """Give an idle sequence into another core's charge."""


@dataclass(frozen=True, slots=True)
class Vectors:
    """One vector per text, and the tokens that were read."""

    vectors: list[list[float]]
    tokens: int


class Listener(Protocol):
    """Who is told what happens to a core."""

    def core_changed(self, core: Core, what: str) -> None:
        """The core is now ready, lost (and restarting), failed or removed."""

    def preempted(self, core: Core, sequence: Sequence) -> None:
        """A running sequence was taken off the core for another."""

    def started(self, core: Core, sequence: Sequence) -> None:
        """A sequence was put on the core."""

    def fell_back(self, core: Core, sequence: Sequence, why: str) -> None:
        """A snapshot of a sequence is lost; it goes on from an older one, or from its tokens."""

    def verdict(self, setup: CoreSetup, verdict: str) -> None:
        """An exactness probe's verdict is to be remembered."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a driver makes a core from.

    verdicts: says what the probe of a setup (drivers.setup_key) found before, or "". secret: the
    key of watermarks. setup: of a slot class, where that is not as its configuration says. fetch:
    gives the path of a model of the hub. bridge: to the process that speaks to providers. weights:
    directory of converted weights.
    """

    config: CoreConfig
    policy: Policy
    tiers: Tiers
    listener: Listener
    verdicts: Callable[[str], str]
    secret: bytes = b""
    setup: CoreSetup | None = None
    fetch: Callable[[str], Awaitable[str]] | None = None
    bridge: Bridge | None = None
    weights: str = ""


Driver = Callable[[Parts], Core]
"""Makes a core, which begins to work when it is started. Raises OSError for a configuration that
can't be used, with a sentence that says what is wrong."""
