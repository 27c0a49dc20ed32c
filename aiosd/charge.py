"""Charges: what a request takes, at worst before it is on its core and in truth when it has ended.

Tokens are those of the prompt that its context or others do not hold already, and those of the
output; at worst the whole prompt counts, and the output is as long as it may be. A request that
failed before it began costs nothing. What a provider computes is charged by its bill (bill.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiosd.accounts import Use, line_of

if TYPE_CHECKING:
    from aiosd.generation import Generation
    from aiosd.proc import ProcessTable


def worst(generation: Generation, new: int) -> dict[str, int]:
    """Return what a request takes at worst; new: tokens that it adds to its context."""
    context, core, bill = generation.context, generation.context.core, generation.bill
    if bill is not None:
        price = core.price.nano(bill.most_prompt, bill.most_output)
        return {"tokens": bill.most_prompt + bill.most_output, "dollars": price, "kv_bytes": 0}
    window = core.window
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
    prompt, cached, said = counted(generation)
    read = prompt - cached if generation.bill is None else prompt
    internal = generation.context.window.internal
    return {
        "tokens": max(0, read) + said,
        "dollars": _nano(generation),
        "requests": int(not internal),
    }


def use(generation: Generation, table: ProcessTable) -> Use:
    """Return what is kept of a request's use."""
    aid, core = generation.aid, generation.context.core
    try:
        line = line_of((*table.lineage(aid), aid))
    except ProcessLookupError:  # its row went while it ended
        line = line_of((aid,))
    prompt, cached, said = counted(generation)
    return Use(
        aid=aid,
        uid=generation.context.sequence.uid,
        line=line,
        core=core.name,
        tokens_in=max(0, prompt - cached),
        tokens_out=said,
        nano=_nano(generation),
        requests=int(_begun(generation)),
    )


def dollars(generation: Generation) -> float:
    """Return what a request has cost so far."""
    return _nano(generation) / 1e9


def counted(generation: Generation) -> tuple[int, int, int]:
    """Return the tokens of its prompt, how many of them were had already, and of its reply."""
    bill = generation.bill
    if bill is None:
        return generation.prompt_tokens, generation.cached_tokens, len(generation.tokens)
    size = sum(len(text.encode()) for text in generation.texts)
    return bill.read(), bill.cached, bill.said(size)


def _nano(generation: Generation) -> int:
    prompt, cached, said = counted(generation)
    price = generation.context.core.price
    if generation.bill is None:
        return price.nano(max(0, prompt - cached), said)
    return price.nano(prompt - cached, said, cached)


def _begun(generation: Generation) -> bool:
    if generation.bill is not None:
        return generation.bill.sent or generation.error is None
    return generation.error is None or bool(generation.started)
