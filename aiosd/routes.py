"""Routes: the system call that says which core a request would get, and why not another."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from aiosd.abi import cores as abi
from aiosd.access import Caller
from aiosd.cores.dispatcher import Cores
from aiosd.cores.offer import TEXT
from aiosd.cores.routing import TYPICAL, Verdict, Wish

if TYPE_CHECKING:
    from aiosd.proc import ProcessTable


class Routes:
    """Explains the dispatcher's choices."""

    def __init__(self, cores: Cores, table: ProcessTable) -> None:
        self._cores = cores
        self._table = table

    def sys_explain_route(self, caller: Caller, args: abi.ExplainRoute) -> abi.Routed:
        """Say which core such a request would get now, and what each other one lacks."""
        agent = args.agent or (self._table.get(caller.aid).name if caller.aid else "")
        wish = Wish(
            route=args.route,
            kind=args.needs,
            features=frozenset({TEXT, *args.features}),
            min_context=args.min_context,
            max_price=args.max_price,
            max_latency=args.max_latency,
            prompt=args.prompt_tokens,
            output=args.max_tokens,
            agent=agent,
        )
        router = self._cores.router
        legs = [leg.title or leg.policy for leg in router.legs(wish)]
        try:
            core, reason = self._cores.choose(wish)
        except OSError as error:
            chosen, reason = "", error.strerror or str(error)
        else:
            chosen = core.name
        now = time.monotonic()
        rows = [self._row(each, wish, legs, now) for each in router.explain(wish, now)]
        return abi.Routed(chosen, reason, legs, rows + self._refused(legs[0]))

    def _refused(self, leg: str) -> list[abi.RouteCore]:
        """Return the configured cores that could not be begun: none of them fits anything."""
        return [
            abi.RouteCore(name, leg, 0, why, config.class_, 0.0, 0.0, 0.0, 0, 0, config.quality, [])
            for name, (config, why) in self._cores.refused.items()
        ]

    def _row(self, verdict: Verdict, wish: Wish, legs: list[str], now: float) -> abi.RouteCore:
        offer = self._cores.offers[verdict.name]
        first, pace = offer.speed.expect(offer.requests + 1, now)
        return abi.RouteCore(
            name=verdict.name,
            leg=legs[verdict.leg],
            place=verdict.place,
            why=verdict.why,
            capability=offer.kind,
            dollars=offer.price.nano(wish.prompt, wish.output or TYPICAL) / 1e9,
            first_token_s=first,
            tokens_per_s=1 / pace if pace else 0.0,
            requests=offer.requests,
            slots=offer.width,
            quality=offer.quality,
            features=sorted(offer.features),
        )
