"""The demo: its scores and tables, and the whole of it on a fake core."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aiosd.abi.cores import Core
from aiosh import link, results, scores, trial
from aiosh.results import Spread
from aiosh.trial import Part, Reply, Trial
from tests.aiosh.conftest import Run
from tests.daemon import Daemon

AGENTS = ("math", "narrative", "rec")


def core(exact: str) -> Core:
    fields = dict.fromkeys(Core.__struct_fields__, 0)
    texts = dict.fromkeys(("driver", "state", "setting", "kind", "error"), "")
    return Core(**{**fields, **texts, "name": "local", "model": "a model", "exact": exact})  # type: ignore[arg-type]


def reply(text: str, waiting: float, turnaround: float) -> Reply:
    return Reply(text, tuple(text.encode()), waiting, turnaround)


def one(kind: str, *replies: Reply) -> Trial:
    return Trial(kind, [Part("math", 1, list(replies), done=True)], seconds=2.0)


def test_short_identical_texts_score_one() -> None:
    pytest.importorskip("sacrebleu")
    for text in ("", "42", "one two", "A whole sentence, and then some more words."):
        assert scores.bleu([text], [text]) == 1.0
    other = scores.bleu(["a very different answer"], ["42 is what it is"])
    assert other is not None
    assert other < 0.2


def test_times_are_means_over_requests_then_over_trials() -> None:
    solo = one("alone", reply("a", 0, 1), reply("b", 0, 3))
    first = one("sequential", reply("a", 1, 2), reply("b", 3, 6))
    second = one("sequential", reply("a", 3, 4), reply("b", 5, 8))
    (line,) = results.block(core("yes"), solo, [first, second], [solo]).lines
    assert line.sequential_waiting.mean == 3.0
    assert line.sequential_waiting.deviation == pytest.approx(2**0.5)
    assert line.sequential_turnaround.mean == 5.0
    assert line.concurrent_turnaround == Spread(2.0, 0.0)
    assert (line.requests, line.replies, line.same_texts) == (2, 2, 2)


def test_a_core_that_promises_exactness_is_held_to_it() -> None:
    solo, other = one("alone", reply("a", 0, 1)), one("concurrent", reply("b", 0, 1))
    results.judge([results.block(core("off"), solo, [solo], [other])])
    with pytest.raises(link.Failure, match="math differ from the solo run"):
        results.judge([results.block(core("yes"), solo, [solo], [other])])


def test_being_held_back_counts_from_the_common_submission() -> None:
    later = trial._later(reply("a", 0.5, 2.0), 10.0)
    assert (later.waiting_s, later.turnaround_s) == (10.5, 12.0)


def test_both_tables_are_printed(ctl: Run, kernel: Daemon) -> None:
    result = ctl("demo", "--quick", "--policy", "fifo")
    assert result.status == 0, result.err
    assert "Table 5" in result.out
    assert "Table 4" in result.out
    assert "under fifo" in result.out
    for agent in AGENTS:
        lines = [line.split() for line in result.out.splitlines() if f" {agent} " in line]
        assert [words[0] for words in lines] == ["fake", "fake"]
    assert "concurrent 1/1: math narrative rec" in result.err
    assert json.loads(ctl("sched", "--json").out)["policy"] == "rr"  # as it was before


def test_every_reply_equals_the_solo_run(ctl: Run, kernel: Daemon) -> None:
    result = ctl("demo", "--trials", "2", "--max-tokens", "12", "--quantum", "4", "--json")
    assert result.status == 0, result.err
    told = json.loads(result.out)
    (block,) = told["cores"]
    assert [line["agent"] for line in block["lines"]] == list(AGENTS)
    assert all(line["same_tokens"] == line["replies"] > 0 for line in block["lines"])
    first, *_, last = block["lines"]
    assert first["sequential_waiting"]["mean"] < last["sequential_waiting"]["mean"]
    assert not [words for words in ctl("ps").rows() if words[-1] in AGENTS]


def test_a_missing_model_says_so(ctl: Run, kernel: Daemon, tmp_path: Path) -> None:
    result = ctl("demo", "--quick", "--model", str(tmp_path / "missing.gguf"))
    assert result.status == 1
    assert "missing.gguf" in result.err
