"""Charges: what a request takes, at worst before it is on its core and in truth when it has ended.

Tokens are those of the prompt that its context or others do not hold already, and those of the
output; at worst the whole prompt counts, and the output is as long as it may be. A request that
failed before it began costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiosd.accounts import Use, line_of

if TYPE_CHECKING:
    from aiosd.generation import Generation
    from aiosd.proc import ProcessTable


def worst(generation: Generation, new: int) -> dict[str, int]:
    """Return what a request takes at worst; new: tokens that it adds to its context."""
    context = generation.context
    window, core = context.core.window, context.core
    prompt, output = len(context.sequence.tokens) + new, generation.most or window
    cells = min(prompt + output, window) * max(1, generation.args.beams)
    return {
        "tokens": prompt + output,
        "dollars": core.price.nano(prompt, output),
        "kv_bytes": cells * core.bytes_per_token,
    }


def spent(generation: Generation) -> dict[str, int]:
    """Return what a request that has ended used up."""
    if not _begun(generation):
        return {}
    read, said = _tokens(generation)
    internal = generation.context.window.internal
    return {
        "tokens": read + said,
        "dollars": generation.context.core.price.nano(read, said),
        "requests": int(not internal),
    }


def use(generation: Generation, table: ProcessTable) -> Use:
    """Return what is kept of a request's use."""
    aid, core = generation.aid, generation.context.core
    try:
        line = line_of((*table.lineage(aid), aid))
    except ProcessLookupError:  # its row went while it ended
        line = line_of((aid,))
    read, said = _tokens(generation)
    return Use(
        aid=aid,
        uid=generation.context.sequence.uid,
        line=line,
        core=core.name,
        tokens_in=read,
        tokens_out=said,
        nano=core.price.nano(read, said),
        requests=int(_begun(generation)),
    )


def dollars(generation: Generation) -> float:
    """Return what a request has cost so far."""
    return generation.context.core.price.nano(*_tokens(generation)) / 1e9


def _begun(generation: Generation) -> bool:
    return generation.error is None or bool(generation.started)


def _tokens(generation: Generation) -> tuple[int, int]:
    """Return how many tokens it read, and how many it said."""
    read = max(0, generation.prompt_tokens - generation.cached_tokens)
    return read, len(generation.tokens)
