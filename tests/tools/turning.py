"""A daemon whose tools are those of tests.tools.kernel."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.daemon import Daemon
from tests.system.agents import until
from tests.system.writer import core

CORE = """
[[cores]]
name = "c"
driver = "fake"
slots = 2
n_ctx = 16384
"""
WORD = {"type": "string", "maxLength": 4}
TOOLS: dict[str, dict[str, Any]] = {
    "launch": {"type": "object", "properties": {"code": WORD}, "required": ["code"]},
    "add": {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}, "sure": {"enum": [1]}},
        "required": ["a"],
        "additionalProperties": False,
    },
    "narrow": {
        "type": "object",
        "properties": {"x": {"type": "number", "minimum": 0.4, "maximum": 0.5}, "name": WORD},
        "required": ["x"],
        "additionalProperties": False,
    },
    "nothing": {"type": "object", "properties": {}},
    "broken": {"type": "object", "properties": {}},
    "evil": {"type": "object", "properties": {}},
    "meet": {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]},
    "wait": {"type": "object", "properties": {}},
}


class ToolDaemon(Daemon):
    """A daemon with the tools of tests.tools.kernel."""

    def arguments(self, *more: str) -> Sequence[str]:
        python, _, _, *rest = super().arguments(*more)
        return [python, "-m", "tests.tools.kernel", *rest]

    @property
    def tools(self) -> Path:
        return self.state_dir / "tools.json"

    def start(self) -> ToolDaemon:
        self.tools.write_text(json.dumps(TOOLS))
        self.environ["AIOS_TEST_TOOLS"] = str(self.tools)
        super().start()
        until(lambda: core(self).state == "ready", "the core is ready")
        return self

    def made(self) -> list[dict[str, Any]]:
        """Return the calls that were made so far."""
        path = self.tools.with_suffix(".log")
        return list(map(json.loads, path.read_text().splitlines())) if path.exists() else []
