"""llm_generate under a schema or a grammar, at the door: "stop" means that the text is valid."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from tests.conftest import World
from tests.daemon import Daemon
from tests.engine.schemas import KEPT, PERSON
from tests.system.agents import until
from tests.system.writer import Writer, core

CORE = """
[[cores]]
name = "c"
driver = "fake"
slots = 2
n_ctx = 40960
options = {step_ms = 0.2}
"""
ENDLESS = 'root ::= "a"+'


@pytest.fixture(scope="module")
def daemon(world: World) -> Iterator[Daemon]:
    state = world.make(must_end_empty=False)
    world.state_dirs.append(state)
    places = state, world.make(must_end_empty=True), world.make(must_end_empty=True)
    with Daemon(*places, config=CORE) as daemon:
        until(lambda: core(daemon).state == "ready", "the core is ready")
        yield daemon


@pytest.mark.parametrize("name", [n for n in KEPT if isinstance(KEPT[n], dict)])
def test_stop_means_that_the_text_validates(daemon: Daemon, name: str) -> None:
    with Writer(daemon) as a:
        replies = [
            a.ask(f"go {seed}", schema=KEPT[name], temperature=0.8, seed=seed, max_tokens=600)
            for seed in range(4)
        ]
    ended = [reply for reply in replies if reply.finish_reason == "stop"]
    assert ended
    for reply in ended:
        assert reply.parsed == json.loads(reply.text)
        jsonschema.Draft202012Validator(KEPT[name]).validate(reply.parsed)
    assert all(reply.parsed is None for reply in replies if reply.finish_reason != "stop")


def test_length_returns_the_partial_text_and_no_value(daemon: Daemon) -> None:
    with Writer(daemon) as a:
        reply = a.ask("go", schema=PERSON, max_tokens=9)
        assert (reply.finish_reason, reply.parsed) == ("length", None)
        assert PERSON["required"] and reply.text.startswith("{") and len(reply.token_ids) == 9
        chunked = a.begin("go", schema=PERSON, max_tokens=400)
        whole = a.finish(chunked)
        assert whole.finish_reason == "stop" and whole.parsed["age"] <= 120
        assert a.text[chunked] == whole.text


def test_a_deadline_and_a_cancel_return_the_partial_text(daemon: Daemon) -> None:
    with Writer(daemon) as a:
        how: dict[str, Any] = {"grammar": ENDLESS, "min_tokens": 40_000, "max_tokens": 40_000}
        late = a.ask("go", deadline=0.1, **how)
        assert (late.finish_reason, late.reason) == ("cancelled", "deadline")
        assert late.text == "a" * len(late.token_ids) and late.parsed is None
        wanted = a.begin("go", **how)
        a.read_tokens(wanted, 5)
        a.cancel(wanted)
        cut = a.finish(wanted)
        assert cut.finish_reason == "cancelled" and set(cut.text) == {"a"}
        more = a.ask("", context=cut.context, grammar='root ::= "b"{3}')
        assert (more.text, more.finish_reason, more.parsed) == ("bbb", "stop", None)


def test_min_tokens_holds_back_the_end_as_long_as_the_grammar_can_go_on(daemon: Daemon) -> None:
    with Writer(daemon) as a:
        assert len(a.ask("go", grammar=ENDLESS, min_tokens=70, max_tokens=90).token_ids) >= 70
        assert a.ask("go", grammar='root ::= "ab"', min_tokens=9).text == "ab"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"grammar": "root ::= x"}, "rule 'x' is not defined"),
        ({"grammar": "\x00(("}, "grammar: line 1"),
        ({"grammar": 'root ::= "a"{5,3}'}, "at least 5"),
        ({"schema": {"type": "array", "uniqueItems": True}}, "uniqueItems at #"),
        ({"schema": {"properties": {"a": {"not": {}}}}}, "not at #/properties/a"),
        ({"schema": {}, "grammar": ENDLESS}, "not both"),
        ({"schema": {}, "stop": ["a"]}, "stop: "),
    ],
)
def test_what_cant_be_kept_to_is_refused(daemon: Daemon, asked: Any, words: str) -> None:
    with Writer(daemon) as a:
        with pytest.raises(OSError, match=words) as found:
            a.ask("go", **asked)
        assert found.value.errno == errno.EINVAL
    assert core(daemon).restarts == 0


def test_the_sdk_takes_a_pydantic_model_and_gives_its_object(daemon: Daemon) -> None:
    pydantic = pytest.importorskip("pydantic")
    import aios

    class City(pydantic.BaseModel):  # type: ignore[misc, name-defined]
        name: str = pydantic.Field(max_length=12)
        people: int = pydantic.Field(ge=0, le=40_000_000)
        old: bool | None = None
        twins: list[str] = pydantic.Field(default=[], max_length=2)

    with aios.connect(daemon.socket, name="mayor") as kernel:
        reply = kernel.llm_generate("A city.", schema=City, max_tokens=400)
        assert reply.finish_reason == "stop"
        assert isinstance(reply.parsed, City) and 0 <= reply.parsed.people <= 40_000_000
        cut = kernel.llm_generate("A city.", schema=City, max_tokens=5)
        assert cut.finish_reason == "length" and cut.parsed is None
        with pytest.raises(OSError, match="uniqueItems"):
            kernel.llm_generate("A city.", schema={"type": "array", "uniqueItems": True})
