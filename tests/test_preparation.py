"""Preparation: a request that is refused at the last moment leaves its context as it was."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any, cast

import pytest

from aiosd.abi.inference import LlmGenerate
from aiosd.cores.sequence import Sequence
from aiosd.preparation import Preparation


class _Room:
    """A core that can't slide, as is known once its model is loaded."""

    def slide(self, context: object) -> None:
        raise OSError(errno.EINVAL, "policy slide")


def test_what_may_be_refused_is_asked_before_anything_changes() -> None:
    sequence = Sequence(cid=1, aid=2, uid=0, nice=0)
    sequence.tokens.extend([5, 6, 7])
    setup = SimpleNamespace(n_ctx=100, slots=2, grid=8)
    core = SimpleNamespace(check=lambda: None, setup=setup, name="c")
    context = SimpleNamespace(core=core, local=core, sequence=sequence)
    generation = SimpleNamespace(
        context=context, args=LlmGenerate("x"), aid=2, fit=lambda: None, most=4, prompt_tokens=0
    )
    table = SimpleNamespace(get=lambda aid: SimpleNamespace(nice=3))
    nothing = cast(Any, None)
    preparation = Preparation(
        cast(Any, table), nothing, nothing, cast(Any, _Room()), nothing, nothing, "error", nothing
    )
    for new in ([8, 9], []):  # a prompt, and going on
        with pytest.raises(OSError, match="policy slide"):
            preparation._set(cast(Any, generation), new, "", [])
        assert sequence.tokens == [5, 6, 7]
        assert (sequence.goal, sequence.sink, sequence.nice) == (None, None, 0)
        assert generation.prompt_tokens == 0
