"""KV: what an agent's contexts hold of it, and how room is made under a quota.

An agent that a quota on kv_bytes leaves no room gets it from its own idle contexts, the longest
unused first: their KV goes, their tokens stay, and what is needed again is computed again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiosd.cores.sequence import Place

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiosd.context import Context


def held(context: Context) -> int:
    """Return the bytes that a context's KV takes in all tiers; what is on its way out is gone."""
    if _leaves(context):
        return sum(snapshot.size for snapshot in context.sequence.snapshots)
    return context.kv_ram + context.kv_disk


def marked(context: Context) -> int:
    """Return the bytes of a context's named snapshots."""
    return sum(snapshot.size for snapshot in context.sequence.snapshots if snapshot.named)


def make_room(contexts: Iterable[Context], lacking: int) -> None:
    """Let go of the KV of idle contexts until so many bytes are free, or none is left."""
    idle = [each for each in contexts if not each.busy and each.core.bytes_per_token]
    for context in sorted(idle, key=lambda context: context.used):
        if lacking <= 0:
            return
        before = held(context)
        context.local.placement.let_go(context.sequence)
        lacking -= before - held(context)


def _leaves(context: Context) -> bool:
    sequence = context.sequence
    leaving = sequence.place is Place.LEAVING
    return leaving and not context.local.placement.leaving_to(sequence)
