"""The tour of the source in the README: it names each module, and none that isn't there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
TOLD = ("aiosd", "aiosd/cores", "aiosd/endpoints", "aiosd/engine", "aiosd/sched", "aiosd/vectors",
        "agents/gateway", "agents/tools", "agents/tracing")  # fmt: skip


def test_the_tour_names_every_module_and_no_other() -> None:
    tour = (ROOT / "README.md").read_text().partition("## A tour of the source")[2]
    named = {name.rpartition("/")[2] for name in re.findall(r"`([\w/]+\.py)`", tour)}
    there = {path.name for folder in TOLD for path in (ROOT / folder).glob("[!_]*.py")}
    assert there - named == set()
    shown = (ROOT / folder for folder in ("aiosd", "agents", "sdk"))
    assert named - {path.name for folder in shown for path in folder.rglob("*.py")} == set()
