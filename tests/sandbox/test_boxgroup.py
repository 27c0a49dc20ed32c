"""Control groups of boxes, on a tree of files that looks like one of version 2's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiosd import boxgroup


class Machine:
    """A machine's control groups. own: the kernel's group in version 2."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.own = "/user/aiosd.service"
        monkeypatch.setattr(boxgroup, "ROOT", str(root))
        monkeypatch.setattr(boxgroup, "_own", lambda: {"": self.own})
        (root / "cgroup.controllers").write_text("cpu memory pids")

    def group(self, path: str, controllers: str) -> Path:
        place = self.root / path.lstrip("/")
        place.mkdir(parents=True)
        for name in ("cgroup.procs", "cgroup.subtree_control"):
            (place / name).write_text("")
        (place / "cgroup.subtree_control").write_text(controllers)
        return place


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    # Written once, as a file and not as one of cgroupfs: what was handed down stays as it is.
    monkeypatch.setattr(boxgroup, "_write", lambda path, value: None)
    boxgroup.place.cache_clear()
    yield Machine(tmp_path, monkeypatch)
    boxgroup.place.cache_clear()


def test_delegated_group_is_used(machine: Machine) -> None:
    own = machine.group(machine.own, "cpu memory pids")
    found = boxgroup.place()
    assert found.version == 2
    assert found.parents == ((str(own), ("memory", "pids", "cpu")),)


def test_group_above_the_kernels_own_is_used_where_the_unit_says_so(machine: Machine) -> None:
    above = machine.group(machine.own, "memory pids")
    machine.group(machine.own + "/kernel", "")
    machine.own += "/kernel"
    assert boxgroup.place().parents == ((str(above), ("memory", "pids")),)


def test_group_of_others_is_left_alone(machine: Machine) -> None:
    machine.group("/user", "cpu memory pids")
    machine.group(machine.own, "")
    found = boxgroup.place()
    assert found.parents == () and found.why


def test_what_a_dead_kernel_left_is_removed(machine: Machine) -> None:
    own = machine.group(machine.own, "memory pids")
    dead, living = own / "aios-box-4194305-1", own / f"aios-box-{os.getpid()}-1"
    for place in (dead, living):
        place.mkdir()
    boxgroup.place()
    assert living.exists() and not dead.exists()
