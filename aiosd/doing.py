"""What an agent's requests do just now, for the process table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aiosd.context import Context, runs
from aiosd.generation import Generation
from aiosd.process import Activity


def activity(
    generations: Sequence[Generation],
    contexts: Sequence[Context],
    tokens_per_s: float,
    channel: Callable[[int], str],
) -> Activity:
    """Describe an agent's generations: the one that is furthest on speaks for it.

    channel: what a request waits for before it may begin, "" when it may.
    """
    kv_ram = sum(context.kv_ram for context in contexts)
    kv_disk = sum(context.kv_disk for context in contexts)
    best = min((_rank(generation, channel) for generation in generations), default=None)
    if best is None:
        return Activity(kv_ram=kv_ram, kv_disk=kv_disk)
    order, place, waiting, _, generation = best
    share, due = generation.context.core.queue.standing.share(generation.aid)
    return Activity(
        state="RQS"[order],
        core=generation.context.core.name,
        slot=generation.context.sequence.slot,
        waiting=waiting,
        queue=place,
        tokens_per_s=tokens_per_s,
        kv_ram=kv_ram,
        kv_disk=kv_disk,
        tokens_in=sum(g.prompt_tokens - g.cached_tokens for g in generations),
        tokens_out=sum(len(g.tokens) for g in generations),
        share=share,
        due=due,
    )


def _rank(
    generation: Generation, channel: Callable[[int], str]
) -> tuple[int, int, str, int, Generation]:
    """Rank what a generation does: 0 running, 1 queued, 2 asleep; its place; what it awaits."""
    context = generation.context
    cid, core = context.cid, context.core
    if runs(context):
        return (0, -1, "", cid, generation)
    if cid in core.queue.policy and cid not in core.queue.policy.running:
        return (1, core.queue.standing.place(cid), f"core:{core.name}", cid, generation)
    if cid in core.queue.policy:
        return (1, 0, f"core:{core.name}", cid, generation)
    why = "reader" if "reader" in context.sequence.holds else f"core:{core.name}"
    return (2, -1, channel(generation.rid) or why, cid, generation)
