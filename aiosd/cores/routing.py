"""Routing: which core a request gets. Pure: it looks at offers, and asks nobody for the time.

A request says what it needs (a `Wish`); cores say what they are (`Offer`); a policy puts those that
fit in an order; the first one that can take it now is the choice. Rules of the configuration
([routing]) name such needs, and what to fall back to where nothing fits: the legs of a route, tried
one after the other. A new policy is an entry in POLICIES.

What must hold: a request never gets a core that lacks what it demands, costs more than it allows,
or takes nothing new; the same offers and the same wish give the same choice; a decision looks at a
few cores, however many there are, unless most of them can't take the request just now.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Final, Protocol

from aiosd.cores.price import Price
from aiosd.cores.ranking import Key, Ranking
from aiosd.cores.speed import Speed
from aiosd.settings import Routing, Rule

LOCAL: Final = "local"
SHAPES: Final = 64  # kinds of requests whose order of cores is kept
AGING: Final = 30.0  # seconds after which old figures are looked at anew
TYPICAL: Final = 256  # tokens of a reply that says nothing about its length
SHOWN: Final = 8  # cores that an error names, with what each lacks


class Offer(Protocol):
    """What routing looks at of a core.

    kind: its class (local, frontier, ...). quality: higher is better, for the policy best.
    width: requests that it runs at once; requests: those that it has, whatever they wait for.
    accepting: whether it takes new ones; `why_not` says in a sentence why it doesn't.
    """

    name: str
    kind: str
    features: frozenset[str]
    quality: float
    width: int
    speed: Speed

    @property
    def price(self) -> Price:
        """What its tokens cost."""

    @property
    def requests(self) -> int:
        """Requests that it has, whatever they wait for."""

    @property
    def window(self) -> int:
        """Tokens that a context of it may have; 0 when that is not known."""

    @property
    def accepting(self) -> bool:
        """Whether new requests may be given to it."""

    def why_not(self) -> str:
        """Say why it takes nothing new."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request needs. route: a rule's name, or a policy's; "" for what the rules say.

    prompt and output: tokens, as far as can be told; output 0: it does not say. max_price: dollars
    that it may cost, max_latency: expected seconds to its first token; None: any. min_context:
    tokens that the window must have.
    """

    route: str = ""
    kind: str = ""
    features: frozenset[str] = frozenset()
    min_context: int = 0
    max_price: float | None = None
    max_latency: float | None = None
    prompt: int = 0
    output: int = 0
    agent: str = ""


@dataclass(frozen=True, slots=True)
class Leg:
    """A wish and a rule put together: what a core must be, and the order of those that are so.

    title: the rule's name, "" without one. cores: patterns of names, () for any.
    """

    title: str
    policy: str
    kind: str
    features: frozenset[str]
    cores: tuple[str, ...]
    min_context: int
    max_price: float | None
    max_latency: float | None


@dataclass(frozen=True, slots=True)
class Size:
    """Tokens of a prompt and of its reply; requests of about one size share an order of cores."""

    prompt: int
    output: int

    @classmethod
    def about(cls, wish: Wish) -> Size:
        """Return the size of a request, each number rounded up to a power of four."""
        return cls(_rounded(wish.prompt), _rounded(wish.output or TYPICAL))


@dataclass(frozen=True, slots=True)
class Choice:
    """A core's name, and why it."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one leg makes of one core: its place (from 1), or 0 and why it does not fit."""

    name: str
    leg: int
    place: int
    why: str


def crowding(offer: Offer) -> float:
    """Return how much a core has to do: requests per slot."""
    return offer.requests / max(1, offer.width)


def _shortest(offer: Offer, size: Size, now: float) -> Key:
    """The least to do first."""
    return (crowding(offer),)


def _cheapest(offer: Offer, size: Size, now: float) -> Key:
    """The lowest price first, then the least to do."""
    return (offer.price.nano(size.prompt, size.output), crowding(offer))


def _fastest(offer: Offer, size: Size, now: float) -> Key:
    """The one whose reply is expected to be whole first; what was never tried comes first."""
    first, pace = offer.speed.expect(offer.requests + 1, now)
    return (first + pace * size.output, crowding(offer))


def _best(offer: Offer, size: Size, now: float) -> Key:
    """The highest quality first, then the least to do."""
    return (-offer.quality, crowding(offer))


Policy = Callable[[Offer, Size, float], Key]
POLICIES: Final[Mapping[str, Policy]] = {
    "cheapest": _cheapest,
    "fastest": _fastest,
    "shortest": _shortest,
    "best": _best,
}


class Router:
    """All cores that requests are routed to, and the rules.

    Of each kind of request the order of the cores is kept, and put right where a core has changed.
    """

    def __init__(self, routing: Routing) -> None:
        self._offers: dict[str, Offer] = {}
        self._orders: OrderedDict[tuple[Leg, Size], Ranking[Offer]] = OrderedDict()
        self._now = 0.0
        self._aged = 0.0
        self.routing = routing

    def set_rules(self, routing: Routing) -> None:
        """Take on other rules."""
        self.routing = routing
        self._orders.clear()

    def add(self, offer: Offer) -> None:
        """Take a core into account, or one that is not what it was (its features, its price)."""
        self._offers[offer.name] = offer
        self._orders.clear()

    def remove(self, name: str) -> None:
        """Forget a core, if it is there."""
        if self._offers.pop(name, None) is not None:
            self._orders.clear()

    def changed(self, name: str) -> None:
        """Note that a core's load or its speed has changed."""
        for order in self._orders.values():
            order.changed(name)

    def choose(self, wish: Wish, now: float, without: Collection[str] = ()) -> Choice:
        """Return the core for a request. without: cores that have failed on it.

        Raises OSError: EINVAL for a route that there is not, ENODEV with what each core lacks.
        """
        self._age(now)
        legs = self.legs(wish)
        for leg in legs:
            passed: list[str] = []
            offer = self._first(leg, wish, without, passed)
            if offer is not None:
                return Choice(offer.name, self._reason(offer, leg, wish, passed, legs))
        raise OSError(errno.ENODEV, self._refusal(legs, wish, without))

    def explain(self, wish: Wish, now: float) -> list[Verdict]:
        """Return what each leg of a route makes of each core, those that fit in order first."""
        self._age(now)
        found: list[Verdict] = []
        for number, leg in enumerate(self.legs(wish)):
            order = list(self._order(leg, Size.about(wish)))
            fits = [offer for offer in order if not self._lacks(offer, leg, wish)]
            fits.sort(key=lambda offer: self._too_small(offer, wish))
            found += [Verdict(o.name, number, place, "") for place, o in enumerate(fits, 1)]
            rest = [offer for offer in self._offers.values() if offer not in fits]
            found += [Verdict(o.name, number, 0, self._lacks(o, leg, wish)) for o in rest]
        return found

    def check(self, offer: Offer, wish: Wish) -> None:
        """Raise OSError(ENODEV) when a core that is asked for by name can't take a request."""
        lacks = self._lacks(offer, _demands(wish, "", "", Rule()), wish)
        if lacks:
            raise OSError(errno.ENODEV, f"core {offer.name}: {lacks}")

    def legs(self, wish: Wish) -> list[Leg]:
        """Return what is tried for a request, in order; raises OSError(EINVAL)."""
        rules, name = self.routing.rules, wish.route or self._matching(wish)
        if name in POLICIES and name not in rules:
            return [_demands(wish, "", name, Rule())]
        if name and name not in rules:
            known = ", ".join([*rules, *POLICIES])
            raise OSError(errno.EINVAL, f"route: no rule or policy {name!r}; there are: {known}")
        if not name:
            return [_demands(wish, "", self.routing.policy, Rule())]
        return [
            _demands(wish, each, rules[each].policy or self.routing.policy, rules[each])
            for each in _chain(rules, name)
        ]

    def _matching(self, wish: Wish) -> str:
        """Return the first rule that is for this agent, "" for none."""
        for name, rule in self.routing.rules.items():
            if rule.agents and any(fnmatchcase(wish.agent, pattern) for pattern in rule.agents):
                return name
        return ""

    def _first(
        self, leg: Leg, wish: Wish, without: Collection[str], passed: list[str]
    ) -> Offer | None:
        """Return the first core that can take a request; passed: gets the better ones that can't.

        One whose window is probably too small is taken only where there is no other.
        """
        small = None
        for offer in self._order(leg, Size.about(wish)):
            lacks = "it has failed on it" if offer.name in without else self._busy(offer, leg, wish)
            if lacks:
                passed.append(f"{offer.name} ({lacks})")
            elif not self._too_small(offer, wish):
                return offer
            else:
                small = small or offer
        return small

    def _order(self, leg: Leg, size: Size) -> Ranking[Offer]:
        """Return the cores that are what a leg demands, in the order of its policy."""
        shape = (leg, size)
        order = self._orders.get(shape)
        if order is None:
            fit = [(name, o) for name, o in self._offers.items() if not _unfit(o, leg)]
            order = Ranking(partial(self._key, POLICIES[leg.policy], size), fit)
            self._orders[shape] = order
            if len(self._orders) > SHAPES:
                self._orders.popitem(last=False)
        else:
            self._orders.move_to_end(shape)
        return order

    def _key(self, policy: Policy, size: Size, offer: Offer) -> Key:
        return policy(offer, size, self._now)

    def _age(self, now: float) -> None:
        """Look at all cores anew now and then: what was seen of them long ago counts less."""
        self._now = now
        if now - self._aged >= AGING:
            self._aged = now
            for order in self._orders.values():
                order.all_changed()

    def _lacks(self, offer: Offer, leg: Leg, wish: Wish) -> str:
        return _unfit(offer, leg) or self._busy(offer, leg, wish)

    def _busy(self, offer: Offer, leg: Leg, wish: Wish) -> str:
        """Say what keeps a core of the right sort from taking a request now, "" for nothing."""
        if not offer.accepting:
            return offer.why_not()
        if leg.max_price is not None:
            cost = _dollars(offer, wish)
            if cost > leg.max_price:
                return f"it would cost about ${cost:.6g}, max_price is ${leg.max_price:g}"
        if leg.max_latency is not None:
            first, _ = offer.speed.expect(offer.requests + 1, self._now)
            if first > leg.max_latency:
                return f"first token in about {first:.3g} s, max_latency is {leg.max_latency:g} s"
        if 0 < offer.window < leg.min_context:
            return f"its window is {offer.window} tokens, {leg.min_context} are asked for"
        return ""

    def _too_small(self, offer: Offer, wish: Wish) -> bool:
        """Whether a request will probably not fit: its size is an estimate, so that's no proof."""
        return 0 < offer.window < wish.prompt + wish.output

    def _reason(
        self, offer: Offer, leg: Leg, wish: Wish, passed: list[str], legs: list[Leg]
    ) -> str:
        """Say why a core was chosen."""
        count = len(self._order(leg, Size.about(wish)))
        rule = f"{leg.title}: " if leg.title else ""
        if leg is not legs[0]:
            rule = f"{legs[0].title or legs[0].policy} had none, {rule}"
        better = f"; passed over {', '.join(passed[:3])}" if passed else ""
        figure = _figure(offer, leg.policy, wish, self._now)
        return f"{rule}{leg.policy} of {count}: {offer.name}, {figure}{better}"

    def _refusal(self, legs: list[Leg], wish: Wish, without: Collection[str]) -> str:
        """Say why no core can take a request: of each what it lacks for the last leg."""
        if not self._offers:
            return "no core can take requests: there is none, add one with add_core"
        reasons = []
        for name, offer in list(self._offers.items())[:SHOWN]:
            why = self._lacks(offer, legs[-1], wish) or "it has failed on it"
            reasons.append(f"{name}: {why}")
        more = len(self._offers) - len(reasons)
        rest = f"; and {more} more" if more > 0 else ""
        tried = " > ".join(leg.title or leg.policy for leg in legs)
        return f"no core can take this (route {tried}): {'; '.join(reasons)}{rest}"


def _demands(wish: Wish, title: str, policy: str, rule: Rule) -> Leg:
    """Put a wish and a rule together: both hold, and what the wish says of the class counts."""
    return Leg(
        title=title,
        policy=policy,
        kind=wish.kind or rule.class_,
        features=wish.features | frozenset(rule.features),
        cores=tuple(rule.cores),
        min_context=max(wish.min_context, rule.min_context),
        max_price=_least(wish.max_price, rule.max_price),
        max_latency=_least(wish.max_latency, rule.max_latency),
    )


def _chain(rules: Mapping[str, Rule], name: str) -> Iterator[str]:
    """Give a rule and what it falls back to, each once: its own first, then theirs."""
    seen, ahead = {name}, [name]
    while ahead:
        yield (now := ahead.pop(0))
        new = [each for each in rules[now].fallback if each in rules and each not in seen]
        seen.update(new)
        ahead = new + ahead


def _unfit(offer: Offer, leg: Leg) -> str:
    """Say what a core is not, whatever it has to do; "" when it is all that a leg demands."""
    if leg.kind and offer.kind != leg.kind:
        return f"its class is {offer.kind}, not {leg.kind}"
    if leg.cores and not any(fnmatchcase(offer.name, pattern) for pattern in leg.cores):
        return f"rule {leg.title} is about other cores"
    missing = leg.features - offer.features
    return f"it has no {', '.join(sorted(missing))}" if missing else ""


def _figure(offer: Offer, policy: str, wish: Wish, now: float) -> str:
    """Say what a policy has looked at."""
    if policy == "cheapest" and (offer.price.prompt or offer.price.output):
        return f"about ${_dollars(offer, wish):.6g}"
    if policy == "fastest" and offer.speed.known:
        first, pace = offer.speed.expect(offer.requests + 1, now)
        rate = f", {1 / pace:.3g} tokens/s" if pace else ""
        return f"first token in about {first:.3g} s{rate}"
    if policy == "best":
        return f"quality {offer.quality:g}"
    return f"{offer.requests} requests on {offer.width} slots"


def _dollars(offer: Offer, wish: Wish) -> float:
    return offer.price.nano(wish.prompt, wish.output or TYPICAL) / 1e9


def _least(one: float | None, other: float | None) -> float | None:
    return min((each for each in (one, other) if each is not None), default=None)


def _rounded(tokens: int) -> int:
    """Round up to a power of four; 0 stays 0."""
    bits = max(0, tokens - 1).bit_length()
    return 1 << (bits + bits % 2) if tokens > 0 else 0
