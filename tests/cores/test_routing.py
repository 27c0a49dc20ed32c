"""Routing, by itself: what fits, in which order, the rules, and what it costs to decide."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosd.cores.price import Price
from aiosd.cores.routing import POLICIES, Router, Size, Wish
from aiosd.cores.speed import HALF_LIFE, Speed
from aiosd.settings import Routing, Rule


@dataclass(eq=False)
class Fake:
    """A core that is what a test says. looked: how often its load was looked at."""

    name: str
    price: Price = field(default_factory=Price)
    load: int = 0
    kind: str = "local"
    features: frozenset[str] = frozenset({"json", "tools"})
    quality: float = 0.0
    width: int = 8
    window: int = 2048
    closed: str = ""
    speed: Speed = field(default_factory=lambda: Speed(8))
    looked: int = 0

    @property
    def requests(self) -> int:
        self.looked += 1
        return self.load

    @requests.setter
    def requests(self, value: int) -> None:
        self.load = value

    @property
    def accepting(self) -> bool:
        self.looked += 1
        return not self.closed

    def why_not(self) -> str:
        return self.closed


def router(*cores: Fake, policy: str = "cheapest", **rules: Rule) -> Router:
    made = Router(Routing(policy=policy, rules=rules))
    for core in cores:
        made.add(core)
    return made


def chosen(made: Router, now: float = 0.0, **wish: object) -> str:
    return made.choose(Wish(**wish), now).name  # type: ignore[arg-type]


def test_the_least_crowded_of_the_cheapest_is_chosen() -> None:
    small, big = Fake("small", load=2, width=2), Fake("big", load=3, width=8)
    dear = Fake("dear", Price(1.0, 2.0), kind="frontier")
    made = router(dear, small, big)
    assert chosen(made) == "big"
    big.load = 40
    made.changed("big")
    assert chosen(made) == "small"
    assert chosen(made, kind="frontier") == "dear"
    assert chosen(made, route="best") == "dear", "of equal quality it has the least to do"


def test_each_policy_has_its_order() -> None:
    cheap = Fake("cheap", Price(0.1, 0.1), load=8, quality=1)
    good = Fake("good", Price(5, 20), load=4, quality=9)
    quick = Fake("quick", Price(1, 1), load=6, quality=3)
    idle = Fake("idle", Price(2, 2), load=0, quality=2)
    for core, first in (cheap, 4.0), (good, 2.0), (quick, 0.1), (idle, 3.0):
        core.speed.add(core.load + 1, first, 0.01, 0.0)
    made = router(cheap, good, quick, idle)
    found = {policy: chosen(made, route=policy, prompt=100) for policy in POLICIES}
    assert found == {"cheapest": "cheap", "best": "good", "fastest": "quick", "shortest": "idle"}


def test_the_cheapest_depends_on_how_much_is_read_and_written() -> None:
    reader, writer = Fake("reader", Price(1, 50)), Fake("writer", Price(20, 1))
    made = router(reader, writer)
    assert chosen(made, prompt=5000, output=10) == "reader"
    assert chosen(made, prompt=10, output=5000) == "writer"


def test_who_lacks_something_gets_nothing() -> None:
    plain = Fake("plain", features=frozenset())
    sees = Fake("sees", Price(10, 10), features=frozenset({"vision", "json"}))
    made = router(plain, sees)
    assert chosen(made, features=frozenset({"vision"})) == "sees"
    assert chosen(made, min_context=2048) == "plain"
    with pytest.raises(OSError, match=r"no tools.*no tools") as refused:
        chosen(made, features=frozenset({"tools"}))
    assert refused.value.errno == errno.ENODEV
    with pytest.raises(OSError, match="window is 2048 tokens, 4096"):
        chosen(made, min_context=4096)
    with pytest.raises(OSError, match="class is local, not frontier"):
        chosen(made, kind="frontier")
    with pytest.raises(OSError, match="add one with add_core"):
        chosen(router())


def test_ceilings_hold() -> None:
    dear, free = Fake("dear", Price(10, 10), quality=9), Fake("free", quality=1)
    made = router(dear, free, policy="best")
    assert chosen(made, prompt=100, output=100, max_price=0.01) == "dear"
    assert chosen(made, prompt=100, output=100, max_price=0.001) == "free"
    assert chosen(made, max_price=0.0) == "free"
    free.speed.add(1, 3.0, 0.1, 0.0)
    with pytest.raises(OSError, match=r"max_price is \$0.*about 3 s, max_latency is 1 s"):
        chosen(made, max_price=0.0, max_latency=1.0)


def test_a_request_that_may_not_fit_goes_where_it_fits() -> None:
    small, large = Fake("small", window=1024), Fake("large", Price(1, 1), window=8192)
    made = router(small, large)
    assert chosen(made, prompt=4000, output=100) == "large"
    large.closed = "draining"
    assert chosen(made, prompt=4000, output=100) == "small", "its size is an estimate"


def test_a_chain_falls_back_and_says_so() -> None:
    a, b, c = Fake("gpt-a", kind="frontier"), Fake("gpt-b", kind="frontier"), Fake("home")
    rules: dict[str, Any] = {
        "smart": Rule(class_="frontier", cores=["gpt-*"], fallback=["spare", "house"]),
        "spare": Rule(class_="other", fallback=["smart"]),
        "house": Rule(class_="local", policy="shortest"),
    }
    made = router(a, b, c, **rules)
    assert chosen(made, route="smart") == "gpt-a"
    a.closed = "its breaker is open"
    choice = made.choose(Wish(route="smart"), 0.0)
    assert choice.name == "gpt-b" and "passed over gpt-a (its breaker is open)" in choice.reason
    choice = made.choose(Wish(route="smart"), 0.0, without={"gpt-b"})
    assert choice.name == "home" and choice.reason.startswith("smart had none, house: shortest")
    c.closed = "draining"
    with pytest.raises(OSError, match="smart > spare > house"):
        made.choose(Wish(route="smart"), 0.0, without={"gpt-b"})


def test_rules_apply_to_agents_by_name() -> None:
    made = router(
        Fake("a"), Fake("b", Price(1, 1)), math=Rule(agents=["math*", "sums"], cores=["b"])
    )
    assert chosen(made, agent="math2") == "b"
    assert chosen(made, agent="poet") == "a"
    assert chosen(made, agent="math2", route="shortest") == "a"
    with pytest.raises(OSError, match="no rule or policy 'maths'; there are: math, cheapest"):
        chosen(made, route="maths")


def test_explain_says_what_each_leg_makes_of_each_core() -> None:
    a, b = Fake("a", Price(2, 2)), Fake("b", Price(1, 1), closed="draining")
    c = Fake("c", kind="frontier")
    made = router(a, b, c, r=Rule(class_="local", fallback=["s"]), s=Rule(class_="frontier"))
    found = made.explain(Wish(route="r"), 0.0)
    assert [(v.name, v.leg, v.place) for v in found if v.place] == [("a", 0, 1), ("c", 1, 1)]
    assert next((v.name, v.leg, v.why) for v in found if not v.place) == ("b", 0, "draining")
    assert chosen(made, route="r") == "a"


def test_speed_is_kept_by_load_and_forgotten() -> None:
    speed = Speed(4)
    assert speed.expect(3, 0.0) == (0.0, 0.0)
    speed.add(1, 0.5, 0.02, 0.0)
    assert speed.expect(1, 0.0) == (0.5, 0.02)
    assert speed.expect(4, 0.0) == (0.5, 0.02), "there is a slot for it"
    assert speed.expect(16, 0.0) == (2.0, 0.02), "four times as many as slots"
    speed.add(16, 9.0, 0.05, 0.0)
    assert speed.expect(17, 0.0) == (9.0, 0.05)
    assert speed.expect(1, HALF_LIFE) == (0.25, 0.01)


def test_a_core_that_was_slow_is_tried_again() -> None:
    slow, fair = Fake("slow"), Fake("fair")
    made = router(slow, fair, policy="fastest")
    slow.speed.add(1, 8.0, 0.1, 0.0)
    fair.speed.add(1, 1.0, 0.1, 0.0)
    assert chosen(made, 1.0) == "fair"
    for tick in range(1, 10):
        fair.speed.add(1, 1.0, 0.1, tick * HALF_LIFE)
        made.changed("fair")
    assert chosen(made, 9 * HALF_LIFE) == "slow"


Some = st.tuples(
    st.integers(0, 3), st.integers(0, 30), st.sampled_from(["local", "frontier"]), st.booleans()
)


@settings(max_examples=60, deadline=None)
@given(
    cores=st.lists(Some, min_size=1, max_size=12),
    policy=st.sampled_from(sorted(POLICIES)),
    moves=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 30)), max_size=8),
)
def test_the_choice_is_the_first_of_all_that_fit(
    cores: list[tuple[int, int, str, bool]], policy: str, moves: list[tuple[int, int]]
) -> None:
    fakes = [
        Fake(f"c{i}", Price(p, p), load, kind, closed="" if open_ else "closed", quality=p)
        for i, (p, load, kind, open_) in enumerate(cores)
    ]
    made = router(*fakes)
    wish = Wish(route=policy, kind="frontier", prompt=50, output=50)
    for at, load in [(0, fakes[0].load), *moves]:
        core = fakes[at % len(fakes)]
        core.load = load
        made.changed(core.name)
        fit = [f for f in fakes if f.kind == "frontier" and not f.closed]
        if not fit:
            with pytest.raises(OSError, match="no core can take this"):
                made.choose(wish, 0.0)
            continue
        best = min(fit, key=lambda f: POLICIES[policy](f, Size.about(wish), 0.0))
        assert made.choose(wish, 0.0).name == best.name


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_decision_looks_at_a_few_cores_however_many_there_are(policy: str) -> None:
    fakes = [Fake(f"c{i}", Price(i, i), quality=-i, load=i) for i in range(100)]
    made = router(*fakes, policy=policy)
    made.choose(Wish(), 0.0)
    for fake in fakes:
        fake.looked = 0
    for _ in range(5):
        found = made.choose(Wish(), 0.0)
        fakes[int(found.name[1:])].load += 1
        made.changed(found.name)
    assert sum(fake.looked for fake in fakes) < 60
