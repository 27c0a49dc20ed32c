"""GBNF: what it means, what is refused and why, and that llama.cpp survives whatever passes."""

from __future__ import annotations

import errno
import importlib.util
import re
import string
from random import Random

import pytest

from aiosd.engine import gbnf
from aiosd.engine.matcher import Matcher
from tests.engine.test_schema import accepts

ARITHMETIC = r"""
# from llama.cpp's examples
root  ::= (expr "=" ws term "\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \t\n]*
"""


@pytest.mark.parametrize(
    ("grammar", "yes", "no"),
    [
        ('root ::= "a" | "bc"', ["a", "bc"], ["", "b", "ab", "abc"]),
        ('root ::= "a"* "b"+ "c"?', ["b", "aabbc"], ["", "ac", "bcc"]),
        ('root ::= "ab"{2} | ("x" | "y"){1,2}', ["abab", "x", "yx"], ["ab", "xyx", "ababab"]),
        ('root ::= "a"{2,}', ["aa", "aaaa"], ["a"]),
        ("root ::= [^a-cx] [-z]", ["d-", "éz", "😀-"], ["a-", "xz", "dd"]),
        (r'root ::= "\x41\u00e9\U0001F600\"\\\n"', ['Aé😀"\\\n'], ["A"]),
        ('root ::= .', ["a", "\n", "世"], ["", "ab"]),
        ('root ::= x "!" # end\nx ::=\n  ("a"\n | "b")\n', ["a!", "b!"], ["!"]),
        ('root ::= "a"\n  | "b"', ["a", "b"], ["ab"]),
        ('root ::= ""', [""], ["a"]),
        (ARITHMETIC, ["a=1\n", "(a +12 )*b= 3\n"], ["a=1", "=1\n"]),
    ],
)  # fmt: skip
def test_a_grammar_means_what_it_says(grammar: str, yes: list[str], no: list[str]) -> None:
    for rules in (gbnf.parse(grammar), gbnf.parse(gbnf.render(gbnf.parse(grammar)))):
        assert all(accepts(rules, text) for text in yes)
        assert not any(accepts(rules, text) for text in no)


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        ("", "no rule 'root'"),
        ('foo ::= "a"', "no rule 'root'"),
        ("root ::= x", "line 1, column 10: rule 'x' is not defined"),
        ('root ::= "a', "line 1, column 10: it is not closed"),
        ("root ::= [a", "not closed"),
        ('root ::= ("a"\n', "')' is missing"),
        ('root = "a"', "'::=' is expected"),
        ('root ::= "a" )', "not expected"),
        ('root ::= "a"\nroot ::= "b"', "line 2, column 1: rule 'root' is defined twice"),
        ('root ::= root "a"', "begins with itself"),
        ('root ::= x\nx ::= y* root\ny ::= "a"', "begins with itself"),
        ('root ::= ("a"*)*', "may be empty"),
        ('root ::= ""*', "may be empty"),
        (r'root ::= "\q"', r"\q is no character"),
        (r'root ::= "\xZZ"', "no character"),
        (r'root ::= "\U00110000"', "no character"),
        (r"root ::= [\x00]", "NUL"),
        (r'root ::= "\ud800"', "surrogates"),
        ("root ::= [z-a]", "before it begins"),
        ("root ::= []", "no character is left"),
        ('root ::= "a"{5,3}', "at least 5 and at most 3"),
        ('root ::= "a"{99999}', "repetitions up to"),
        ('root ::= "a"{', "number of repetitions"),
        ("root ::= " + '"a"{9999} ' * 6, "symbols"),
        ("root ::= " + "(" * 100 + '"a"' + ")" * 100, "deep"),
        ("root ::= r0\n" + "\n".join(f"r{i} ::= r{i + 1}" for i in range(999)) + '\nr999 ::= "a"',
         "deep"),
        ("root ::= <[5]>", "tokens"),
        ("\x01\xff", "line 1, column 1: a rule's name is expected"),
    ],
)  # fmt: skip
def test_what_is_no_grammar_is_refused_with_place_and_reason(grammar: str, words: str) -> None:
    with pytest.raises(OSError, match=re.escape(words)) as found:
        gbnf.parse(grammar)
    assert found.value.errno == errno.EINVAL
    assert "grammar: line " in str(found.value)


def garbage(random: Random) -> str:
    """Something between a grammar and noise."""
    parts = ["root ::= ", "x ::= ", "\n", '"a"', "[a-z]", "[^\\n]", "x", "(", ")", "*", "+", "?",
             "{2,3}", "|", " ", "#", ".", '"é"', "\\", "::=", "root"]  # fmt: skip
    if random.random() < 0.2:
        return "".join(random.choices(string.printable, k=random.randrange(60)))
    return "root ::= " + "".join(random.choices(parts, k=random.randrange(30)))


@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="needs llama-cpp-python")
def test_garbage_is_refused_or_read_by_llama_cpp_and_by_us_alike(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    if importlib.util.find_spec("gguf") is None:
        pytest.skip("needs the package gguf")
    from aiosd.engine.binding import L, silence
    from aiosd.engine.grammar import Grammars
    from aiosd.engine.vocabulary import Vocabulary
    from tests.engine import tiny

    silence()
    params = L.llama_model_default_params()
    params.vocab_only = True
    path = tiny.write(tmp_path_factory.mktemp("models") / "m.gguf", "llama")
    model = L.llama_model_load_from_file(path.encode(), params)
    vocabulary = Vocabulary(model)
    grammars = Grammars(vocabulary.handle, vocabulary.piece)
    random, good = Random(7), 0
    for _ in range(3000):
        text = garbage(random)
        try:
            rules = gbnf.parse(text)
        except OSError:
            continue
        good += 1
        grammar, matcher = grammars.open(text), Matcher(rules)
        for _ in range(6):
            single = [t for t in range(vocabulary.size) if len(vocabulary.piece(t)) == 1]
            ours = [t for t in single if matcher.allows(vocabulary.piece(t)[0])]
            assert [t for t in single if grammar.allows(t)] == ours, text
            assert grammar.allows(2) == matcher.complete, text
            if not ours:
                break
            token = random.choice(ours)
            grammar.accept(token)
            matcher.take(vocabulary.piece(token)[0])
    assert good > 200
    L.llama_model_free(model)
