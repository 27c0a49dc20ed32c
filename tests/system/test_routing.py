"""Routing through the daemon's door: needs, rules, ceilings, reasons, and what was measured."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aiosd.abi.accounts import GetQuota, SetQuota
from aiosd.abi.cores import (
    AddCore,
    DrainCore,
    ExplainRoute,
    ListCores,
    MoveContext,
    RemoveCore,
    RouteCore,
    Routed,
)
from aiosd.abi.inference import LlmEmbed, LlmGenerate
from aiosd.abi.process import Kill
from tests.daemon import Daemon
from tests.system.agents import until
from tests.system.writer import Writer

CONFIG = """
[[cores]]
name = "home"
driver = "fake"
slots = 2
options = {eog = 0.0}

[[cores]]
name = "shed"
driver = "fake"
slots = 2
options = {eog = 0.0}

[[cores]]
name = "oracle"
driver = "fake"
class = "frontier"
features = ["vision"]
quality = 9
price_in = 2.0
price_out = 8.0
n_ctx = 8192
options = {eog = 0.0}

[[cores]]
name = "odd"
driver = "fake"
price_in = 1000
n_ctx = 128
options = {eog = 0.0, name = "odd"}

[routing.rules.careful]
class = "frontier"
max_price = 0.001
fallback = ["house"]

[routing.rules.house]
class = "local"
policy = "shortest"
agents = ["poet*"]
cores = ["sh*"]
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    places: list[Path] = [tmp_path_factory.mktemp(name) for name in ("state", "run", "kv")]
    with Daemon(*places, config=CONFIG) as made:
        with made.connect() as person:
            until(lambda: all(c.state == "ready" for c in person.call(ListCores())), "ready")
        yield made


def explain(daemon: Daemon, **what: Any) -> Routed:
    with daemon.connect() as person:
        found = person.call(ExplainRoute(**what))
    assert isinstance(found, Routed)
    return found


def row(found: Routed, name: str, leg: str = "") -> RouteCore:
    return next(each for each in found.cores if each.name == name and leg in ("", each.leg))


def test_a_request_gets_what_it_needs_and_is_told_why(daemon: Daemon) -> None:
    with Writer(daemon, "a") as a:
        free = a.ask(max_tokens=2)
        assert free.core in ("home", "shed") and free.route.startswith("cheapest of 4: ")
        best = a.ask(max_tokens=2, route="best")
        assert best.core == "oracle" and "quality 9" in best.route
        assert a.ask(max_tokens=2, needs="frontier").core == "oracle"
        assert a.ask(max_tokens=2, features=["vision"]).core == "oracle"
        assert a.ask(max_tokens=2, min_context=4000).core == "oracle"
        named = a.ask(max_tokens=2, core="shed")
        assert (named.core, named.route) == ("shed", "it was asked for by name")
        more = a.ask(max_tokens=2, context=best.context)
        assert more.core == "oracle" and "is on core oracle" in more.route


def test_what_is_busy_is_passed_by(daemon: Daemon) -> None:
    with Writer(daemon, "a") as a, Writer(daemon, "b") as b, daemon.connect() as person:
        person.call(Kill(a.aid, "STOP"))
        wanted = a.submit(max_tokens=2, core="home")
        until(lambda: row(explain(daemon), "home").requests == 1, "it has been given to its core")
        assert b.ask(max_tokens=2).core == "shed"
        person.call(Kill(a.aid, "CONT"))
        assert a.finish(wanted).core == "home"


def test_ceilings_end_a_request_that_nothing_fits(daemon: Daemon) -> None:
    with Writer(daemon, "a") as a:
        with pytest.raises(OSError, match=r"home: its class is local.*oracle: it would cost") as no:
            a.ask(needs="frontier", max_tokens=1000, max_price=0.001)
        assert no.value.errno == errno.ENODEV
        with pytest.raises(OSError, match="no telepathy") as no:
            a.ask(features=["telepathy"])
        assert no.value.errno == errno.ENODEV
        with pytest.raises(OSError, match="no rule or policy 'x'; there are: careful") as no:
            a.ask(route="x")
        assert no.value.errno == errno.EINVAL
        with pytest.raises(OSError, match="core home: it has no vision"):
            a.ask(core="home", features=["vision"])


def test_a_price_is_held_to_when_the_tokens_are_known(daemon: Daemon) -> None:
    """The estimate lets it through (four characters a token), the count does not."""
    with Writer(daemon, "a") as a:
        text = "a b c d " * 100
        with pytest.raises(OSError, match="max_price: it may cost") as no:
            a.ask(text, core="oracle", max_tokens=100, max_price=0.00125)
        assert no.value.errno == errno.EDQUOT
        assert a.ask(text, core="oracle", max_tokens=100, max_price=0.01).usage.dollars > 0


def test_a_rule_falls_back_and_agents_have_theirs(daemon: Daemon) -> None:
    with Writer(daemon, "a") as a, Writer(daemon, "poet7") as poet:
        assert a.ask(max_tokens=2, route="careful").core == "oracle"
        dear = a.ask(max_tokens=1000, route="careful")
        assert dear.core == "shed" and dear.route.startswith("careful had none, house: shortest")
        assert poet.ask(max_tokens=2).core == "shed"
        assert poet.ask(max_tokens=2, route="best").core == "oracle"


def test_explain_shows_each_core_in_each_leg(daemon: Daemon) -> None:
    found = explain(daemon, route="careful", max_tokens=1000, prompt_tokens=10)
    assert (found.core, found.legs) == ("shed", ["careful", "house"])
    assert row(found, "oracle", "careful").why.startswith("it would cost about $0.008")
    assert row(found, "oracle").dollars == pytest.approx(0.00802)
    assert row(found, "shed", "house").place == 1
    assert row(found, "home", "house").why == "rule house is about other cores"
    assert explain(daemon, agent="poet").core == "shed"
    none = explain(daemon, features=["telepathy"])
    assert none.core == "" and "no telepathy" in none.reason


def test_what_was_measured_shows(daemon: Daemon) -> None:
    with Writer(daemon, "a") as a:
        a.ask(max_tokens=8, core="home")
    home = row(explain(daemon), "home")
    assert home.first_token_s > 0 and home.tokens_per_s > 0
    with daemon.connect() as person:
        cores = {core.name: core for core in person.call(ListCores())}
    assert cores["home"].first_token_s > 0
    oracle = cores["oracle"]
    assert (oracle.capability, oracle.quality, oracle.price_out) == ("frontier", 9, 8.0)
    assert "vision" in oracle.features and "vision" not in cores["home"].features


def test_a_context_moves_with_its_kv_and_goes_on(daemon: Daemon) -> None:
    with Writer(daemon, "a") as a:
        said = a.ask("Tell me of the sea.", max_tokens=70, core="home")
        solo = a.ask("And then?", max_tokens=20, context=said.context)
        here = a.ask("Tell me of the sea.", max_tokens=70, core="home")
        moved = a.call(MoveContext(here.context, "shed"))
        assert (moved.core, moved.exact, moved.kv) == ("shed", True, moved.tokens - 1)
        more = a.ask("And then?", max_tokens=20, context=here.context)
        assert (more.core, more.token_ids, more.exact) == ("shed", solo.token_ids, True)
        assert more.usage.cached_tokens == solo.usage.cached_tokens > 70


def test_what_can_not_move_stays_where_it_is(daemon: Daemon) -> None:
    with Writer(daemon, "a") as a, Writer(daemon, "b") as b, daemon.connect() as person:
        cid = a.ask("x" * 200, max_tokens=2, core="home").context
        wrong = [
            (MoveContext(cid, "odd"), errno.EINVAL, "another model"),
            (MoveContext(cid, "none"), errno.ENOENT, "there are: home"),
        ]
        for call, number, word in wrong:
            with pytest.raises(OSError, match=word) as no:
                a.call(call)
            assert no.value.errno == number
        with pytest.raises(PermissionError):
            b.call(MoveContext(cid, "shed"))
        person.call(Kill(a.aid, "STOP"))
        wanted = a.submit(max_tokens=2, context=cid)
        until(lambda: row(explain(daemon), "home").requests == 1, "it has been given to its core")
        with pytest.raises(OSError, match="is at work"):
            person.call(MoveContext(cid, "shed"))
        person.call(Kill(a.aid, "CONT"))
        assert a.finish(wanted).core == "home"


def test_another_setting_of_the_model_computes_anew(daemon: Daemon) -> None:
    more = {"eog": 0.0, "grid": 32, "price_in": 3.0, "class": "extra", "features": ["vision"]}
    with Writer(daemon, "a") as a, daemon.connect() as person:
        made = person.call(AddCore("fake", "fine", "fake", options=more))
        assert (made.capability, made.price_in, made.grid) == ("extra", 3.0, 32)
        cid = a.ask("x" * 200, max_tokens=2, core="home").context
        moved = a.call(MoveContext(cid, "fine"))
        assert (moved.core, moved.exact, moved.kv) == ("fine", False, 0)
        assert len(a.ask(max_tokens=5, context=cid).token_ids) == 5
        person.call(RemoveCore("fine"))


def test_draining_a_core_under_load_loses_nothing(daemon: Daemon) -> None:
    """What runs there ends there; contexts go on at the core that has the same model."""
    slow = {"eog": 0.0, "step_ms": 1.0, "price_in": 9.0}
    with Writer(daemon, "a") as a, Writer(daemon, "b") as b, daemon.connect() as person:
        person.call(AddCore("fake", "old", "fake", slots=1, options=slow))
        solo = a.ask("Sing.", max_tokens=90, core="home")
        idle = b.ask("Sing.", max_tokens=30, core="old")
        wanted = [w.submit("Sing.", max_tokens=90, core="old") for w in (a, b, a, b)]
        until(lambda: row(explain(daemon), "old").requests == 4, "all are taken")
        person.call(DrainCore("old"))
        replies = [w.finish(each) for w, each in zip((a, b, a, b), wanted, strict=True)]
        assert {tuple(reply.token_ids) for reply in replies} == {tuple(solo.token_ids)}
        gone = lambda: "old" not in [core.name for core in person.call(ListCores())]  # noqa: E731
        until(gone, "the core is gone")
        then = a.ask("More.", max_tokens=20, context=solo.context)
        for writer, reply in zip((a, b), replies, strict=False):
            more = writer.ask("More.", max_tokens=20, context=reply.context)
            assert more.core in ("home", "shed", "oracle") and more.exact
            assert more.token_ids == then.token_ids
        assert b.ask(max_tokens=2, context=idle.context).core != "old"


def test_a_core_that_embeds_does_that_alone(daemon: Daemon) -> None:
    with Writer(daemon, "a") as a, daemon.connect() as person:
        options = {"embedding": True, "name": "vectors"}
        price = {"price_in": 2.0}
        made = person.call(AddCore("fake", "vec", "fake", n_ctx=128, options=options | price))
        assert made.features == ["embed"] and made.exact == "off"
        person.call(SetQuota(f"agent:{a.aid}", "dollars", 0.003))
        found = a.call(LlmEmbed(["one", "two", "one"] * 10, core="vec"))
        assert (found.core, found.model, found.tokens) == ("vec", "vectors", 90)
        [quota] = a.call(GetQuota())
        assert (quota.used, quota.reserved) == (pytest.approx(90 * 2e-6), 0)
        one, two, again = found.vectors[:3]
        assert one == again != two and sum(x * x for x in one) == pytest.approx(1.0)
        assert len(found.vectors) == 30
        for call, number, words in (
            (LlmEmbed(["x" * 200], core="vec"), errno.EINVAL, "the core takes 128"),
            (LlmEmbed(["x" * 900] * 2, core="vec"), errno.EDQUOT, "dollars"),
            (LlmEmbed(["x"], core="home"), errno.ENODEV, "core home: it has no embed"),
            (LlmGenerate("x", core="vec"), errno.ENODEV, "core vec: it has no text"),
        ):
            with pytest.raises(OSError, match=words) as no:
                a.call(call)
            assert no.value.errno == number
        [quota] = a.call(GetQuota())
        assert (quota.used, quota.reserved) == (pytest.approx(90 * 2e-6), 0)  # no more than that
        assert a.ask(max_tokens=2).core != "vec"
        person.call(DrainCore("vec"))
        assert "vec" not in [core.name for core in person.call(ListCores())]


def test_a_configured_core_that_could_not_be_begun_is_shown_and_named(tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("state", "run", "kv")]
    for place in places:
        place.mkdir()
    wrong = """
[[cores]]
name = "lost"
model = "/nowhere/at/all.gguf"

[[cores]]
name = "odd"
driver = "openai"
model = "some"
options = {abacus = 1}
"""
    with Daemon(*places, config=wrong) as daemon, daemon.connect() as person:
        rows = {core.name: core for core in person.call(ListCores())}
        assert {core.state for core in rows.values()} == {"failed"}
        assert "no such file" in rows["lost"].error and "abacus" in rows["odd"].error
        told = explain(daemon)
        assert not told.core and "no such file" in told.reason and "abacus" in told.reason
        assert row(told, "lost").place == 0 and "no such file" in row(told, "lost").why
        with Writer(daemon, "a") as a:
            with pytest.raises(OSError, match="abacus") as no:
                a.ask(max_tokens=1)
            assert no.value.errno == errno.ENODEV
        person.call(RemoveCore("odd"))
        person.call(AddCore(model="fake", name="lost", driver="fake"))
        [mended] = person.call(ListCores())
        assert (mended.name, mended.state, mended.error) == ("lost", "ready", "")
