"""Whether a snapshot is the one that an admission takes it for.

What is refused is OSError(ESTALE); it names the file where the file itself is not what it should
be, and not where it is only of no use for this admission.
"""

from __future__ import annotations

import errno

from aiosd.engine import runs
from aiosd.engine.protocol import PREFILL, Admit, Run, Share
from aiosd.engine.snapshot import Record


def search(admit: Admit, width: int, record: Record) -> None:
    """Raise OSError(ESTALE) for a snapshot of another search than the one wanted."""
    tree, goal = record.tree, record.goal
    if tree is None or record.tokens != admit.tokens or goal != admit.goal:
        text = f"snapshot {admit.path} is of another search; begin anew"
        raise OSError(errno.ESTALE, text)
    if runs.cut(record.runs, admit.kv) != admit.history or len(record.tokens) != len(admit.tokens):
        text = f"snapshot {admit.path} was computed in another way; begin anew"
        raise OSError(errno.ESTALE, text)
    if len(tree.live) > width:
        text = f"snapshot {admit.path} has {len(tree.live)} branches, not {width}; begin anew"
        raise OSError(errno.ESTALE, text)


def sequence(admit: Admit, record: Record) -> None:
    """Raise OSError(ESTALE) for a snapshot that does not hold what an admission takes it for."""
    held, kv = len(record.tokens), admit.kv
    if record.tree is not None:
        raise OSError(errno.ESTALE, f"snapshot {admit.path} holds a search; compute it again")
    if held != (admit.held or kv):
        text = f"holds {held} positions, not {admit.held or kv}"
    elif record.tokens[:kv] != admit.tokens[:kv]:
        text = "holds other tokens than the context"
    elif runs.cut(record.runs, kv) != admit.history:
        text = "was computed in another way than the context"
    elif runs.gone(record.runs) != runs.gone(admit.history):
        # Nothing is wrong with the file: it is only of no use here.
        raise OSError(errno.ESTALE, f"context {admit.cid} has shifted since; compute it again")
    else:
        return
    text = f"snapshot {admit.path} {text}; compute it again"
    raise OSError(errno.ESTALE, text, admit.path)


def shared(share: Share, tokens: list[int], record: Record) -> None:
    """Raise OSError(ESTALE) for a snapshot that does not begin with what is to be shared."""
    kv = share.kv
    alike = record.tokens[:kv] == tokens[:kv] and len(record.tokens) >= kv
    alike = alike and not runs.gone(record.runs) and record.tree is None
    if not alike or runs.cut(record.runs, kv) != [Run(PREFILL, 0, kv)]:
        text = f"snapshot {share.path} begins otherwise than context {share.cid}; compute it again"
        raise OSError(errno.ESTALE, text)  # the file is right, and somebody else's
