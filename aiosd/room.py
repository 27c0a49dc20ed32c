"""Room: what is done when a context's window is full, by its policy.

A prompt that does not fit (`enter`) and a generation that has used the last cell (`go_on`) ask for
room. error: there is none. truncate: the oldest turns go. slide: the KV shifts, in the worker; here
only a record that has grown too long begins anew. summarize: the oldest turns are compressed, and
kept where get_context finds them. expand: the context moves to a larger slot class.

What must hold: a sequence that begins anew is settled; a context changes between two turns of the
event loop or not at all, so that the journal never sees half of it; what is done follows from the
context alone, so that it is the same in a solo run.
"""

from __future__ import annotations

import errno
import logging
from bisect import bisect_left
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import msgspec

from aiosd import summary
from aiosd import window as windows
from aiosd.abi import inference as abi
from aiosd.access import Caller
from aiosd.context import Context, Contexts
from aiosd.cores.dispatcher import Cores
from aiosd.cores.local import LocalCore
from aiosd.engine import runs
from aiosd.engine.prompt import common
from aiosd.engine.protocol import Goal, Slide, Tokens
from aiosd.originals import Original, Originals
from aiosd.window import Window

if TYPE_CHECKING:
    from aiosd.events import Events
    from aiosd.generation import Generation

log = logging.getLogger(__name__)

MOST_TURNS: Final = 100  # that get_context shows at a time
CHARACTER: Final = 4  # tokens that may belong to one character, at most


Think = Callable[[Context, list[abi.Turn], int], Awaitable[str]]
"""Has the model of a context's core answer a chat, for its agent, in at most so many tokens."""


class Room:
    """Makes room in contexts. think: how the model is asked; originals: where turns are kept."""

    def __init__(
        self,
        cores: Cores,
        contexts: Contexts,
        events: Events,
        originals: Originals,
        think: Think,
    ) -> None:
        self._cores = cores
        self._contexts = contexts
        self._events = events
        self._originals = originals
        self._think = think

    async def enter(self, generation: Generation, read: Tokens) -> list[int]:
        """Make room for a prompt; return the tokens that are to follow those of the context.

        Raises OSError: ENOSPC when there is no way, EINVAL and ENOMEM as `expand`.
        """
        context, args = generation.context, generation.args
        generation.fit()
        trial, start = Window.of(context.window.meta()), len(context.sequence.tokens)
        lead = 0 if args.raw or not start else trial.lead
        trial.read(start, start + len(read.tokens), lead=lead, head=read.head)
        if not start:
            trial.lead = read.lead
        return await self._fit(context, trial, read.tokens, raw=args.raw)

    async def go_on(self, generation: Generation, goal: Goal) -> Goal:
        """Make room for a generation that has none left; return what it goes on with.

        Raises OSError as `enter`.
        """
        context = generation.context
        sequence, tokens = context.sequence, context.sequence.tokens
        await context.local.placement.settle(sequence)
        generation.fit()
        if sequence.length >= context.local.setup.n_ctx:
            trial = Window.of(context.window.meta())
            await self._fit(context, trial, [], raw=generation.args.raw)
        if sequence.tokens is not tokens:
            goal = msgspec.structs.replace(
                goal,
                prompt_len=len(sequence.tokens),
                said=list(generation.tokens),
                sampled=0,
                before=context.window.before,
            )
        generation.goal = msgspec.structs.replace(goal, slide=self.slide(context))
        return generation.goal

    def slide(self, context: Context) -> Slide | None:
        """Return how a context slides, None when it does something else.

        Raises OSError(EINVAL) for a core that can't.
        """
        if context.window.policy != "slide":
            return None
        core = context.local
        if core.loaded is not None and not core.loaded.shifts:
            raise OSError(
                errno.EINVAL,
                f"policy slide: the memory of core {core.name}'s model can't be shifted; "
                "use truncate or summarize",
            )
        return windows.sliding(context.window, core.setup.n_ctx, core.setup.grid)

    async def _fit(
        self, context: Context, trial: Window, new: list[int], *, raw: bool
    ) -> list[int]:
        """Do what the policy says. raw: the request is no turn of a chat."""
        policy, size = trial.policy, context.local.setup.n_ctx
        if policy == "slide":
            return self._slide(context, trial, new)
        if context.sequence.length + len(new) < size:
            context.window = trial
            return new
        if policy == "error":
            raise self._full(context, new)
        if policy in ("expand", "expand-yarn"):
            need = context.sequence.length + len(new) + 1
            return await self._expand(context, trial, new, need, yarn=policy == "expand-yarn")
        if policy == "summarize":
            try:
                return await self._summarize(context, trial, new, raw=raw)
            except OSError as error:
                if context.gone:
                    raise
                text = f"no summary, the oldest turns went without one: {error.strerror or error}"
                log.warning("context %d: %s", context.cid, text)
                context.sequence.note = text
        return await self._truncate(context, trial, new, raw=raw)

    def _full(self, context: Context, new: list[int]) -> OSError:
        core = context.local
        return OSError(
            errno.ENOSPC,
            f"llm_generate: the prompt has {len(new)} tokens, context {context.cid} holds "
            f"{context.sequence.length}, the window of core {core.name} is {core.setup.n_ctx}; "
            "shorten the prompt, use a fresh context, or let the window make room (set_context)",
        )

    # Truncate.

    async def _truncate(
        self, context: Context, trial: Window, new: list[int], *, raw: bool
    ) -> list[int]:
        """Let the oldest turns go."""
        held = runs.window(context.sequence.tokens + new, context.sequence.history)
        kept, inside = await self._kept(context, trial, held, new)
        opening = await self._opening(context, trial, kept) if inside and not raw else []
        await context.local.placement.settle(context.sequence)
        trial.truncated += 1
        return self._restart(context, trial, kept, new, opening)

    async def _opening(self, context: Context, trial: Window, kept: list[int]) -> list[int]:
        """Return what makes a turn of a chat of the part of one that stays: its opening words."""
        first = kept[bisect_left(kept, trial.head)]
        role = next(turn.role for turn in reversed(trial.turns) if turn.start <= first)
        if role == windows.REPLY:
            opening = await self._chat(context, summary.GO_ON)
        else:
            one, other = [await self._chat(context, word) for word in ("a", "b")]
            opening = one[: common(one, other)]
        return opening[0 if trial.head else trial.lead :]

    async def _chat(self, context: Context, words: str) -> list[int]:
        turns = msgspec.json.encode([abi.Turn("user", words)]).decode()
        return await context.local.questions.tokenize("", turns, False, True)

    async def _kept(
        self,
        context: Context,
        trial: Window,
        held: list[int],
        new: list[int],
        *,
        extra: int = 0,
        follows: bool = False,
    ) -> tuple[list[int], bool]:
        """Return which tokens stay, beginning with a whole character, and if within a turn."""
        size, tokens = context.local.setup.n_ctx, context.sequence.tokens + new
        kept, inside = windows.truncation(trial, held, size, extra=extra, follows=follows)
        if inside:
            system = bisect_left(kept, trial.head)
            begun = kept[system : system + CHARACTER]
            pieces = await context.local.questions.pieces([tokens[at] for at in begun])
            del kept[system : system + windows.whole(pieces)]
        return kept, inside

    # Summarize.

    async def _summarize(
        self, context: Context, trial: Window, new: list[int], *, raw: bool
    ) -> list[int]:
        """Compress the oldest turns; they are kept as they were."""
        core, tokens = context.local, context.sequence.tokens + new
        held = runs.window(tokens, context.sequence.history)
        extra = summary.share(core.setup.n_ctx) + summary.FRAME
        kept, _ = await self._kept(context, trial, held, new, extra=extra, follows=not raw)
        text = await self._summary(context, trial, held, kept, tokens)
        inserted = await self._inserted(context, trial, text, raw=raw)
        parts = await self._parts(context, trial, held, kept, tokens)
        await self._originals.save(context.cid, parts)
        await core.placement.settle(context.sequence)
        if context.gone:
            raise FileNotFoundError(errno.ENOENT, f"context {context.cid} has gone meanwhile")
        trial.summarized += 1
        return self._restart(context, trial, kept, new, inserted)

    async def _parts(
        self, context: Context, trial: Window, held: list[int], kept: list[int], tokens: list[int]
    ) -> list[Original]:
        """Return what goes, turn by turn."""
        parts = []
        for turn, gone in windows.dropped(trial, held, kept, len(tokens)):
            ids = [tokens[at] for at in gone]
            text = await self._text(context.local, ids)
            parts.append(Original(trial.before + gone[0], turn.number, turn.role, ids, text))
        return parts

    async def _summary(
        self, context: Context, trial: Window, held: list[int], kept: list[int], tokens: list[int]
    ) -> str:
        """Have the model summarize what goes, the last summary included."""
        core, size, stay = context.local, context.local.setup.n_ctx, set(kept)
        going = [tokens[at] for at in held if at not in stay]
        first, last = summary.excerpt(going, size // 2)
        text = await self._text(core, first)
        if last:
            text += summary.LEFT_OUT + await self._text(core, last)
        found = await self._think(context, summary.question([("", text)]), summary.share(size))
        if not found.strip():
            raise OSError(errno.EIO, "the model summarized it in no words")
        return found

    async def _inserted(
        self, context: Context, trial: Window, text: str, *, raw: bool
    ) -> list[int]:
        """Return the tokens that stand in place of what goes."""
        core = context.local
        if raw:
            return await core.questions.tokenize(summary.passage(text), "", True, True)
        asked = await self._chat(context, summary.words(text))
        said = await core.questions.tokenize(summary.REPLY, "", True, True)
        return [*asked[0 if trial.head else trial.lead :], *said]

    async def _text(self, core: LocalCore, tokens: list[int]) -> str:
        return b"".join(await core.questions.pieces(tokens)).decode("utf-8", "replace")

    # Slide.

    def _slide(self, context: Context, trial: Window, new: list[int]) -> list[int]:
        """Let it slide when it comes to that; begin anew where its record would be too long."""
        sequence, slide = context.sequence, self.slide(context)
        assert slide is not None
        known = len(sequence.tokens)
        if known + len(new) < slide.limit:
            context.window = trial
            return new
        held = windows.slid(runs.window(sequence.tokens, sequence.history), slide)
        if len(held) + len(new) >= slide.limit:
            raise OSError(
                errno.ENOSPC,
                f"llm_generate: the prompt has {len(new)} tokens, a window of {slide.window} "
                f"slides over {slide.limit} at most; shorten it",
            )
        trial.slid += 1
        return self._restart(context, trial, [*held, *range(known, known + len(new))], new)

    # Expand.

    async def _expand(
        self, context: Context, trial: Window, new: list[int], tokens: int, *, yarn: bool
    ) -> list[int]:
        """Move to the smallest slot class that holds so many tokens."""
        home = self._cores.find(context.core.base)
        base = home if isinstance(home, LocalCore) else context.local
        await base.ready()
        assert base.loaded is not None
        trained = max(base.loaded.n_ctx_train, base.setup.n_ctx)
        size = windows.larger(base.setup.n_ctx, tokens, trained, beyond=yarn)
        core = self._cores.widened(base, size, yarn=size > trained)
        core.awaited += 1
        try:
            await core.ready()
            return await self._move(context, core, trial, new)
        finally:
            core.awaited -= 1
            self._cores.tidy(core)

    async def _move(
        self, context: Context, core: LocalCore, trial: Window, new: list[int]
    ) -> list[int]:
        """Move to another core: with the KV where that fits, else with the tokens alone."""
        sequence, old = context.sequence, context.local
        fits = not (old.setup.yarn or core.setup.yarn)  # scaled otherwise, it would be another KV
        await old.placement.settle(sequence)
        if fits:
            await old.placement.save(sequence)
        old.placement.leave(sequence)
        await old.placement.settle(sequence)
        if context.gone:
            raise FileNotFoundError(errno.ENOENT, f"context {context.cid} has gone meanwhile")
        trial.expanded += 1
        if fits:
            context.window = trial
        else:
            kept = runs.window(sequence.tokens + new, sequence.history)
            new, context.fingerprint = self._restart(context, trial, kept, new), ""
        self._contexts.move(context, core)
        self._events.emit("context.moved", sequence.aid, context=context.cid, core=core.name)
        return new

    # All.

    def _restart(
        self,
        context: Context,
        trial: Window,
        kept: list[int],
        new: list[int],
        inserted: list[int] | None = None,
    ) -> list[int]:
        """Begin a context anew with the tokens at these indices; return those of the prompt."""
        sequence, tokens = context.sequence, context.sequence.tokens + new
        known = len(sequence.tokens)
        context.window = trial
        context.restart(kept, tokens, inserted or ())
        fresh = [tokens[at] for at in kept if at >= known]  # they are appended when it is submitted
        del sequence.tokens[len(sequence.tokens) - len(fresh) :]
        self._events.emit(
            "context.full",
            sequence.aid,
            context=context.cid,
            policy=trial.policy,
            dropped=len(tokens) - len(kept),
            kept=len(kept),
        )
        return fresh

    # System calls.

    async def sys_get_context(self, caller: Caller, args: abi.GetContext) -> abi.Context:
        """Describe a context, and show turns of it."""
        context = self._contexts.get(args.context)
        if not args.first_turn:
            return context.row()
        last = args.last_turn or args.first_turn
        if not args.first_turn <= last < args.first_turn + MOST_TURNS:
            raise OSError(
                errno.EINVAL,
                f"get_context: turns {args.first_turn} to {last}: give the first, then the last, "
                f"at most {MOST_TURNS} of them",
            )
        return msgspec.structs.replace(
            context.row(), turns=await self._turns(context, args.first_turn, last)
        )

    async def _turns(self, context: Context, first: int, last: int) -> list[abi.ContextTurn]:
        """Return a context's turns: first what was summarized of them, then what it holds."""
        if context.turns:
            return [
                abi.ContextTurn(number, turn.role, turn.content, [])
                for number, turn in enumerate(context.turns, 1)
                if first <= number <= last
            ]
        found = {
            part.at: abi.ContextTurn(
                part.number, part.role, part.text, part.tokens, summarized=True
            )
            for part in await self._originals.read(context.cid, first, last)
        }
        window, tokens = context.window, list(context.sequence.tokens)
        await context.local.ready()
        ends = [*(turn.start for turn in window.turns[1:]), len(tokens)]
        for turn, end in zip(list(window.turns), ends, strict=False):
            if first <= turn.number <= last:
                held = range(turn.start, min(end, len(tokens)))  # its tokens may be on their way
                ids = [tokens[at] for at in held if at not in window.aside]
                text = await self._text(context.local, ids)
                at = turn.start if turn.start < window.head else window.before + turn.start
                found[at] = abi.ContextTurn(turn.number, turn.role, text, ids)
        return [found[at] for at in sorted(found)]

    async def sys_exp_context(self, caller: Caller, args: abi.ExpContext) -> abi.Context:
        """Move a context to a larger window; durable when answered."""
        context = self._contexts.get(args.context)
        if context.engaged:
            raise OSError(
                errno.EBUSY, f"exp_context: context {context.cid} is at work; wait for its request"
            )
        if context.local.setup.n_ctx < args.tokens:
            context.busy = True  # nobody else may touch it meanwhile
            self._cores.count(context.core, 1)
            try:
                trial = Window.of(context.window.meta())
                await self._expand(context, trial, [], args.tokens, yarn=args.yarn)
            finally:
                context.busy = False
                self._cores.count(context.core, -1)
            await self._contexts.keep(context)
        return context.row()

    async def sys_set_context(self, caller: Caller, args: abi.SetContext) -> abi.Context:
        """Choose what a context does when its window is full; durable when answered."""
        context = self._contexts.get(args.context)
        windows.check(args.policy)
        if args.policy != "error":
            context.local  # noqa: B018 (a provider's makes no room)
        before, context.window.policy = context.window.policy, args.policy
        try:
            self.slide(context)
        except OSError:
            context.window.policy = before
            raise
        await self._contexts.keep(context)
        return context.row()
