"""One request with tools: what it has come to, who reads along, and how it ends before its time.

`check_tools` says whether it can be meant, `first_turns` and `answer` what goes to the model and
what of it goes to the caller; `ToolTurns` carries it out.

What must hold: it ends exactly once; its chunks are its rounds, whoever reads them and whenever.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from aiosd import calling
from aiosd.abi import inference as abi
from aiosd.access import Caller
from aiosd.deadline import Deadline
from aiosd.generation import check
from aiosd.keys import Kept
from aiosd.toolrounds import Round

if TYPE_CHECKING:
    from aiosd.session import Stream


PLAIN: Final = abi.LlmGenerate()


class Told(msgspec.Struct, frozen=True, array_like=True):
    """The answer that is kept of a run: its reply, and its stream."""

    reply: abi.Generation
    chunks: list[abi.Chunk]


class Quiet:
    """Who asks for a round: nobody reads along, and the run may end it."""

    def __init__(self) -> None:
        self.on_cancel: Callable[[str], None] | None = None

    async def send(self, chunk: object) -> None:
        """Never called: rounds are not streamed."""


class Run:
    """One request with tools. Owned by the event loop's thread.

    chunks: one for each round that has ended. finish, reason and text: how it ended.
    work: what it waits for and what ends when it is cancelled. context: the last known, 0: none.
    """

    def __init__(self, caller: Caller, aid: int, args: abi.LlmGenerate) -> None:
        self.caller = caller
        self.aid = aid
        self.args = args
        self.kept: Kept | None = None
        self.submitted = self.ended = time.monotonic()
        self.rounds: list[abi.Generation] = []
        self.calls: list[abi.ToolCall] = []
        self.chunks: list[abi.Chunk] = []
        self.finish = self.reason = self.text = ""
        self.parsed: Any = None
        self.error: OSError | None = None
        self.context = args.context
        self.functions = {one.name for one in args.functions}
        self._deadline = Deadline(args.deadline, lambda: self.cancel("deadline"))
        self.asker = Quiet()
        self.stop = asyncio.Event()  # it was cancelled
        self.over = asyncio.Event()
        self._news = asyncio.Event()

    # What it has come to.

    @property
    def tokens(self) -> int:
        """Tokens of the rounds that have ended."""
        return sum(len(reply.token_ids) for reply in self.rounds)

    def took(self, reply: abi.Generation) -> None:
        """A round has ended."""
        self.rounds.append(reply)
        self.context = reply.context

    def called(self, calls: list[abi.ToolCall]) -> None:
        """The calls of the last round have been made."""
        self.calls += calls
        self.tell(calls=calls)

    def again(self, known: Round) -> None:
        """A round ended under an earlier kernel."""
        self.took(known.reply)
        self.called(known.calls)
        seconds = max((call.seconds for call in known.calls), default=0.0)
        self.submitted -= known.reply.timing.turnaround_s + seconds
        self.spent(known.reply.timing.turnaround_s + seconds)

    def tell(self, text: str = "", calls: Sequence[abi.ToolCall] = ()) -> None:
        """Let readers know of the last round."""
        last = self.rounds[-1]
        index = self.tokens - len(last.token_ids)
        chunk = abi.Chunk(
            text,
            last.token_ids,
            index,
            last.logprobs,
            last.request,
            list(calls),
            top_logprobs=last.top_logprobs,
        )
        self.chunks.append(chunk)
        self._wake()

    def end(self, finish: str, reason: str = "", text: str = "", parsed: Any = None) -> None:
        """It ends so; the last round is told."""
        self.finish, self.reason, self.text, self.parsed = finish, reason, text, parsed
        if self.rounds and len(self.chunks) < len(self.rounds):
            self.tell(text)

    def result(self) -> abi.Generation:
        """Return the reply; raises the error that ended it."""
        if self.error is not None:
            raise self.error
        first, last = self.rounds[0], self.rounds[-1]
        return abi.Generation(
            text=self.text,
            token_ids=[token for each in self.rounds for token in each.token_ids],
            finish_reason=self.finish,
            usage=self._usage(),
            timing=abi.Timing(
                first.timing.waiting_s,
                self.ended - self.submitted,
                first.timing.first_token_s,
            ),
            context=last.context,
            core=last.core,
            request=last.request,
            reason=self.reason,
            exact=all(each.exact for each in self.rounds),
            parsed=self.parsed,
            logprobs=[value for each in self.rounds for value in each.logprobs],
            recalled=first.recalled,
            route=first.route,
            calls=self.calls,
            top_logprobs=[row for each in self.rounds for row in each.top_logprobs],
        )

    def _usage(self) -> abi.TokenUsage:
        parts = [each.usage for each in self.rounds]
        return abi.TokenUsage(
            prompt_tokens=sum(part.prompt_tokens for part in parts),
            completion_tokens=sum(part.completion_tokens for part in parts),
            cached_tokens=sum(part.cached_tokens for part in parts),
            dollars=sum(part.dollars for part in parts),
        )

    # Its end before its time.

    def cancel(self, reason: str) -> None:
        """End it with what there is."""
        if self.stop.is_set() or self.over.is_set():
            return
        self.reason = reason
        self.stop.set()
        if self.asker.on_cancel is not None:
            self.asker.on_cancel(reason)

    def stop_clock(self) -> None:
        """Stop counting towards the deadline (its agent is suspended)."""
        self._deadline.stop()

    def start_clock(self) -> None:
        """Count towards the deadline, if there is one."""
        self._deadline.start()

    def spent(self, seconds: float) -> None:
        """Count time that went by under an earlier kernel towards the deadline."""
        if self._deadline.left is not None:
            self._deadline.left = max(0.0, self._deadline.left - seconds)

    def close(self) -> None:
        """It is over: whoever waits is answered."""
        self._deadline.close()
        self.over.set()
        self._wake()

    # Its readers.

    async def read(self, resume: int, stream: Stream) -> None:
        """Send the rounds as they end, from the one that begins with token `resume` on."""
        place = 0
        while True:
            while place < len(self.chunks):
                chunk = self.chunks[place]
                place += 1
                if chunk.index >= resume:
                    await stream.send(chunk)
                elif chunk.index + len(chunk.token_ids) > resume:
                    raise _misplaced(resume)
            if self.over.is_set():
                break
            self._news.clear()
            await self._news.wait()
        if self.error is None and resume > self.tokens:
            raise _misplaced(resume)

    def _wake(self) -> None:
        self._news.set()


def _misplaced(resume: int) -> OSError:
    return OSError(
        errno.EINVAL,
        f"llm_generate: resume: no round begins with token {resume}; give the index and tokens of "
        "the last chunk received",
    )


def check_plain(args: abi.LlmGenerate) -> None:
    """Refuse fields about tools where none are offered; raises OSError(EINVAL)."""
    for name in ("tool_rounds", "tool_answer"):
        if getattr(args, name) != getattr(PLAIN, name):
            raise OSError(errno.EINVAL, f"llm_generate: {name}: it needs tools; name some")
    for name in ("tool_choice", "tool_calls"):
        if not args.functions and getattr(args, name) != getattr(PLAIN, name):
            text = f"llm_generate: {name}: it needs tools or functions; name some"
            raise OSError(errno.EINVAL, text)
    calling.check_size(args.functions)


def check_tools(args: abi.LlmGenerate) -> None:
    """Refuse a request with tools that can't mean anything; raises OSError(EINVAL)."""
    check(args)
    calling.check_size(args.functions)


async def repeat(kept: bytes, args: abi.LlmGenerate, stream: Stream) -> abi.Generation:
    """Give a kept answer again; a stream gets the rounds that it has not received."""
    told = msgspec.msgpack.decode(kept, type=Told)
    if args.stream:
        for chunk in told.chunks:
            if chunk.index >= args.resume:
                await stream.send(chunk)
    return told.reply
