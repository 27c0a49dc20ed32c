"""quota against a real daemon: show, set, remove, usage."""

from __future__ import annotations

import json

import pytest

from tests.aiosh.conftest import Run
from tests.daemon import Daemon
from tests.system.parties import register

pytestmark = pytest.mark.usefixtures("kernel")


def test_a_limit_from_setting_to_taking_away(ctl: Run, kernel: Daemon) -> None:
    one, a = register(kernel, "spender")
    set_ = ctl("quota", "set", "spender", "tokens", "50k", "--every", "1h", "--json")
    (row,) = json.loads(set_.out)
    assert (row["subject"], row["limit"], row["period"]) == (f"agent:{a}", 50_000, 3600)
    assert ctl("quota", "set", f"agent:{a}", "dollars", "2.5", "--soft").status == 0
    assert ctl("quota", "set", "spender", "storage_bytes", "64MiB").status == 0
    shown = {row[1]: row for row in ctl("quota", "show", "spender").rows()}
    assert shown["tokens"][:6] == [f"agent:{a}", "tokens", "50.0k", "0", "0", "50.0k"]
    assert shown["dollars"][2:3] + shown["dollars"][-2:] == ["$2.5", "soft", "root"]
    assert shown["storage_bytes"][2] == "64.0M" and "never" in shown["storage_bytes"]
    assert ctl("quota", "usage", "spender", "--by", "day", "--last", "7d").rows() == []
    assert ctl("quota", "remove", "spender", "tokens").status == 0
    assert len(json.loads(ctl("quota", "show", str(a), "--json").out)) == 2
    assert ctl("quota", "--json").out == "[]\n"  # nothing binds the person
    one.close()


def test_mistakes_are_told(ctl: Run, kernel: Daemon) -> None:
    one, a = register(kernel, "careless")
    assert ctl("quota", "set", "careless", "tokens", "many").status == 2
    result = ctl("quota", "set", "careless", "tokns", "5")
    assert (result.status, "did you mean 'tokens'" in result.err) == (1, True)
    assert ctl("quota", "remove", str(a), "tokens").status == 1
    assert ctl("quota", "set", "nobody", "tokens", "5").status == 1
    one.close()
