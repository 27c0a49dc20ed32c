"""The table is sound, and keeps what each released level promised."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aiosd.abi import LEVEL
from aiosd.abi.call import GENERAL_ERRORS, Call, Syscall, snake, syscall
from aiosd.abi.table import BY_ARGS, BY_NAME, TABLE
from tests.abi.released import describe

RELEASED = sorted((Path(__file__).parent / "abi").glob("level*.json"))


@pytest.fixture(scope="module")
def present() -> dict[str, Any]:
    return describe()


def test_every_level_has_its_promise() -> None:
    assert [path.stem for path in RELEASED] == [f"level{n}" for n in range(1, LEVEL + 1)]


@pytest.mark.parametrize("path", RELEASED, ids=lambda path: path.stem)
def test_released_calls_are_as_they_were(path: Path, present: dict[str, Any]) -> None:
    promise = json.loads(path.read_text(encoding="utf-8"))
    for number, was in promise["calls"].items():
        now = present["calls"][number]
        for part in ("name", "since", "needs", "reply", "chunk"):
            assert now[part] == was[part], f"{was['name']}: {part}"
        assert set(was["errors"]) <= set(now["errors"])
        check_fields(was["name"], was["fields"], now["fields"])
    for name, fields in promise["records"].items():
        check_fields(name, fields, present["records"][name])


def check_fields(name: str, were: list[dict[str, Any]], are: list[dict[str, Any]]) -> None:
    """Released fields stand first and unchanged; new ones have a default."""
    assert are[: len(were)] == were, name
    assert all("default" in field for field in are[len(were) :]), name


def test_new_calls_say_which_level_brought_them() -> None:
    for path in RELEASED:
        promise = json.loads(path.read_text(encoding="utf-8"))
        for number, call in TABLE.items():
            if str(number) not in promise["calls"]:
                assert call.since > promise["level"], call.name


@pytest.mark.parametrize("call", TABLE.values(), ids=lambda call: call.name)
def test_an_entry_is_whole(call: Syscall) -> None:
    assert call.name == snake(call.args.__name__)
    assert BY_NAME[call.name] is call
    assert BY_ARGS[call.args] is call
    assert call.doc.endswith(".")
    assert 1 <= call.since <= LEVEL
    assert all(hasattr(errno, name) for name in (*call.errors, *GENERAL_ERRORS))


@pytest.mark.parametrize("call", TABLE.values(), ids=lambda call: call.name)
def test_unknown_fields_are_refused(call: Syscall) -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.msgpack.decode(b"\x81\xa1?\xc0", type=call.args)


def test_a_number_is_given_once() -> None:
    class Again(Call, frozen=True):
        """A call."""

    with pytest.raises(ValueError, match="system call 1 is ping already"):
        syscall(1, reply=None)(Again)
    with pytest.raises(ValueError, match="unknown errno"):
        syscall(100_000, reply=None, errors="ENONSENSE")(Again)
    assert 100_000 not in TABLE
