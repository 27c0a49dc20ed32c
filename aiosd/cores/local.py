"""A local core: a worker process, the run queue in front of it, and the way back when it dies.

The policy says who runs; `Placement` makes it so; this file feeds both with what happens. A
sequence with a goal is in the policy while nothing holds it, and out of it while its agent is
stopped or its reader is slow.

What must hold: a token is taken up once, in order; whatever a worker held can be computed again
from the sequences' own records, so its death costs time and nothing else; a core, or one request,
that kills its worker again and again without progress ends with an error instead of a loop.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from aiosd.abi import cores as abi
from aiosd.cores import rows
from aiosd.cores.core import Listener, Vectors
from aiosd.cores.placement import Placement
from aiosd.cores.price import Price
from aiosd.cores.progress import Progress
from aiosd.cores.questions import Question, Questions
from aiosd.cores.runqueue import RunQueue
from aiosd.cores.sequence import Sequence
from aiosd.cores.sharing import Sharing
from aiosd.cores.tiers import Tiers
from aiosd.cores.worker import Worker
from aiosd.engine import protocol
from aiosd.engine.protocol import CoreSetup, Event, Loaded
from aiosd.sched.policy import Policy, Task

log = logging.getLogger(__name__)

LOAD_TIMEOUT: Final = 600.0  # seconds for a model to load and be probed
SILENCE: Final = 120.0  # seconds without a word from a worker that has work
DEATHS: Final = 8  # deaths in a row without progress that are too many
KILL_WEIGHT: Final = 0.05  # of a death that was a kill from outside


_GENERATES: Final = (
    "beams", "grammar", "json", "logit_bias", "logprobs", "raw", "seed", "top_logprobs",
)  # fmt: skip
FEATURES: Final = frozenset((*_GENERATES, "text", "tools", "watermark", "window"))
"""What every GGUF core can do for a request."""

Launch = Callable[[str, Callable[[Event], None], Callable[[str, bool], None]], Worker]
"""Makes a worker, which has yet to be started, as `Worker` itself does."""


class LocalCore:
    """One worker, its slots, and the run queue in front of them.

    state: loading, ready, restarting, draining, failed, removed, absent. requests: how many were
    given to it and have not ended, whatever they wait for; counted by whoever gives them.
    """

    def __init__(
        self,
        name: str,
        setup: CoreSetup,
        nice: int,
        policy: Policy,
        tiers: Tiers,
        listener: Listener,
        secret: bytes = b"",
        worker: Launch = Worker,
    ) -> None:
        """secret: the key of watermarks. worker: what its workers are made with.

        `find`, set before it starts, says what to open where that must be found first.
        """
        self.name = name
        self.capability = "local"
        self.features = FEATURES
        self.driver = setup.runner
        self._secret = secret
        self._make_worker = worker
        self.setup = setup
        self.price = Price()
        self.queue = RunQueue(policy, self._carry_out)
        self.state = "loading"
        self.error = ""
        self.loaded: Loaded | None = None
        self.requests = self.restarts = self.preemptions = 0
        self.placement = Placement(setup.slots, tiers, self._command, self._fell_back)
        self.sharing = Sharing(setup.grid, self.placement, self._command, self._spared)
        self.progress = Progress(setup.grid, self.placement, self.sharing, self.queue)
        self.find: Callable[[], Awaitable[CoreSetup]] | None = None
        self._finding: asyncio.Future[CoreSetup] | None = None
        self._nice = nice
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._worker: Worker | None = None
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._ready.add_done_callback(lambda future: future.cancelled() or future.exception())
        self.questions = Questions(self._able, self._ask)
        self._deaths = 0
        self.draining = False
        self.base = ""
        self.awaited = 0
        self.on_empty: Callable[[LocalCore], None] | None = None
        self._watchdog: asyncio.TimerHandle | None = None

    # Life of the worker.

    async def start(self) -> None:
        """Start the worker and return when the model is loaded; OSError with the reason if not."""
        self._watch()
        try:
            if self.find is None or await self._found(self.find):
                await self._launch()
        except OSError as error:
            self._unstartable(error)
        await self.ready()

    async def _found(self, find: Callable[[], Awaitable[CoreSetup]]) -> bool:
        """Learn what to open; False when the core ended meanwhile, or there is nothing."""
        self._finding = asyncio.ensure_future(find())
        try:
            self.setup = await self._finding
        except asyncio.CancelledError:
            if self.state != "removed":
                raise
        except OSError as error:
            text = f"core {self.name}: {error.strerror or error}"
            self._end("failed", error.errno or errno.EIO, text)
        finally:
            self._finding = None
        return self.state == "loading"

    async def ready(self) -> None:
        """Wait until the model has been loaded once; raises OSError when that failed."""
        await asyncio.shield(self._ready)

    async def stop(self, timeout: float = 2.0) -> None:
        """End the worker; requests on the core fail with ECANCELED."""
        if self.state == "removed":
            return
        self._end("removed", errno.ECANCELED, f"core {self.name} was removed")
        if self._finding is not None:
            self._finding.cancel()
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.stop(timeout)
        self.placement.died()
        for sequence in list(self.placement.sequences.values()):
            self.placement.forget(sequence)
        self.placement.close()

    def never(self, why: str) -> None:
        """Stand for a core that there is no more; whoever asks it for something is told why."""
        self.state, self.error = "absent", why
        self._ready.set_exception(OSError(errno.ENODEV, why))

    @property
    def pid(self) -> int:
        """The worker's process id, 0 when there is none."""
        return self._worker.pid if self._worker else 0

    async def _launch(self) -> None:
        worker = self._make_worker(self.name, self._on_event, self._on_death)
        self._worker = worker
        await worker.start(self._nice)
        worker.send(protocol.Load(self.setup, self._secret, self.loaded is not None))

    def _watch(self) -> None:
        """Look now and then whether a worker that owes something has fallen silent."""
        self._watchdog = self._loop.call_later(SILENCE / 8, self._watch)
        worker = self._worker
        loading = self.state in ("loading", "restarting")
        if worker is None or not (loading or self.questions or self.placement.owed):
            if worker is not None:
                worker.heard = self._loop.time()
            return
        limit = LOAD_TIMEOUT if loading else SILENCE
        if self._loop.time() - worker.heard > limit:
            worker.kill(f"silent for {limit:.0f} s with work to do")

    def _on_death(self, reason: str, killed: bool) -> None:
        """Take everything off the books that was in the worker, and start another one.

        killed: somebody else did it (an operator, the kernel out of memory). That says little about
        what the worker was computing; a crash or a hang says more.
        """
        self._worker = None
        live = self.placement.died()
        self.sharing.died()
        if self.state in ("removed", "failed"):
            return
        log.warning("core %s: worker died: %s", self.name, reason, extra={"core": self.name})
        self._deaths += 1
        for sequence in live:
            sequence.deaths += KILL_WEIGHT if killed else 1
            if sequence.deaths >= DEATHS:
                text = (
                    f"core {self.name}: its worker died again and again on this request: {reason}"
                )
                self._fail(sequence, errno.EIO, text)
        if self.loaded is None and not (killed and self._deaths <= DEATHS):
            text = f"core {self.name}: the worker died while loading {self.setup.model}: {reason}"
            self._end("failed", errno.EIO, text)
        elif self._deaths > DEATHS:
            text = f"core {self.name}: the worker died {self._deaths} times in a row: {reason}"
            self._end("failed", errno.EIO, text)
        else:
            self._restart()

    def _restart(self) -> None:
        self.state = "restarting"
        self.restarts += 1
        self._listener.core_changed(self, "lost")
        delay = 0.0 if self._deaths == 1 else min(0.01 * 2**self._deaths, 1.0)
        self._loop.call_later(delay, self._relaunch)

    def _relaunch(self) -> None:
        if self.state == "restarting":
            self._loop.create_task(self._launch()).add_done_callback(self._relaunched)

    def _relaunched(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._unstartable(error)

    def _unstartable(self, error: BaseException) -> None:
        if self.state not in ("removed", "failed"):
            text = f"core {self.name}: the worker can't be started: {error}"
            self._end("failed", errno.EIO, text)

    def _end(self, state: str, code: int, message: str) -> None:
        """The core computes no more: everyone who waits for it is told why."""
        self.state, self.error = state, message
        if self._watchdog is not None:
            self._watchdog.cancel()
        if not self._ready.done():
            self._ready.set_exception(OSError(code, message))
        self.questions.end(code, message)
        for sequence in list(self.placement.sequences.values()):
            self._fail(sequence, code, message)
        if state == "failed" and self._worker is not None:
            self._worker.kill("its core has failed")
        self._listener.core_changed(self, state)

    def _fail(self, sequence: Sequence, code: int, message: str) -> None:
        sink = sequence.sink
        self.cancel(sequence)
        if sink is not None:
            sink.failed(code, message)

    # What contexts and generations ask for.

    async def embed(self, texts: list[str]) -> Vectors:
        """Return a vector of unit length for each text; raises OSError with the reason."""
        found = await self.questions.embed(texts)
        self.progress.tokens_in += found.tokens
        return found

    async def _able(self) -> None:
        await self.ready()
        self.check()

    def _ask(self, question: Question) -> None:
        if self.state != "restarting":  # else it is asked when there is somebody to answer
            self._command(question)

    def check(self) -> None:
        """Raise OSError (EIO, ENODEV) with the reason when the core will compute no more."""
        if self.state == "absent":
            raise OSError(errno.ENODEV, self.error)
        if self.state in ("failed", "removed"):
            raise OSError(errno.EIO, self.error)

    def add(self, sequence: Sequence) -> None:
        """Take charge of a sequence; it computes nothing until it has a goal."""
        self.placement.sequences[sequence.cid] = sequence
        self.sharing.enter(sequence)

    def submit(self, sequence: Sequence) -> None:
        """Schedule a settled sequence whose goal and sink have been set."""
        assert sequence.goal is not None and sequence.settled
        sequence.deaths, sequence.furthest, sequence.foreseen = 0, 0, False
        sequence.asked(time.monotonic())
        self.sharing.enter(sequence)
        if not sequence.holds:
            self._enqueue(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """End a sequence's goal, if it has one; its tokens and KV stay."""
        if sequence.goal is not None:
            sequence.goal = sequence.sink = None
            sequence.used = time.monotonic()
            self.queue.leave(sequence.cid)

    def hold(self, sequence: Sequence, why: str) -> None:
        """Keep a sequence from being scheduled, from the next token on, until released."""
        sequence.holds.add(why)
        self.queue.leave(sequence.cid)

    def release(self, sequence: Sequence, why: str) -> None:
        """Lift one hold; with the last one the sequence is runnable again."""
        if why in sequence.holds:
            sequence.holds.discard(why)
            if sequence.goal is not None and not sequence.holds:
                self._enqueue(sequence)

    def forget(self, sequence: Sequence) -> None:
        """Drop a sequence with its goal, its KV and its buffers."""
        self.cancel(sequence)
        self.sharing.leave(sequence)
        self.placement.forget(sequence)
        self.queue.schedule()
        if self.on_empty is not None:
            self.on_empty(self)

    def part(self, sequence: Sequence) -> None:
        """Give a sequence that is in no slot into another core's charge, with its snapshots."""
        self.sharing.leave(sequence)
        self.placement.sequences.pop(sequence.cid, None)
        if self.on_empty is not None:
            self.on_empty(self)

    @property
    def empty(self) -> bool:
        """Whether it has no context in its charge: what is kept for everybody has ids below 1."""
        return not any(cid > 0 for cid in self.placement.sequences)

    def drain(self) -> None:
        """Take nothing new; what is here goes on."""
        self.draining = True
        if self.state == "ready":
            self.state = "draining"

    @property
    def width(self) -> int:
        """Requests that run at once."""
        return self.setup.slots

    @property
    def accepting(self) -> bool:
        """Whether new requests may be given to it."""
        return self.state in ("loading", "ready", "restarting") and not self.draining

    @property
    def loading(self) -> bool:
        """Whether its model has yet to be loaded."""
        return self.loaded is None

    @property
    def certain(self) -> bool:
        """Whether its probe found it exact."""
        return bool(self.loaded and self.loaded.exact)

    @property
    def window(self) -> int:
        """Tokens of a slot."""
        return self.setup.n_ctx

    @property
    def image_tokens(self) -> int:
        """It sees none."""
        return 0

    @property
    def max_output(self) -> int:
        """As many as fit."""
        return self.setup.n_ctx

    @property
    def bytes_per_token(self) -> int:
        """Bytes of KV; 0 before the model is loaded."""
        return self.placement.bytes_per_token

    def row(self) -> abi.Core:
        """Describe it."""
        return rows.local(self)

    @property
    def tokens_in(self) -> int:
        """Tokens of prompts that it has computed."""
        return self.progress.tokens_in

    @property
    def tokens_out(self) -> int:
        """Tokens that it has sampled."""
        return self.progress.tokens_out

    @property
    def tokens_per_s(self) -> float:
        """Tokens sampled per second over the last seconds."""
        return self.progress.rate.value(time.monotonic())

    # Scheduling.

    def _enqueue(self, sequence: Sequence) -> None:
        pending = len(sequence.tokens) - sequence.kv
        self.queue.enter(
            Task(
                sequence.cid,
                sequence.aid,
                sequence.nice,
                sequence.uid,
                pending,
                width=sequence.wanted,
            )
        )

    def _spared(self, sequence: Sequence, count: int) -> None:
        self.queue.spare(sequence.cid, count)
        if sequence.sink is not None:
            sequence.sink.shared(count)

    def _carry_out(self) -> None:
        if self.state not in ("ready", "draining"):
            return
        plan = self.queue.policy.plan(self.setup.slots)
        for cid in plan.stop:
            self.preemptions += 1
            self._listener.preempted(self, self.placement.sequences[cid])
        for cid in plan.start:
            self._listener.started(self, self.placement.sequences[cid])
        admitted = self.placement.reconcile(self.queue.policy.running, self.queue.policy.rank)
        self.sharing.admitted(admitted)

    # What the worker says.

    def _command(self, command: protocol.Command) -> None:
        if self._worker is not None:
            self._worker.send(command)

    def _on_event(self, event: Event) -> None:
        match event:
            case protocol.Step():
                self._on_step(event)
            case protocol.Begun():
                self.progress.foresee(event.cids)
            case protocol.Lost():
                self._on_lost(event)
            case protocol.Found():
                self.progress.found(event)
            case (
                protocol.Tokens()
                | protocol.Pieces()
                | protocol.Compiled()
                | protocol.Detected()
                | protocol.Embedded()
                | protocol.Refused()
            ):
                self.questions.answered(event)
            case Loaded():
                self._on_loaded(event)
            case protocol.Opening():
                pass  # that it was heard of is all
            case protocol.Failed():
                self._end("failed", event.errno, f"core {self.name}: {event.message}")
            case _:
                if self.placement.hear(event):
                    self.queue.schedule()
                self.sharing.hear(event)

    def _on_loaded(self, event: Loaded) -> None:
        if self.loaded is not None and event.fingerprint != self.loaded.fingerprint:
            what = "it is another model now, or on a machine of another kind"
            text = f"core {self.name}: {what}; add the core anew"
            self._end("failed", errno.EIO, text)
            return
        self.loaded = event
        self.setup = msgspec.structs.replace(self.setup, verdict=event.verdict)
        self.placement.bytes_per_token = event.kv_bytes_per_token
        self.sharing.exactly = not event.rolls_back
        self.state = "draining" if self.draining else "ready"
        if event.verdict:
            self._listener.verdict(self.setup, event.verdict)
        self.questions.again()
        if not self._ready.done():
            self._ready.set_result(None)
        self._listener.core_changed(self, "ready")
        self.queue.schedule()

    def _on_lost(self, event: protocol.Lost) -> None:
        """One sequence could not go on: try again from its record, but not for ever."""
        sequence = self.placement.lost(event)
        if sequence is None or event.errno == errno.EBUSY:
            self.queue.schedule()
            return
        about = {"core": self.name, "context": event.cid, "aid": sequence.aid}
        log.warning("core %s: context %d: %s", self.name, event.cid, event.message, extra=about)
        self.sharing.lost(sequence, event)
        sequence.deaths += 0 if event.path else 1  # a file is at fault once only
        if sequence.deaths >= DEATHS or event.errno == errno.EINVAL:
            self._fail(sequence, event.errno, event.message)
        self.queue.schedule()

    def _fell_back(self, sequence: Sequence, why: str) -> None:
        """Say that a snapshot is lost, and what the sequence goes on from."""
        kept = sequence.snapshot
        source = f"{kept.kv} of {sequence.kv} positions on {kept.tier}" if kept else "its tokens"
        sequence.note = f"{why}; went back to {source}"
        about = {"core": self.name, "context": sequence.cid, "aid": sequence.aid}
        log.warning("core %s: context %d: %s", self.name, sequence.cid, sequence.note, extra=about)
        self._listener.fell_back(self, sequence, sequence.note)

    def _on_step(self, step: protocol.Step) -> None:
        self._deaths = 0
        try:
            self.progress.step(step)
        except ValueError as error:
            if self._worker is not None:
                self._worker.kill(f"reported what can't be: {error}")
