"""Remotely: a request on a core that a provider computes: its chat as it is sent, and its reply.

    check(args)                      # can it be asked of a provider at all?
    chat = chat_of(args, turns, most)
    bill = bill_of(chat, image_tokens)
    sequence.sink = Reply(generation, chat, journal, elsewhere)

A context on such a core is its turns, which go out whole with each request. There are no tokens:
what comes are pieces of text, and a stream's index counts those.

What must hold: that a request is with a provider is on disk before it is; so the next kernel never
asks again for what this one may have asked for, and keeps the text that is on record.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from aiosd import again, calling, pictures
from aiosd.abi import inference as abi
from aiosd.bill import FRAME, Bill
from aiosd.endpoints import protocol as p
from aiosd.shape import Shape

if TYPE_CHECKING:
    from aiosd.engine.protocol import Beam, Token
    from aiosd.generation import Generation
    from aiosd.journal import Journal

log = logging.getLogger(__name__)

KILLED: Final = (
    "aiosd was restarted while a provider had it; what came after this text is lost, and it is not "
    "asked again since it would be paid for twice"
)

SOON: Final = 5.0
"""Seconds for which a request waits for its core, though another one would do it."""

_LOCAL: Final = (
    "raw", "beams", "watermark", "logit_bias", "min_tokens", "window", "top_logprobs",
)  # fmt: skip
"""What only a core can heed whose tokens are in our hands."""

Elsewhere = Callable[["Generation", int, str], None]
"""Has a request that a core refused done by another one, or ends it: errno and message."""


def check(args: abi.LlmGenerate) -> None:
    """Refuse what no provider can do; raises OSError(ENOTSUP) that names it."""
    plain = abi.LlmGenerate()
    for name in _LOCAL:
        asked = getattr(args, name)
        if asked != getattr(plain, name) and (name, asked) != ("window", "error"):
            raise OSError(
                errno.ENOTSUP,
                f"llm_generate: {name}: its core is a provider's, which has no such thing; leave "
                "it out, or ask for a core of class local",
            )


def asked(args: abi.LlmGenerate) -> list[abi.Turn]:
    """Return the turns that a request adds to its context."""
    return list(args.messages) or ([abi.Turn("user", args.prompt)] if args.prompt else [])


def chat_of(args: abi.LlmGenerate, turns: list[abi.Turn], most: int) -> p.Chat:
    """Return what is sent. turns: all of the chat. most: tokens of the reply."""
    return p.Chat(
        messages=[_message(turn) for turn in turns],
        max_tokens=most,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        min_p=args.min_p,
        seed=args.seed,
        stop=list(args.stop),
        frequency_penalty=args.frequency_penalty,
        presence_penalty=args.presence_penalty,
        repeat_penalty=args.repeat_penalty,
        logprobs=bool(args.logprobs),
        grammar=args.grammar,
        schema=args.schema,
        functions=[
            p.Function(f.name, f.description, _object(f.parameters)) for f in args.functions
        ],
        choice=args.tool_choice,
        parallel=args.tool_calls,
    )


def bill_of(chat: p.Chat, image_tokens: int) -> Bill:
    """Return what a chat costs at most: no token of a prompt stands for less than a byte.

    image_tokens: that a picture counts at most, however few its bytes are.
    """
    texts = [msgspec.structs.replace(message, images=[]) for message in chat.messages]
    size = sum(FRAME + len(msgspec.msgpack.encode(part)) for part in (*texts, *chat.functions))
    size += image_tokens * sum(len(message.images) for message in chat.messages)
    form = chat.schema if chat.schema is not None else chat.grammar
    return Bill(FRAME + size + len(msgspec.json.encode(form)), chat.max_tokens)


def _object(schema: dict[str, Any]) -> dict[str, Any]:
    return schema or {"type": "object"}


def _message(turn: abi.Turn) -> p.Message:
    calls = [
        p.Call(call.id, call.name, msgspec.json.encode(call.arguments).decode())
        for call in turn.calls
    ]
    images = [p.Image(image.media_type, image.data) for image in turn.images]
    return p.Message(turn.role, turn.content, calls, turn.call, turn.name, images)


class Reply:
    """Where a remote core reports what comes of a request (cores.reader.Reader)."""

    def __init__(
        self,
        generation: Generation,
        chat: p.Chat,
        journal: Journal,
        elsewhere: Elsewhere,
        another: Callable[[Generation], bool],
    ) -> None:
        """another: says whether there is another core that would do it."""
        self.chat: p.Chat | None = chat
        self._generation = generation
        self._journal = journal
        self._elsewhere = elsewhere
        self._another = another
        assert generation.bill is not None
        self._bill = generation.bill

    async def sending(self) -> None:
        """Put on record that the provider has it from now on. Raises OSError when that fails."""
        self._bill.sent = True
        self._journal.touch(self._generation)
        written = self._journal.flush()
        if written is None:
            raise OSError(errno.EAGAIN, "llm_generate: the disk is too far behind; ask again")
        await again.on_disk(written)
        if written.cancelled() or written.exception() is not None:
            raise OSError(errno.EIO, "llm_generate: the disk fails; nothing was asked")

    def unsent(self) -> None:
        """The provider has done nothing of it."""
        self._bill.unsent()
        if not self._generation.done:
            self._journal.touch(self._generation)

    def bears(self, seconds: float) -> bool:
        """Whether it may wait so long for its core."""
        left = self._generation.left
        if left is not None and left <= seconds:
            return False
        return seconds <= SOON or not self._another(self._generation)

    def metered(self, prompt: int, cached: int, output: int) -> None:
        """Take the provider's figures."""
        self._bill.metered(prompt, cached, output)

    def computed(self, kind: int, start: int, end: int, began: float) -> None:
        """It is begun."""
        self._generation.computed(kind, start, end, began)

    def token(self, token: Token) -> None:
        """Take a piece of text."""
        self._generation.token(token)

    def answered(self, finish: str, calls: list[p.Call]) -> None:
        """Take the end of a reply, and what it means."""
        generation = self._generation
        if generation.done:
            return
        self._bill.finished()
        if self._bill.disputed:
            log.warning(
                "request %d: core %s counts more tokens than it was allowed; that is not charged",
                generation.rid,
                generation.context.core.name,
            )
        try:
            generation.said = self._said(finish, calls)
        except ValueError as error:
            generation.cut(f"core {generation.context.core.name}: {error}")
            return
        if finish not in ("stop", "length", "calls"):
            generation.cut(f"core {generation.context.core.name}: the provider ended it: {finish}")
            return
        generation.reason = self._misshapen(finish)
        generation.complete("length" if finish == "length" else "stop")

    def cut(self, reason: str) -> None:
        """No more will come: what there is, is the reply."""
        self._generation.cut(reason)

    def refused(self, code: int, message: str) -> None:
        """Another core may do it."""
        if not self._generation.done:
            self._elsewhere(self._generation, code, message)

    def failed(self, code: int, message: str) -> None:
        """No core can do it."""
        self._generation.failed(code, message)

    def shared(self, count: int) -> None:
        """Nothing is shared."""

    def found(self, beams: list[Beam]) -> None:
        """No beams are searched."""

    def _said(self, finish: str, calls: list[p.Call]) -> calling.Said | None:
        """Return the calls; raises ValueError for what can't be called."""
        if not calls:
            return None
        names = {one.name for one in self._generation.args.functions}
        made = []
        for call in calls:
            try:
                arguments = msgspec.json.decode(call.arguments or "{}")
            except msgspec.DecodeError:
                arguments = None
            if call.name not in names or not isinstance(arguments, dict):
                raise ValueError(f"it calls {call.name[:64]!r} with {call.arguments[:64]!r}")
            made.append(calling.Wanted(call.name, arguments))
        return calling.Said("".join(self._generation.texts), made)

    def _misshapen(self, finish: str) -> str:
        """Say in which way a text is not what the schema asked for; "" when it is."""
        schema, text = self._generation.args.schema, "".join(self._generation.texts)
        if schema is None or finish != "stop":
            return ""
        try:
            value = msgspec.json.decode(text)
            wrong = Shape(schema, "schema").wrong(value)
        except msgspec.DecodeError as error:
            wrong = str(error)
        except OSError:  # a schema that is not looked into here: what can be read counts
            return ""
        return f"the provider's text does not satisfy the schema: {wrong}" if wrong else ""


def remember(generation: Generation) -> None:
    """Make what was asked and what came of it part of its context, once there is a reply."""
    context, text = generation.context, "".join(generation.texts)
    if generation.error is not None or not (text or generation.finish != "cancelled"):
        return
    wanted = generation.said.calls if generation.said is not None else []
    calls = [
        abi.TurnCall(calling.new_id(generation.rid, place), one.tool, one.arguments)
        for place, one in enumerate(wanted)
    ]
    turns = generation.asked or asked(generation.args)
    said = abi.Turn("assistant", text, calls)
    context.turns = pictures.kept([*context.turns, *turns, said])
