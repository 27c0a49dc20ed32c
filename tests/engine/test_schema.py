"""Schemas as grammars: what the grammar lets through validates, and the rest is refused by name.

Texts are drawn at random from the grammar itself, so no model has to think of them.
"""

from __future__ import annotations

import errno
import json
import re
from random import Random
from typing import Any

import jsonschema
import pytest

from aiosd.engine import decimal, gbnf, schema
from aiosd.engine.matcher import Matcher
from tests.engine.schemas import KEPT, PERSON, REFUSED

CHECKER = jsonschema.Draft202012Validator.FORMAT_CHECKER


def text_of(matcher: Matcher, random: Random, bytes_: bytes = bytes(range(256))) -> str:
    """Draw a text: any byte that is allowed, and after a while with a liking for the end."""
    found = bytearray()
    while not (matcher.complete and random.random() < 0.3):
        allowed = [byte for byte in bytes_ if matcher.allows(byte)]
        if not allowed:
            assert matcher.complete, f"nothing may follow {bytes(found)!r}"
            break
        if len(found) > 40:
            ends = [b for b in b'"]},:0n' if b in allowed] if random.random() < 0.5 else []
            allowed = ends or [b for b in allowed if b < 128] or allowed
        found.append(random.choice(allowed))
        matcher.take(found[-1])
        assert len(found) < 4000
    return found.decode()


@pytest.mark.parametrize("name", KEPT)
def test_what_a_grammar_lets_through_validates(name: str) -> None:
    wanted = KEPT[name]
    rules = gbnf.parse(schema.grammar(json.dumps(wanted)))
    validator = jsonschema.Draft202012Validator(wanted, format_checker=CHECKER)
    random = Random(name)
    texts = {text_of(Matcher(rules), random) for _ in range(25)}
    for text in texts:
        value = json.loads(text)  # strict: no raw control characters
        json.dumps(value, ensure_ascii=False).encode()  # no lone surrogates
        validator.validate(value)
    if wanted is KEPT["pattern"]:
        assert len(texts) > 10


@pytest.mark.parametrize(("wanted", "words"), REFUSED)
def test_what_cant_be_kept_to_is_refused_by_name(wanted: Any, words: list[str]) -> None:
    with pytest.raises(OSError, match="schema: ") as found:
        schema.grammar(json.dumps(wanted))
    assert found.value.errno == errno.EINVAL
    for word in words:
        assert word in str(found.value)


def test_what_is_not_even_json_is_refused() -> None:
    for text in ("", "{", "[" * 100_000, json.dumps({"a": 1})[:-1]):
        with pytest.raises(OSError, match="not JSON"):
            schema.grammar(text)
    deep: Any = {}
    for _ in range(70):
        deep = {"items": deep}
    with pytest.raises(OSError, match="deep"):
        schema.grammar(json.dumps(deep))


def test_a_reference_that_only_refers_to_itself_is_refused() -> None:
    wanted = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}
    with pytest.raises(OSError, match="begins with itself"):
        gbnf.parse(schema.grammar(json.dumps(wanted)))


def accepts(rules: gbnf.Rules, text: str) -> bool:
    matcher = Matcher(rules)
    for byte in text.encode():
        if not matcher.allows(byte):
            return False
        matcher.take(byte)
    return matcher.complete


@pytest.mark.parametrize(
    ("low", "high"), [(0, 9), (8, 120), (17, 17), (99, 100), (-25, 31), (-130, -7), (190, 2013)]
)
def test_a_range_of_integers_is_exactly_that(low: int, high: int) -> None:
    rules = gbnf.parse(f"root ::= {decimal.between(low, high)}")
    around = [*range(low - 30, high + 31), 0, 1, -1, 10 * high, 10 * low]
    assert [n for n in around if accepts(rules, str(n))] == [n for n in around if low <= n <= high]
    assert not accepts(rules, "007") and not accepts(rules, "-0") and not accepts(rules, "")


def test_a_persons_grammar_takes_what_is_a_person_and_nothing_else() -> None:
    rules = gbnf.parse(schema.grammar(json.dumps(PERSON)))
    assert accepts(rules, '{"name":"Ada","age":36}')
    assert accepts(rules, '{ "name": "Ada", "age": 36, "tags": ["é", "a"]}')
    for wrong in (
        '{"name":"Ada"}', '{"name":"","age":3}', '{"name":"Ada","age":121}', '{"age":3}',
        '{"name":"Ada","age":36,"more":1}', '{"name":"Ada\n","age":36}', '{"name":"Ada","age":036}',
        '{  "name":"Ada","age":36}', '{"name":"Ada","age":36,"tags":["a","a","a","a"]}',
    ):  # fmt: skip
        assert not accepts(rules, wrong), wrong


@pytest.mark.parametrize(
    "expression", [r"^(ab?c)+$", r"^[^\d\s]{2,3}$", r"^\w+@\w+\.(com|org)$", r"^.\.\*$", "^$", "a"]
)
def test_a_pattern_is_matched_by_what_is_drawn(expression: str) -> None:
    rules = gbnf.parse(schema.grammar(json.dumps({"type": "string", "pattern": expression})))
    random = Random(expression)
    for _ in range(30):
        assert re.search(expression, json.loads(text_of(Matcher(rules), random)))
