"""Asking again: what a client gets that lost its connection, or its kernel, and asks once more.

The same key stands for the same request. While that runs, its stream goes on from any token; once
it has ended, its answer is repeated.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import msgspec

from aiosd.abi import inference as abi

if TYPE_CHECKING:
    from aiosd.generation import Generation


class Asker(Protocol):
    """Who waits for a generation; a Stream of the dispatcher is one. on_cancel: ends it early."""

    on_cancel: Callable[[str], None] | None

    async def send(self, chunk: object) -> None:
        """Take a chunk; returns when there is room for another one."""


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """A keyed request that has ended: its reply, and the text of each of its tokens.

    certain: of how many tokens it is certain that whoever read them read these; -1: of all.
    """

    reply: abi.Generation
    texts: list[str]
    certain: int = -1


def body(args: abi.LlmGenerate) -> bytes:
    """Return what a key stands for: the request, from wherever its stream is read."""
    return msgspec.msgpack.encode(msgspec.structs.replace(args, resume=0))


async def on_disk(written: asyncio.Future[None] | None) -> None:
    """Return when something is durable, or can't be: a disk that fails stops no generation."""
    if written is not None:
        await asyncio.wait([written])


async def catch_up(generation: Generation, resume: int) -> None:
    """Let a request that an earlier kernel began come to where its caller has read already.

    Raises OSError: EINVAL when the caller can't have read so far, EIO when this kernel can't
    compute those very tokens again.
    """
    if generation.known < 0 and resume > len(generation.tokens):
        raise _ahead(resume, len(generation.tokens))
    if generation.preparing is not None:
        await asyncio.wait([generation.preparing])
    if generation.error is None and 0 <= generation.certain < resume:
        remote = generation.bill is not None
        raise _changed(resume, generation.certain, generation.context.core.name, remote=remote)
    await generation.news(resume - 1)
    if len(generation.tokens) < resume and generation.error is None:
        raise _ahead(resume, len(generation.tokens))


async def repeat(kept: bytes, args: abi.LlmGenerate, stream: Asker) -> abi.Generation:
    """Give a kept answer again; a stream gets what it has not received in one chunk."""
    answer = msgspec.msgpack.decode(kept, type=Answer)
    tokens, count = answer.reply.token_ids, len(answer.texts) - 1  # the last text is what is behind
    if 0 <= answer.certain < args.resume:
        raise _changed(args.resume, answer.certain, answer.reply.core, remote=not tokens)
    if args.resume > count:
        raise _ahead(args.resume, count)
    if args.stream and answer.texts[args.resume :]:
        text = "".join(answer.texts[args.resume :])
        logprobs = answer.reply.logprobs[args.resume :]
        pieces = 0 if tokens else count - args.resume
        ids = tokens[args.resume :]
        top = answer.reply.top_logprobs[args.resume :]
        texts = answer.texts[args.resume : count] if args.logprobs else []
        chunk = abi.Chunk(
            text, ids, args.resume, logprobs, pieces=pieces, top_logprobs=top, texts=texts
        )
        await stream.send(chunk)
    return answer.reply


def _changed(resume: int, certain: int, core: str, *, remote: bool) -> OSError:
    if remote:
        return OSError(
            errno.EIO,
            f"llm_generate: aiosd was restarted with {certain} pieces of this reply on record, its "
            f"caller has read {resume}, and core {core} is not asked again since it would be paid "
            "for twice; give resume 0 for the text that is on record",
        )
    return OSError(
        errno.EIO,
        f"llm_generate: aiosd was restarted with {certain} tokens of this request on record, its "
        f"caller has read {resume}, and core {core} could not compute the others again exactly; "
        "ask anew with another key, or use a core whose `exact` is yes",
    )


def _ahead(resume: int, count: int) -> OSError:
    return OSError(
        errno.EINVAL,
        f"llm_generate: resume: {resume} is past the {count} tokens that there are; "
        "give the index of the first one not yet received",
    )
