"""A generation: one llm_generate request, from its submission to its result.

The request's own coroutine prepares it (core, context, tokens), hands it to the core, and then
only reads what comes: `Generation` is the core's sink, collects tokens and text, and can be read
by the caller, by a second asker with the same key, and by `attach`, each at its own pace.

What the next kernel needs to go on with it is its `page`: the context and how far it has come.

What must hold: a generation ends exactly once; a reader that falls AHEAD tokens behind stops the
generation, never the kernel.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from aiosd import again, callforms, calling, charge
from aiosd import window as windows
from aiosd.abi.inference import (
    Beam,
    Chunk,
    Likely,
    LlmGenerate,
    Recalled,
    Timing,
    TokenUsage,
    ToolCall,
    Turn,
)
from aiosd.abi.inference import Generation as Result
from aiosd.bill import Bill
from aiosd.calling import Form, Said
from aiosd.context import Context
from aiosd.deadline import Deadline
from aiosd.engine.protocol import Beam as Found
from aiosd.engine.protocol import Goal, Token
from aiosd.journal import ContextRow, RequestRow
from aiosd.keys import Kept

AHEAD: Final = 64  # tokens that a generation may be ahead of a slow reader
CATCH_UP: Final = 16  # tokens at which it goes on
LIKELY: Final = 48  # bytes that one of the likeliest tokens takes in the journal, about


class Generation:
    """One request. Times are monotonic seconds; waiting and turnaround as the paper has them.

    on_start, on_token (with the text that became final) and on_end tell its owner, once each except
    on_token; on_full (with the text that would be final if it ended here) that there is no room in
    its context to go on. goal: what its core was given to do last. most: tokens that its output may
    have, 0: as many as fit. preparing, kept, begun and stored belong to the owner: the task that
    turns the request into tokens, the entry of its key, and when its beginning and its end are on
    disk. known: of a request that an earlier kernel began, the tokens that were on record; -1: of
    ours. certain: of how many tokens it is certain that whoever read them under an earlier kernel
    read these very ones; -1: of all, since the core promises it. form: how its functions were put
    to the model, if any: then `texts` is what its caller reads and `wrote` what the model writes.
    said: what that meant, when it has ended. bill and asked: of a request that a provider computes,
    what it costs, and the turns that it adds to its context; tried: cores that could not do it.
    """

    def __init__(
        self,
        rid: int,
        aid: int,
        args: LlmGenerate,
        context: Context,
        on_start: Callable[[Generation], None],
        on_token: Callable[[Generation, str], None],
        on_end: Callable[[Generation], None],
        on_full: Callable[[Generation, str], None],
    ) -> None:
        self.rid = rid
        self.aid = aid
        self.args = args
        self.context = context
        self._on_start = on_start
        self._on_token = on_token
        self._on_end = on_end
        self._on_full = on_full
        self.submitted = time.monotonic()
        self.submitted_at = time.time()
        self.started = self.first_token = self.ended = 0.0
        self.most = args.max_tokens
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.tokens: list[int] = []
        self.texts: list[str] = []
        self.recalled: list[Recalled] = []  # what was put before its prompt
        self.logprobs: list[float] = []  # of each token, when they were asked for
        self.likely: list[list[Likely]] = []  # those in its place, as many as were asked for
        self.beams: list[Beam] = []
        self.tail = ""  # text that became final with a token that is not part of the output
        self.form: Form | None = None
        self.wrote: list[str] = []
        self.said: Said | None = None
        self.bill: Bill | None = None
        self.asked: list[Turn] = []
        self.tried: list[str] = []
        self.finish = ""
        self.reason = ""
        self.error: OSError | None = None
        self.preparing: asyncio.Task[None] | None = None
        self.kept: Kept | None = None
        self.begun: asyncio.Future[None] | None = None
        self.stored: asyncio.Future[None] | None = None
        self.holds = False
        self.load = 0  # requests on its core when it came, with it
        self.route = context.route
        self.disturbed = bool(args.after)  # others than its core have kept it waiting
        self.known = self.certain = -1
        self.goal: Goal | None = None
        self._readers: dict[object, int] = {}  # tokens that each caller's stream has taken
        self._over = asyncio.Event()
        self._waiters: list[asyncio.Future[None]] = []
        self._deadline = Deadline(args.deadline, lambda: self.cancel("deadline"))

    # What outlives the kernel.

    @property
    def cid(self) -> int:
        """The context that it works on."""
        return self.context.cid

    def page(self) -> tuple[ContextRow, dict[str, Any]]:
        """Return its context and how far it has come, as they are at this moment."""
        context = self.context.record()
        context.bulk += LIKELY * self.args.top_logprobs * len(self.likely)
        return context, self.progress()

    def request(self) -> RequestRow:
        """Return what was asked, for the journal."""
        return RequestRow(
            rid=self.rid,
            aid=self.aid,
            cid=self.context.cid,
            key=self.args.key,
            args=again.body(self.args),
            submitted=self.submitted_at,
        )

    def progress(self) -> dict[str, Any]:
        """Return what `take_progress` goes on from: plain values, a fresh dict. Unix times."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "tokens": self.tokens.copy(),
            "texts": self.texts.copy(),
            "logprobs": self.logprobs.copy(),
            **({"likely": self.likely.copy()} if self.likely else {}),
            "recalled": self.recalled,
            "goal": self.goal,
            "started": self._moment(self.started),
            "first_token": self._moment(self.first_token),
            "due": self._deadline.moment,
            "left": self._deadline.left,
            "certain": self.certain,
            "bill": self.bill,
            "style": self.form.style if self.form is not None else "",
            "wrote": self.wrote.copy(),
            "route": self.route,
        }

    def fit(self) -> None:
        """Make the context's record hold for its core, which is loaded; see Context.fit."""
        moved = self.context.fit()
        if self.known >= 0 and self.certain < 0 and (moved or not self.context.certain):
            self.certain = self.known

    def take_progress(self, submitted: float, progress: dict[str, Any]) -> Goal | None:
        """Be where an earlier kernel's generation was; return its goal, None before it had one.

        submitted: Unix time. Raises msgspec.ValidationError for what can't be read.
        """
        self.submitted_at = submitted
        self.submitted -= max(0.0, time.time() - submitted)
        self.known = 0
        if not progress:
            return None
        self.prompt_tokens = progress["prompt_tokens"]
        self.cached_tokens = progress["cached_tokens"]
        self.tokens, self.texts = progress["tokens"], progress["texts"]
        self.logprobs = progress["logprobs"]
        self.likely = msgspec.convert(progress.get("likely", []), list[list[Likely]])
        self.recalled = msgspec.convert(progress.get("recalled", []), list[Recalled])
        self.known, self.certain = len(self.tokens), progress["certain"]
        self.route, self.disturbed = progress.get("route", ""), True
        for name in ("started", "first_token"):
            if moment := progress[name]:
                setattr(self, name, self.submitted + moment - submitted)
        if self._deadline.left is not None:
            due, left = progress["due"], progress["left"]
            self._deadline.left = left if due is None else max(0.0, due - time.time())
        self.goal = msgspec.convert(progress["goal"], Goal | None)
        self.bill = msgspec.convert(progress.get("bill"), Bill | None)
        self._rehear(progress.get("style", ""), progress.get("wrote", []))
        return self.goal

    def _rehear(self, style: str, wrote: list[str]) -> None:
        self.form, self.wrote = callforms.form_of(self.args, style), wrote
        if self.form is not None:
            for piece in wrote:
                self.form.hear(piece)

    @property
    def left(self) -> float | None:
        """Seconds until its deadline; None: it has none."""
        return self._deadline.left

    def _moment(self, monotonic: float) -> float:
        return self.submitted_at + monotonic - self.submitted if monotonic else 0.0

    # What the core reports (cores.sequence.Sink).

    def computed(self, kind: int, start: int, end: int, began: float) -> None:
        """Note when the first batch for this request began."""
        if not self.started:
            self.started = began
            self._on_start(self)

    def token(self, token: Token) -> None:
        """Take up a sampled token and the text that is final with it."""
        if not self.first_token:
            self.first_token = time.monotonic()
        if token.kept:
            self.tokens.append(token.token)
            self.texts.append(self._hear(token.text))
            if self.args.logprobs:
                self.logprobs.append(token.logprob)
            if self.args.top_logprobs:
                self.likely.append([Likely(*one) for one in token.top])
        else:
            self.tail += self._hear(token.text)
        self._on_token(self, token.text)
        if token.finish == "window":
            self._on_full(self, token.tail)
        elif token.finish:
            self._end(token.finish)
        else:
            self._wake()
            if self._readers and len(self.tokens) - min(self._readers.values()) > AHEAD:
                self.disturbed = True
                self.context.core.hold(self.context.sequence, "reader")

    def _hear(self, text: str) -> str:
        """Take what the model wrote; return what of it is for the caller."""
        if self.form is None:
            return text
        self.wrote.append(text)
        return self.form.hear(text)

    @property
    def written(self) -> str:
        """All that the model has written."""
        return "".join(self.wrote if self.form is not None else [*self.texts, self.tail])

    def shared(self, count: int) -> None:
        """So many tokens of the prompt need not be computed: another sequence has done it."""
        self.cached_tokens += count

    def found(self, beams: list[Found]) -> None:
        """Take up what a beam search has found: the best one is the text."""
        best = beams[0]
        self.first_token = time.monotonic()
        self.tokens = list(best.tokens)
        self.texts = [best.text] + [""] * (len(best.tokens) - 1) if best.tokens else []
        self.logprobs = list(best.logprobs[: len(best.tokens)]) if self.args.logprobs else []
        self.beams = [
            Beam(beam.text, beam.tokens, beam.logprobs, beam.score, beam.finish) for beam in beams
        ]
        self._on_token(self, best.text)
        self._end(best.finish)

    def failed(self, code: int, message: str) -> None:
        """The core can't go on with it."""
        if not self.done:
            self.error = OSError(code, message)
            self._end("cancelled")

    def broken(self, error: Exception) -> None:
        """The kernel itself can't go on with it."""
        self.failed(errno.EIO, f"llm_generate: the kernel failed on it: {error!r}")

    # What others ask of it.

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return bool(self.finish)

    def cancel(self, reason: str) -> None:
        """End it with the text that there is."""
        if not self.done:
            self.context.core.cancel(self.context.sequence)
            self.reason = reason
            self._end("cancelled")

    def filled(self, tail: str) -> None:
        """End it: its context's window is full. tail: text that is final with that."""
        if not self.done:
            self.tail += self._hear(tail)
            self.reason = "window"
            self._end("length")

    def speed(self) -> tuple[float, float] | None:
        """Seconds to the first token and of each further one, if its core alone made it wait."""
        if self.disturbed or not self.tokens or self.finish not in ("stop", "length"):
            return None
        pace = (self.ended - self.first_token) / max(1, len(self.tokens) - 1)
        return max(0.0, self.first_token - self.submitted), pace

    def complete(self, finish: str) -> None:
        """End it: its reply is whole."""
        if not self.done:
            self._end(finish)

    def cut(self, reason: str) -> None:
        """End it with the text that there is: its provider gives no more."""
        if not self.done:
            self.reason = reason
            self._end("cancelled")

    def stop_clock(self) -> None:
        """Stop counting towards the deadline (its agent is suspended)."""
        self.disturbed = self.disturbed or not self.done
        self._deadline.stop()

    def start_clock(self) -> None:
        """Count towards the deadline, if there is one."""
        if not self.done:
            self._deadline.start()

    async def news(self, seen: int) -> None:
        """Return when there are more than `seen` tokens, or it has ended."""
        while len(self.tokens) <= seen and not self.done:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    async def end(self) -> None:
        """Return when it has ended."""
        await self._over.wait()

    def chunk(self, start: int) -> Chunk:
        """Return the tokens and the text from a token on."""
        text = "".join(self.texts[start:]) + self.tail
        ids = self.tokens[start:]
        return Chunk(
            text=text,
            token_ids=ids if self.bill is None else [],
            index=start,
            logprobs=self.logprobs[start:],
            request=self.rid,
            pieces=0 if self.bill is None else len(ids),
            top_logprobs=self.likely[start:],
            texts=self.texts[start:] if self.args.logprobs else [],
        )

    def read_to(self, reader: object, seen: int) -> None:
        """A reader has taken this many tokens; go on when the slowest has caught up."""
        self._readers[reader] = seen
        self._caught_up()

    def unread(self, reader: object) -> None:
        """A reader reads no more: nothing to wait for."""
        self._readers.pop(reader, None)
        self._caught_up()

    def _caught_up(self) -> None:
        if self.done:
            return  # the context may be another request's by now
        if not self._readers or len(self.tokens) - min(self._readers.values()) < CATCH_UP:
            self.context.core.release(self.context.sequence, "reader")

    def result(self) -> Result:
        """Return the reply; raises the error that ended it."""
        if self.error is not None:
            raise self.error
        core = self.context.core
        return Result(
            text="".join(self.texts) + self.tail,
            token_ids=self.tokens if self.bill is None else [],
            finish_reason=self.finish,
            reason=self.reason,
            usage=self._usage(),
            timing=self.timing(),
            context=self.context.cid,
            core=core.name,
            route=self.route,
            request=self.rid,
            parsed=self._parsed(),
            logprobs=self.logprobs,
            beams=self.beams,
            recalled=self.recalled,
            exact=self.context.certain,
            calls=self._calls(),
            top_logprobs=self.likely,
        )

    def _usage(self) -> TokenUsage:
        prompt, cached, said = charge.counted(self)
        return TokenUsage(prompt, said, cached, charge.dollars(self))

    def _calls(self) -> list[ToolCall]:
        """Return what its caller is to call."""
        wanted = self.said.calls if self.said is not None else []
        return [
            ToolCall(1, one.tool, one.arguments, id=calling.new_id(self.rid, place))
            for place, one in enumerate(wanted)
        ]

    def _parsed(self) -> Any:
        """Return the value that a schema's text stands for, once it is whole."""
        if self.args.schema is None or self.finish != "stop" or self.reason:
            return None
        return msgspec.json.decode("".join(self.texts) + self.tail)

    def timing(self) -> Timing:
        """Seconds from submission to commencement, to the first token, and to the end."""
        end = self.ended or time.monotonic()
        return Timing(
            waiting_s=max(0.0, (self.started or end) - self.submitted),
            turnaround_s=end - self.submitted,
            first_token_s=max(0.0, (self.first_token or end) - self.submitted),
        )

    def record(self) -> dict[str, Any]:
        """Return what is kept of it: a row of the table of requests. Times are Unix seconds."""
        timing = self.timing()
        prompt, cached, said = charge.counted(self)
        return {
            "id": self.rid,
            "aid": self.aid,
            "cid": self.context.cid,
            "core": self.context.core.name,
            "t_submit": self.submitted_at,
            "t_start": self.submitted_at + timing.waiting_s,
            "t_end": self.submitted_at + timing.turnaround_s,
            "prompt_tokens": prompt,
            "cached_tokens": cached,
            "completion_tokens": said,
            "finish": self.finish,
            "error": (self.error.strerror or "") if self.error else self.reason,
            "waiting_s": timing.waiting_s,
            "turnaround_s": timing.turnaround_s,
        }

    def _end(self, finish: str) -> None:
        self.finish = self._meant(finish)
        self.ended = time.monotonic()
        self.stop_clock()
        try:
            self._on_end(self)
        finally:  # whatever its owner makes of it, who waits is answered
            self._over.set()
            self._wake()

    def _meant(self, finish: str) -> str:
        """Read what was said, once it is whole; return how the request has ended."""
        if finish == "stop" and self.form is not None and self.said is None:
            try:
                self.said = self.form.said("".join(self.wrote))
            except OSError as error:
                self.error = error
                return "cancelled"
            heard = "".join(self.texts) + self.tail
            self.tail += self.said.text[len(heard) :]
        return "calls" if finish == "stop" and self.said is not None and self.said.calls else finish

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


def check(args: LlmGenerate) -> None:
    """Refuse a request that can't mean anything; raises OSError(EINVAL)."""
    if args.prompt and args.messages:
        raise OSError(errno.EINVAL, "llm_generate: give either prompt or messages, not both")
    if not (args.prompt or args.messages or args.context):
        raise OSError(
            errno.EINVAL,
            "llm_generate: give either prompt or messages, not empty; without both a context is "
            "continued, and none was named",
        )
    calling.check(args)
    if args.window:
        windows.check(args.window)
    if args.raw and args.messages:
        raise OSError(errno.EINVAL, "llm_generate: raw goes with prompt, not with messages")
    if args.schema is not None and args.grammar:
        raise OSError(errno.EINVAL, "llm_generate: give either schema or grammar, not both")
    if args.stop and (args.schema is not None or args.grammar):
        raise OSError(
            errno.EINVAL,
            "llm_generate: stop: a stop string could cut off what a schema or grammar promises; "
            "say in the grammar where the text ends",
        )
    if args.top_logprobs and not args.logprobs:
        raise OSError(errno.EINVAL, "llm_generate: top_logprobs: it goes with logprobs; ask both")
    if args.beams > 1:
        _check_beams(args)
    if args.resume and not args.key:
        raise OSError(errno.EINVAL, "llm_generate: resume needs the key of the first request")


def _check_beams(args: LlmGenerate) -> None:
    """Refuse what a beam search can't heed; raises OSError(EINVAL) that names it."""
    plain = _sampled(LlmGenerate())
    asked = {
        "stream": args.stream,
        "stop": bool(args.stop),
        "schema": args.schema is not None,
        "grammar": bool(args.grammar),
        **{name: value != plain[name] for name, value in _sampled(args).items()},
    }
    for name, wanted in asked.items():
        if wanted:
            raise OSError(
                errno.EINVAL,
                f"llm_generate: beams don't go with {name}: a beam search looks for the likeliest "
                "texts by the model's own probabilities, and has them when it ends",
            )


def _sampled(args: LlmGenerate) -> dict[str, object]:
    """Return what of a request shapes or draws tokens."""
    names = (
        "temperature", "frequency_penalty", "presence_penalty", "repeat_penalty", "logit_bias",
        "min_tokens", "watermark", "top_logprobs",
    )  # fmt: skip
    return {name: getattr(args, name) for name in names}
