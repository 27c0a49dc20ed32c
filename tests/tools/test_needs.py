"""What an operator lets a tool reach beyond what it declares."""

from __future__ import annotations

import pytest

from aiosd.declaration import declare, widen

TOOL = declare(
    {"name": "look", "command": ["/bin/true"], "needs": {"network": ["a.example"]}}, "registered"
)


def test_an_operator_adds_to_what_a_tool_needs() -> None:
    more = {"network": ["10.0.0.5:8080", "a.example"], "read": ["/srv/rates"], "secrets": ["KEY"]}
    wide = widen(TOOL, more)
    assert wide.needs.network == ("a.example", "10.0.0.5:8080")
    assert (wide.needs.read, wide.needs.write, wide.needs.secrets) == (
        ("/srv/rates",),
        (),
        ("KEY",),
    )
    assert wide.digest != TOOL.digest
    assert TOOL.needs.network == ("a.example",)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"network": ["http://a.example/"]}, "is not a host"),
        ({"read": ["rates"]}, "no plain absolute path"),
        ({"host": ["a.example"]}, "host: is not known"),
    ],
)
def test_what_it_says_wrong_is_named(more: dict[str, list[str]], says: str) -> None:
    with pytest.raises(OSError, match=rf"\[tools\.needs\.look\]: .*{says}"):
        widen(TOOL, more)
