"""history against a real daemon: requests and replies shown, filtered, paged."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from aiosh.history import _pages
from tests.aiosh.conftest import Run
from tests.daemon import Daemon
from tests.system.writer import Writer

pytestmark = pytest.mark.usefixtures("kernel")


def test_requests_and_replies_are_shown_and_filtered(ctl: Run, kernel: Daemon) -> None:
    with Writer(kernel, "asker") as a:
        fox = a.ask("a quick\nbrown fox", max_tokens=3)
        a.ask("a lazy dog", max_tokens=3)
        aid = str(a.aid)
    table = ctl("history", "asker", "-i")
    assert table.out.split()[:4] == ["TIME", "AID", "REQUEST", "CTX"]
    assert [row[1] for row in table.rows()] == [aid, aid]
    assert "a quick brown fox" in table.out
    (row,) = json.loads(ctl("history", "--text", "fox quick", "--json").out)
    assert (row["aid"], row["prompt"], row["reply"]) == (a.aid, "a quick\nbrown fox", fox.text)
    whole = ctl("history", "--full", "-r", str(fox.request)).out.splitlines()
    assert f"request {fox.request} of agent {aid} on fake" in whole[0]
    assert whole[1:5] == ["user:", "    a quick", "    brown fox", "reply:"]
    assert len(ctl("history", aid, "--core", "fake", "--finish", "length").rows()) == 2
    assert (
        ctl("history", "-c", str(fox.context), "--json").out
        == json.dumps([row], indent=2, ensure_ascii=False) + "\n"
    )
    assert ctl("history", aid, "-i", "--since", "600", "--until", "300").rows() == []
    assert ctl("history", "-i", "--kind", "agent").status == 2
    kinds = {row["kind"] for row in json.loads(ctl("history", aid, "--json").out)}
    assert "request.end" in kinds and "interaction" not in kinds


def test_as_many_answers_as_it_takes_are_put_together() -> None:
    rows = [SimpleNamespace(id=id) for id in range(1, 8)]

    def ask(limit: int, before: int = 99) -> list[Any]:
        return [row for row in rows if row.id < before][-min(limit, 3) :]

    assert [row.id for row in _pages(ask, 5)] == [3, 4, 5, 6, 7]
    assert _pages(ask, 100) == rows
