"""An offer: what a core is to the choice among cores, and what a request asks of one.

Puts together what the driver knows of its core, what the configuration adds, and what was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aiosd import pictures
from aiosd.abi import inference as abi
from aiosd.config import Core as CoreConfig
from aiosd.cores.core import Core
from aiosd.cores.price import Price
from aiosd.cores.routing import Wish
from aiosd.cores.speed import Speed

TEXT: Final = "text"
"""What a core has that generates: one that only embeds lacks it."""
EMBED: Final = "embed"
VISION: Final = "vision"
"""What a core has that is shown pictures."""
CHARACTERS: Final = 4
"""Characters of a token, about, in a text that nobody has turned into tokens yet."""


class CoreOffer:
    """One core as `routing.Offer` shows it."""

    def __init__(self, core: Core, config: CoreConfig) -> None:
        self.core = core
        self.name = core.name
        self.kind = config.class_ or core.capability
        self.features = core.features | frozenset(config.features)
        self.quality = config.quality
        self.width = core.width
        self.speed = Speed(core.width)

    @property
    def price(self) -> Price:
        """What its tokens cost."""
        return self.core.price

    @property
    def requests(self) -> int:
        """Requests that it has, whatever they wait for."""
        return self.core.requests

    @property
    def window(self) -> int:
        """Tokens that a context of it may have; 0 when that is not known."""
        return self.core.window

    @property
    def accepting(self) -> bool:
        """Whether new requests may be given to it."""
        return self.core.accepting

    def why_not(self) -> str:
        """Say why it takes nothing new."""
        return why_not(self.core)


def why_not(core: Core) -> str:
    """Say why a core takes no requests."""
    state = "draining" if core.draining else core.state
    return core.error or f"core {core.name} is {state}: it takes nothing new"


def wish(args: abi.LlmGenerate, agent: str, output: int, before: Sequence[abi.Turn] = ()) -> Wish:
    """Return what a request needs of its core.

    agent: the name of the one that asks; output: tokens of the reply, where the request says none.
    before: turns that its context holds.
    """
    shown = pictures.shown([*before, *args.messages])
    texts = [args.prompt, *(turn.content for turn in args.messages)]
    return Wish(
        route=args.route,
        kind=args.needs,
        features=frozenset(args.features) | _uses(args) | ({VISION} if shown else set()),
        min_context=args.min_context,
        max_price=args.max_price,
        max_latency=args.max_latency,
        prompt=sum(map(len, texts)) // CHARACTERS + 1,
        output=args.max_tokens or output,
        agent=agent,
    )


def _uses(args: abi.LlmGenerate) -> frozenset[str]:
    """Return the features that a request needs for what it asks."""
    used = {
        TEXT: True,
        "json": args.schema is not None,
        "tools": bool(args.tools or args.functions),
        "grammar": bool(args.grammar),
        "beams": args.beams > 1,
        "logprobs": args.logprobs,
        "top_logprobs": args.top_logprobs > 0,
        "logit_bias": bool(args.logit_bias),
        "raw": args.raw,
        "watermark": args.watermark,
        "window": args.window not in ("", "error"),
    }
    return frozenset(name for name, wanted in used.items() if wanted)
