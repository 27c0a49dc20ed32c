"""route: what it costs to choose a core, however many there are.

Claim: a dispatch decision over 100 cores costs at most twice that over 10, whatever the policy.

How: the dispatcher's router by itself, with cores of as many prices, qualities, windows and speeds
as there are cores, every third of which lacks a feature that is asked for. A decision is the whole
way of a request: choose, note that the core has one more, and later that one has ended and how fast
it was. 64 requests are under way all the time. Both sides run in turns in one process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter

from aiosd.cores.price import Price
from aiosd.cores.routing import POLICIES, Router, Wish
from aiosd.cores.speed import Speed
from aiosd.settings import Routing
from tests.bench.ratio import Ratio, divide, interleave

FEW = 10
MANY = 100
DECISIONS = 2000  # a round
UNDER_WAY = 64
ROUNDS = 7


@dataclass
class _Core:
    """A core as the router sees it."""

    name: str
    price: Price
    quality: float
    features: frozenset[str]
    window: int
    kind: str = "local"
    width: int = 8
    requests: int = 0
    accepting: bool = True
    speed: Speed = field(default_factory=lambda: Speed(8))

    def why_not(self) -> str:
        return ""


def _router(count: int, policy: str) -> tuple[Router, dict[str, _Core]]:
    router, cores = Router(Routing(policy=policy)), {}
    for n in range(count):
        features = frozenset({"text", "json"} if n % 3 else {"text"})
        core = _Core(f"c{n}", Price(n % 17, n % 13), n % 7, features, 2048 + 64 * n)
        core.speed.add(1, 0.1 + n / 100, 0.01, 0.0)
        cores[core.name] = core
        router.add(core)
    return router, cores


def _decide(router: Router, cores: dict[str, _Core]) -> float:
    """Return the seconds that a decision takes."""
    wishes = [
        Wish(features=frozenset({"text", "json"}), prompt=200, output=100),
        Wish(features=frozenset({"text"}), prompt=1500, output=30, max_price=1.0),
        Wish(features=frozenset({"text", "json"}), prompt=20, output=400, max_latency=60.0),
    ]
    under_way: deque[_Core] = deque()
    began = perf_counter()
    for n in range(DECISIONS):
        core = cores[router.choose(wishes[n % 3], n / 1000).name]
        core.requests += 1
        router.changed(core.name)
        under_way.append(core)
        if len(under_way) > UNDER_WAY:
            done = under_way.popleft()
            done.requests -= 1
            done.speed.add(done.requests + 1, 0.2, 0.01, n / 1000)
            router.changed(done.name)
    taken = (perf_counter() - began) / DECISIONS
    for core in under_way:
        core.requests -= 1
        router.changed(core.name)
    return taken


def run(rounds: int) -> Iterator[Ratio]:
    """Measure each policy."""
    for policy in POLICIES:
        few, many = _router(FEW, policy), _router(MANY, policy)
        (ours, theirs), noise = interleave(
            rounds or ROUNDS, partial(_decide, *many), partial(_decide, *few)
        )
        yield Ratio(
            bench="route",
            what=f"a decision over {MANY} cores / over {FEW}, {policy}",
            rounds=divide(ours, theirs),
            limit=2.0,
            noise=noise,
            figures={f"{MANY} us": min(ours) * 1e6, f"{FEW} us": min(theirs) * 1e6},
        )
