"""Preparation: what a request needs before its core can have it.

    preparation.check(caller, args)                 # may it be asked?
    context = preparation.context(process, args)    # what does it work on?
    await preparation.goal(generation)              # what are its tokens, what is to be done?

Then the context holds the prompt, and the sequence the goal to submit.

What must hold: a context changes between two turns of the event loop or not at all, so that the
journal never sees half of it.
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING

import msgspec

from aiosd import callforms, charge, kv, leading, pictures, remotely
from aiosd.abi import inference as abi
from aiosd.access import Caller
from aiosd.context import Context, Contexts
from aiosd.cores import offer
from aiosd.cores.core import Core
from aiosd.cores.dispatcher import Cores
from aiosd.cores.local import LocalCore
from aiosd.engine.prompt import common
from aiosd.engine.protocol import Goal, Sampling, Slide, Tokens
from aiosd.generation import Generation, check
from aiosd.order import Order
from aiosd.process import Process
from aiosd.room import Room

if TYPE_CHECKING:
    from aiosd.journal import Journal
    from aiosd.proc import ProcessTable
    from aiosd.quota import Quotas
    from aiosd.recall import Recall


class Preparation:
    """Prepares requests. policy: of the windows of fresh contexts, where a request says nothing."""

    def __init__(
        self,
        table: ProcessTable,
        cores: Cores,
        contexts: Contexts,
        room: Room,
        order: Order,
        quotas: Quotas,
        policy: str,
        journal: Journal,
    ) -> None:
        self.recall: Recall  # given by the kernel before the first request
        self.elsewhere: remotely.Elsewhere  # given by whoever takes requests on
        self._journal = journal
        self.policy = policy
        self._table = table
        self._cores = cores
        self._contexts = contexts
        self._room = room
        self._order = order
        self._quotas = quotas

    def check(self, caller: Caller, args: abi.LlmGenerate) -> None:
        """Refuse what can't be done, or is not the caller's to ask; raises OSError."""
        check(args)
        self.recall.check(caller, args)

    def context(self, process: Process, args: abi.LlmGenerate) -> Context:
        """Return the context to work on: a fresh one, or the caller's own that it names.

        Raises OSError for a core or a context that can't be had.
        """
        if not args.context:
            core, why = self._cores.choose(
                offer.wish(args, process.name, process.max_tokens), args.core
            )
            policy = args.window or (self.policy if isinstance(core, LocalCore) else "error")
            made = self._contexts.create(core, process.aid, process.uid, process.nice, policy)
            made.route = why
            return made
        if args.window:
            text = "llm_generate: window: it is for a fresh context; set_context changes another's"
            raise OSError(errno.EINVAL, text)
        context = self._contexts.get(args.context)
        if context.sequence.aid != process.aid:
            raise PermissionError(
                errno.EPERM,
                f"llm_generate: context {context.cid} belongs to agent {context.sequence.aid}; "
                "fork gives a copy of an agent's contexts",
            )
        self._come_home(context)
        if context.engaged:
            raise OSError(
                errno.EBUSY, f"llm_generate: context {context.cid} is at work on another request"
            )
        if args.core and args.core not in (context.core.name, context.core.base):
            raise OSError(
                errno.EINVAL,
                f"llm_generate: context {context.cid} is on core {context.core.name!r}",
            )
        if not context.core.accepting:
            context.core.check()
            raise OSError(
                errno.ENODEV,
                f"llm_generate: context {context.cid} is on core {context.core.name}, which is "
                "draining; use a fresh context on another one",
            )
        context.route = f"context {context.cid} is on core {context.core.name}"
        return context

    def _has_another(self, generation: Generation) -> bool:
        try:
            self._other(generation, [*generation.tried, generation.context.core.name])
        except OSError:
            return False
        return True

    def another(self, generation: Generation, tried: list[str]) -> Core:
        """Return another core for a request that those tried could not do; raises OSError."""
        core, why = self._other(generation, tried)
        route = f"{why}; {', '.join(tried)} could not do it"
        generation.context.route = generation.route = route
        return core

    def _other(self, generation: Generation, tried: list[str]) -> tuple[Core, str]:
        args, context = generation.args, generation.context
        if args.core:
            raise OSError(errno.ENODEV, f"core {args.core} was asked for by name")
        process = self._table.get(generation.aid)
        wish = offer.wish(args, process.name, process.max_tokens, context.turns)
        return self._cores.choose(wish, without=tried)

    def _come_home(self, context: Context) -> None:
        """Move a context whose core was removed to the one that has its name now, if any."""
        home = self._cores.find(context.core.name)
        if home is not None and home is not context.core:
            self._contexts.move(context, home)

    async def goal(self, generation: Generation) -> None:
        """Turn a request into tokens of its context and a goal, once those it comes after ended.

        Its sequence can be submitted then, in the same turn of the event loop. Raises OSError.
        """
        context, args = generation.context, generation.args
        sequence = context.sequence
        if args.recall:
            args, generation.recalled = await self.recall.add(sequence.uid, generation.aid, args)
        if not isinstance(context.core, LocalCore):
            await self._chat(generation, args)
            return
        if context.turns:  # it comes from a provider's core, where it was its turns
            turns = [*context.turns, *remotely.asked(args)]
            args = msgspec.structs.replace(args, prompt="", messages=turns)
        pictures.need(args.messages, context.core.name, False)
        await context.core.ready()
        args, tools = self._put(generation, args)
        grammar = await self._grammar(generation)
        read = await self._tokens(context, args, tools)
        system = [] if sequence.tokens else await leading.system(context.local, args, tools)
        await self._order.turn(generation, self._table.get(generation.aid).nice)
        await context.local.placement.settle(sequence)
        self._begins(generation, len(read.tokens))  # before turns go to make room for it
        await self._afford(generation, len(read.tokens))
        window = context.local.setup.n_ctx
        tokens = await self._room.enter(generation, read)
        if context.local.setup.n_ctx > window:  # it moved to a larger one: more may come
            await self._afford(generation, len(tokens))
        self._set(generation, tokens, grammar, system)

    async def _chat(self, generation: Generation, args: abi.LlmGenerate) -> None:
        """Turn a request into what its provider is sent; see `goal`."""
        context = generation.context
        remotely.check(args)
        generation.asked = remotely.asked(args)
        turns = [*context.turns, *generation.asked]
        if not turns:
            raise OSError(errno.EINVAL, "llm_generate: the context is empty; give a prompt")
        pictures.need(turns, context.core.name, self._cores.has(context.core, offer.VISION))
        await context.core.ready()
        process = self._table.get(generation.aid)
        await self._order.turn(generation, process.nice)
        context.core.check()
        generation.most = args.max_tokens or process.max_tokens or context.core.max_output
        chat = remotely.chat_of(args, turns, generation.most)
        generation.bill = remotely.bill_of(chat, context.core.image_tokens)
        amounts = charge.worst(generation, 0)
        _check_price(args, amounts["dollars"])
        await self._reserve(generation, amounts)
        sequence = context.sequence
        sequence.nice = self._table.get(generation.aid).nice
        sequence.sink = remotely.Reply(
            generation, chat, self._journal, self.elsewhere, self._has_another
        )

    def _put(self, generation: Generation, args: abi.LlmGenerate) -> tuple[abi.LlmGenerate, str]:
        """Return a request as its model is asked, and what its template is to offer."""
        context = generation.context
        fresh, loaded = not context.sequence.tokens, context.local.loaded
        native = loaded.calls if loaded is not None else ""
        style = callforms.style_of(args, fresh, native, context.window.offered)
        form = generation.form = callforms.form_of(args, style)
        if form is None:
            return args, ""
        if fresh:
            context.window.offered = callforms.digest(args) if form.tools else ""
        return form.put(args, fresh), form.tools if fresh else ""

    async def _grammar(self, generation: Generation) -> str:
        """Return the grammar that a request's output must follow, "" when there is none."""
        core, args, form = generation.context.local, generation.args, generation.form
        if form is not None and form.offer is not None:
            return await core.questions.compile("", "", msgspec.json.encode(form.offer).decode())
        if args.schema is None and not args.grammar:
            return ""
        schema = "" if args.schema is None else msgspec.json.encode(args.schema).decode()
        return await core.questions.compile(args.grammar, schema)

    async def _tokens(self, context: Context, args: abi.LlmGenerate, tools: str) -> Tokens:
        """Return the tokens that a request adds to its context; none when it only goes on."""
        if not args.prompt and not args.messages:
            await context.core.ready()
            return Tokens(0, [])
        messages = msgspec.json.encode(args.messages).decode() if args.messages else ""
        follow = bool(context.sequence.tokens)
        read = await context.local.questions.read(args.prompt, messages, args.raw, follow, tools)
        if not read.tokens:
            raise OSError(errno.EINVAL, "llm_generate: prompt: it has no tokens")
        return read

    async def _afford(self, generation: Generation, new: int) -> None:
        """Reserve what a request takes at worst, which is on disk when this returns.

        new: tokens that it adds to its context. Raises OSError(EDQUOT).
        """
        default = self._table.get(generation.aid).max_tokens  # may change before it is submitted
        generation.most = generation.args.max_tokens or default
        amounts = charge.worst(generation, new)
        _check_price(generation.args, amounts["dollars"])
        lacking = self._quotas.lacking(generation.rid, "kv_bytes", amounts["kv_bytes"])
        kv.make_room(self._contexts.of(generation.aid), lacking)
        await self._reserve(generation, amounts)

    async def _reserve(self, generation: Generation, amounts: dict[str, int]) -> None:
        reserved = self._quotas.reserve(generation.rid, amounts, "llm_generate")
        if reserved is not None:
            await asyncio.shield(reserved)

    def _begins(self, generation: Generation, new: int) -> Slide | None:
        """Ask all that may be refused, before anything is changed; return how its context slides.

        new: tokens that it adds to its context. Raises OSError.
        """
        context, beams = generation.context, generation.args.beams
        context.core.check()
        if beams > context.local.setup.slots:
            raise OSError(
                errno.EINVAL,
                f"llm_generate: beams: {beams} take as many slots, core {context.core.name} "
                f"has {context.local.setup.slots}; ask for fewer, or give the core more",
            )
        if not context.sequence.tokens and not new:
            raise OSError(errno.EINVAL, "llm_generate: the context is empty; give a prompt")
        return self._room.slide(context)

    def _set(
        self, generation: Generation, tokens: list[int], grammar: str, system: list[int]
    ) -> None:
        """Append new tokens to the context and say what to do; system: what leading.py found."""
        context, args = generation.context, generation.args
        process = self._table.get(generation.aid)
        slide = self._begins(generation, len(tokens))
        generation.fit()
        sequence, window = context.sequence, context.local.setup.n_ctx
        length = len(sequence.tokens) + len(tokens)
        sampled = 0 if tokens else sequence.reopen(context.local.setup.grid)
        generation.cached_tokens = sequence.kv
        generation.prompt_tokens = length
        wanted = generation.most or window
        sequence.tokens.extend(tokens)
        context.turns = []
        if system:
            sequence.public = common(sequence.tokens, system)
        sequence.nice = process.nice
        sequence.sink = generation
        generation.goal = sequence.goal = Goal(
            prompt_len=length,
            max_tokens=wanted,
            sampling=_sampling(args),
            stop=list(args.stop),
            sampled=sampled,
            grammar=grammar,
            beams=args.beams,
            before=context.window.before,
            slide=slide,
        )


def _check_price(args: abi.LlmGenerate, nano: int) -> None:
    """Raise OSError(EDQUOT) when a request may cost more than it allows; nano: at worst."""
    if args.max_price is not None and nano > args.max_price * 1e9:
        raise OSError(
            errno.EDQUOT,
            f"llm_generate: max_price: it may cost ${nano / 1e9:.6g} on this core, "
            f"${args.max_price:g} is allowed; ask for fewer max_tokens, or allow more",
        )


def _sampling(args: abi.LlmGenerate) -> Sampling:
    """Return how a request wants its tokens chosen."""
    return Sampling(
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        min_p=args.min_p,
        seed=args.seed,
        frequency_penalty=args.frequency_penalty,
        presence_penalty=args.presence_penalty,
        repeat_penalty=args.repeat_penalty,
        penalty_window=args.penalty_window,
        logit_bias=args.logit_bias,
        min_tokens=args.min_tokens,
        logprobs=args.logprobs,
        watermark=args.watermark,
        top_logprobs=args.top_logprobs,
    )
