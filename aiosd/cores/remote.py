"""A remote core: a provider's endpoint, the run queue before it, and the way on when it fails.

The policy says who is next, as on a local core; but nothing that is with the provider can be taken
back, so what the policy has stopped keeps its place until it ends, and what it has started waits
for one. The bridge's process does the talking.

    queued -> (sending: on record) -> with the provider -> answered, cut, refused or failed
       ^______________ tried again, where nothing was done _______________|

What must hold: a request is with the provider at most once at a time, and again only when the
provider has said, or the connection shows, that nothing was done; once text has come it is never
asked again, here or elsewhere. A reader who pauses pauses the stream; nothing grows meanwhile. A
provider that fails again and again is left alone (breaker.py), and what waits for it goes elsewhere
or is told why.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import random
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from aiosd.abi import cores as abi
from aiosd.cores.breaker import Breaker
from aiosd.cores.client import Client, Undone, code
from aiosd.cores.core import Vectors
from aiosd.cores.pace import Pace
from aiosd.cores.price import Price
from aiosd.cores.rate import Rate
from aiosd.cores.reader import Reader
from aiosd.cores.runqueue import RunQueue
from aiosd.cores.sequence import Place, Sequence
from aiosd.endpoints import protocol as p
from aiosd.engine.protocol import PREFILL, Token
from aiosd.sched.policy import Task

if TYPE_CHECKING:
    from aiosd.cores.bridge import Bridge
    from aiosd.cores.core import Parts

log = logging.getLogger(__name__)

GIVE: Final = 16  # pieces taken before more credit is given
RATE_SPAN: Final = 3.0  # seconds over which tokens/s are averaged
FIRST_PAUSE: Final = 0.5  # seconds before the first retry, doubled for each more, half of it chance
LONGEST_PAUSE: Final = 30.0
UNKNOWN: Final = -1  # stands for the id of a token that a provider does not tell

FEATURES: Final = frozenset({"text", "tools", "json"})
MORE: Final = {
    "openai": frozenset({"embed", "logprobs"}),
    "gemini": frozenset({"embed"}),
}
DIALECTS: Final = {"llama-server": frozenset({"grammar"})}
"""What requests may ask of it (see offer.py), what more of some drivers, and of dialects."""


@dataclass(slots=True, eq=False)
class _Work:
    """A request. id: with the bridge, 0 before it is sent. waiting: for its reader, or its end."""

    sequence: Sequence
    sink: Reader
    id: int = 0
    attempts: int = 0
    pieces: int = 0
    owed: int = 0  # pieces taken, for which no credit was given yet
    flying: bool = False
    waiting: deque[p.Event] = field(default_factory=deque)
    timer: asyncio.TimerHandle | None = None
    task: asyncio.Task[None] | None = None


class RemoteCore:
    """One endpoint.

    state: loading, ready, down (left alone after failures, until it is probed), draining, failed,
    removed. requests: as on a local core.
    """

    def __init__(self, parts: Parts, bridge: Bridge) -> None:
        config = parts.config
        self.name, self.driver, self.model = config.name, config.driver, config.model
        self.base = ""
        self.state = "loading"
        self.error = ""
        self.draining = False
        self.capability = "frontier"
        more = MORE.get(self.driver, frozenset())
        if self.driver == "openai":
            more |= DIALECTS.get(config.remote.dialect, frozenset())
        self.features = FEATURES | more
        self.price = Price()
        self.queue = RunQueue(parts.policy, self._carry_out)
        self.breaker = Breaker()
        self.requests = self.restarts = self.preemptions = 0
        self.tokens_in = self.tokens_out = 0
        self._settings = config.remote
        self._width = config.slots
        self._client = Client(config, bridge)
        self._listener = parts.listener
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._ready.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._works: dict[int, _Work] = {}
        self._flying = 0
        self._pace = Pace(config.remote.rate)
        self._rate = Rate(RATE_SPAN)
        self._timer: asyncio.TimerHandle | None = None  # when the next one may go
        self._probe: asyncio.TimerHandle | None = None

    # What it is.

    @property
    def accepting(self) -> bool:
        """Whether new requests may be given to it."""
        return self.state in ("loading", "ready") and not self.draining

    @property
    def loading(self) -> bool:
        """Whether its client has yet to be made."""
        return self.state == "loading"

    @property
    def certain(self) -> bool:
        """A provider promises nothing."""
        return False

    @property
    def width(self) -> int:
        """Requests that are with the provider at a time."""
        return self._width

    @property
    def window(self) -> int:
        """Tokens that its model reads and writes at most, as configured; 0: not known."""
        return self._settings.window

    @property
    def image_tokens(self) -> int:
        """Tokens that a picture counts at most, as configured."""
        return self._settings.image_tokens

    @property
    def max_output(self) -> int:
        """Tokens of a reply where nobody says how many."""
        return self._settings.max_output

    @property
    def bytes_per_token(self) -> int:
        """No KV is kept here."""
        return 0

    @property
    def tokens_per_s(self) -> float:
        """Pieces of output per second over the last seconds."""
        return self._rate.value(time.monotonic())

    def row(self) -> abi.Core:
        """Describe it."""
        return abi.Core(
            name=self.name,
            driver=self.driver,
            model=self.model,
            state="draining" if self.draining and self.state == "ready" else self.state,
            exact="no",
            setting=self._settings.base_url or f"{self.driver}'s own endpoint",
            slots=self._width,
            running=self._flying,
            queued=len(self._works) - self._flying,
            resident=0,
            n_ctx=self.window,
            n_ctx_train=0,
            grid=0,
            threads=0,
            pid=self._client.pid,
            restarts=self.restarts,
            rss=0,
            kv_bytes=0,
            bytes_per_token=0,
            tokens_in=self.tokens_in,
            tokens_out=self.tokens_out,
            tokens_per_s=self.tokens_per_s,
            switches=0,
            kind="remote",
            error=self.error,
        )

    # Its life.

    async def start(self) -> None:
        """Make its client and see whether the provider answers; OSError with the reason if not."""
        opened = await self._client.open(lambda: self.state != "removed")
        if self.state == "removed":
            raise OSError(errno.ECANCELED, self.error)
        if isinstance(opened, p.Failed):
            text = f"core {self.name}: {opened.message}"
            self._end("failed", errno.EINVAL, text)
            raise OSError(errno.EINVAL, text)
        if self._settings.check:
            found = await self._client.check()
            if isinstance(found, p.Failed) and self.state == "loading":
                self._ready.set_result(None)
                self.breaker.open(time.monotonic(), found.wait)
                self._down(found.message)
                raise OSError(code(found), f"core {self.name}: {found.message}")
        if self.state == "loading":
            self._ready.set_result(None)
            self._up()

    async def ready(self) -> None:
        """Wait until its client was made; raises OSError when that failed."""
        await asyncio.shield(self._ready)

    async def stop(self, timeout: float = 2.0) -> None:
        """End it for good; requests on it keep what has come of them."""
        if self.state == "removed":
            return
        self._end("removed", errno.ECANCELED, f"core {self.name} was removed")
        self._client.close("it was removed")

    def check(self) -> None:
        """Raise OSError with the reason when nothing can be asked of it now."""
        if self.state == "failed":
            raise OSError(errno.EIO, self.error)
        if self.state in ("down", "removed"):
            raise OSError(errno.ENODEV, self.error)

    def drain(self) -> None:
        """Take nothing new; what is here goes on."""
        self.draining = True

    async def embed(self, texts: list[str]) -> Vectors:
        """Return a vector for each text. Raises OSError: Undone where nothing was done."""
        try:
            await self.ready()
            self.check()
        except OSError as error:
            raise Undone(*error.args) from None
        answer = await self._client.embed(texts)
        if isinstance(answer, p.Failed):
            self._count(answer)
            kind = OSError if answer.kind in ("cut", "lost") else Undone
            raise kind(code(answer), f"core {self.name}: {answer.message}")
        assert isinstance(answer, p.Vectors)
        self.breaker.succeeded()
        self.tokens_in += answer.tokens
        return Vectors(answer.vectors, answer.tokens)

    # Sequences.

    def add(self, sequence: Sequence) -> None:
        """Nothing is kept of a sequence that has no request."""

    def submit(self, sequence: Sequence) -> None:
        """Queue the request of a sequence whose sink, a Reader, has been set."""
        sink: Any = sequence.sink
        assert sink is not None and sequence.cid not in self._works
        self._works[sequence.cid] = _Work(sequence, sink)
        if not sequence.holds:
            self._enqueue(self._works[sequence.cid])

    def cancel(self, sequence: Sequence) -> None:
        """End a sequence's request, if it has one; what the provider still does goes nowhere."""
        work = self._works.get(sequence.cid)
        if work is not None:
            self._drop(work)

    def hold(self, sequence: Sequence, why: str) -> None:
        """Keep a request from being sent, or from getting text, until released."""
        sequence.holds.add(why)
        work = self._works.get(sequence.cid)
        if work is not None and not work.flying:
            self.queue.leave(work.sequence.cid)

    def release(self, sequence: Sequence, why: str) -> None:
        """Lift one hold; with the last one the request goes on."""
        if why not in sequence.holds:
            return
        sequence.holds.discard(why)
        work = self._works.get(sequence.cid)
        if work is None or sequence.holds:
            return
        if work.flying:
            self._loop.call_soon(self._hand_out, work)
        elif work.timer is None:
            self._enqueue(work)

    def forget(self, sequence: Sequence) -> None:
        """Drop a sequence with its request."""
        self.cancel(sequence)

    def part(self, sequence: Sequence) -> None:
        """Nothing is kept of it here."""

    # The queue.

    def _enqueue(self, work: _Work) -> None:
        sequence, chat = work.sequence, work.sink.chat
        letters = sum(len(message.content) for message in chat.messages) if chat else 0
        if sequence.cid not in self.queue:
            task = Task(sequence.cid, sequence.aid, sequence.nice, sequence.uid, letters // 4)
            self.queue.enter(task)
        if self._pace.paused > time.monotonic():
            self._loop.call_soon(self._hasten, work)

    def _carry_out(self) -> None:
        if self.state != "ready":
            return
        places = 1 if self.breaker.state == "half" else self._width
        policy = self.queue.policy
        policy.plan(self._width)
        for cid in sorted(policy.running, key=policy.rank):
            work = self._works[cid]
            if work.flying or self._flying >= places:
                continue
            now = time.monotonic()
            due = self._pace.due(now)
            if due > now:
                self._wake_at(due - now)
                return
            self._pace.took(now)
            self._fly(work)

    def _wake_at(self, delay: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay, self.queue.schedule)

    # A request's way.

    def _fly(self, work: _Work) -> None:
        work.flying = True
        work.attempts += 1
        self._flying += 1
        work.sequence.place = Place.LIVE
        self._listener.started(self, work.sequence)
        work.task = self._loop.create_task(self._send(work))

    async def _send(self, work: _Work) -> None:
        """Ask the provider, once it is on record that this happens."""
        sink = work.sink
        sink.computed(PREFILL, 0, 0, time.monotonic())
        try:
            await sink.sending()
        except OSError as error:
            self._drop(work)
            sink.failed(error.errno or errno.EIO, error.strerror or str(error))
            return
        chat = sink.chat
        assert chat is not None
        work.id = self._client.chat(chat, lambda event: self._hear(work, event))

    def _hear(self, work: _Work, event: p.Event) -> None:
        work.waiting.append(event)
        self._hand_out(work)

    def _hand_out(self, work: _Work) -> None:
        """Let a request's reader have what has come, as far as it may go on."""
        while work.waiting and self._works.get(work.sequence.cid) is work:
            if work.sequence.holds and not isinstance(work.waiting[0], p.Metered):
                return
            event = work.waiting.popleft()
            match event:
                case p.Piece():
                    self._piece(work, event)
                case p.Metered():
                    work.sink.metered(event.prompt, event.cached, event.output)
                case p.Done():
                    self._done(work, event)
                case p.Failed():
                    self._failed(work, event)

    def _piece(self, work: _Work, piece: p.Piece) -> None:
        sequence, now = work.sequence, time.monotonic()
        number, work.pieces = work.pieces, work.pieces + 1
        self.tokens_out += 1
        self._rate.add(1, now)
        self.queue.standing.computed(sequence.aid, 1, now)
        self.queue.charge(sequence.cid, 0, 1)
        work.owed += 1
        if work.owed >= GIVE:
            self._client.credit(work.id, work.owed)
            work.owed = 0
        work.sink.token(
            Token(sequence.cid, number, UNKNOWN, piece.text, "", kept=True, logprob=piece.logprob)
        )

    def _done(self, work: _Work, done: p.Done) -> None:
        self._drop(work)
        if self.breaker.state != "closed":
            log.info("core %s: it answers again", self.name)
        self.breaker.succeeded()
        work.sink.answered(done.finish, done.calls)

    def _failed(self, work: _Work, failed: p.Failed) -> None:
        """Decide what becomes of a request that failed: see the module's `What must hold`."""
        text = f"core {self.name}: {failed.message}"
        self._count(failed)
        if work.pieces:
            self._drop(work)
            work.sink.cut(text)
        elif failed.kind == "refused":
            self._drop(work)
            work.sink.unsent()
            work.sink.failed(code(failed), text)
        elif failed.kind in ("cut", "lost"):
            self._drop(work)
            work.sink.refused(errno.EIO, f"{text}; what it has done of it is not known")
        elif failed.wait and not self._bears(work, failed.wait):
            self._drop(work)
            work.sink.unsent()
            work.sink.refused(code(failed), f"{text}; {_too_long(failed.wait)}")
        elif work.attempts > self._settings.retries or not self.accepting_again:
            self._drop(work)
            work.sink.unsent()
            tries = f" ({work.attempts} times)" if work.attempts > 1 else ""
            work.sink.refused(code(failed), f"{text}{tries}")
        else:
            self._again(work, failed)

    def _hasten(self, work: _Work) -> None:
        """Have a request that queues go elsewhere, where its provider wants to be left alone."""
        queues = self._works.get(work.sequence.cid) is work and work.sequence.cid in self.queue
        wait = self._pace.paused - time.monotonic()
        if queues and not work.flying and wait > 0 and not self._bears(work, wait):
            self._drop(work)
            work.sink.refused(errno.EAGAIN, f"core {self.name}: {_too_long(wait)}")

    def _bears(self, work: _Work, seconds: float) -> bool:
        return seconds <= self._settings.patience and work.sink.bears(seconds)

    @property
    def accepting_again(self) -> bool:
        """Whether a request that failed may wait here for another try."""
        return self.state in ("ready", "loading")

    def _again(self, work: _Work, failed: p.Failed) -> None:
        """Put a request back into the queue, after a while."""
        self._land(work)
        work.sink.unsent()
        pause = min(FIRST_PAUSE * 2 ** (work.attempts - 1), LONGEST_PAUSE)
        pause = failed.wait or pause * random.uniform(0.5, 1.0)
        log.info("core %s: %s; asked again in %.1f s", self.name, failed.message, pause)
        work.timer = self._loop.call_later(pause, self._waited, work)

    def _waited(self, work: _Work) -> None:
        work.timer = None
        if not work.sequence.holds and self._works.get(work.sequence.cid) is work:
            self._enqueue(work)

    def _land(self, work: _Work) -> None:
        """A request is with the provider no more."""
        if work.flying:
            work.flying = False
            self._flying -= 1
            work.sequence.place = Place.OUT
        if work.task is not None:
            if work.task is not asyncio.current_task():
                work.task.cancel()
            work.task = None
        if work.id:
            self._client.drop(work.id)
            work.id = 0
        work.waiting.clear()
        self.queue.leave(work.sequence.cid)
        self.queue.schedule()

    def _drop(self, work: _Work) -> None:
        """Forget a request; its sink is told by whoever calls this, or not at all."""
        if self._works.get(work.sequence.cid) is not work:
            return
        del self._works[work.sequence.cid]
        if work.timer is not None:
            work.timer.cancel()
        if not work.id:
            work.sink.unsent()
        self._land(work)
        work.sequence.goal = work.sequence.sink = None
        work.sequence.used = time.monotonic()

    # What becomes of the provider.

    def _count(self, failed: p.Failed) -> None:
        """Note a failure, where it is the provider's."""
        now = time.monotonic()
        if failed.kind == "busy" and failed.wait > self._settings.patience:
            if self.state == "ready" and self.breaker.open(now, failed.wait):
                self._down(failed.message)  # nobody waits for it meanwhile
            return
        if failed.kind == "busy":
            self._pace.pause(now + failed.wait)
            for work in list(self._works.values()):
                self._hasten(work)
            return
        if failed.kind == "lost":
            return
        theirs = failed.kind != "refused" or failed.status in (401, 403)
        if theirs and self.breaker.failed(now) and self.state == "ready":
            self._down(failed.message)

    def _down(self, why: str) -> None:
        """Leave the provider alone; what waits for it is told why."""
        wait = max(0.0, self.breaker.until - time.monotonic())
        self.state = "down"
        self.error = f"core {self.name}: {why}; it is tried again in {wait:.0f} s"
        log.warning("%s", self.error)
        self.restarts += 1
        self._listener.core_changed(self, "lost")
        self._probe = self._loop.call_later(wait, self._look_again)
        for work in [each for each in self._works.values() if not each.flying]:
            self._drop(work)
            work.sink.refused(errno.ENODEV, self.error)

    def _look_again(self) -> None:
        self.breaker.probe()
        if self._settings.check:
            self._client.look(self._looked)
        else:
            self._up()

    def _looked(self, event: p.Event) -> None:
        if self.state != "down":
            return
        if isinstance(event, p.Failed):
            self.breaker.open(time.monotonic(), event.wait)
            self._down(event.message)
        else:
            self._up()

    def _up(self) -> None:
        self.state, self.error = "ready", ""
        self._listener.core_changed(self, "ready")
        self.queue.schedule()

    def _end(self, state: str, code: int, message: str) -> None:
        self.state, self.error = state, message
        for timer in (self._timer, self._probe):
            if timer is not None:
                timer.cancel()
        if not self._ready.done():
            self._ready.set_exception(OSError(code, message))
        for work in list(self._works.values()):
            self._drop(work)
            if work.pieces:
                work.sink.cut(message)
            else:
                work.sink.failed(code, message)
        self._listener.core_changed(self, state)


def _too_long(wait: float) -> str:
    return f"it wants to be left alone for {wait:.0f} s, too long for this request"
