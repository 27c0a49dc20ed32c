"""The messages between the kernel and a tool host."""

import msgspec
import pytest

from aiosd.abi import toolwire, wire

MESSAGES = [
    toolwire.Call(1, "add", {"a": 1}, "/workspace", 2.5),
    toolwire.Cancel(1),
    toolwire.Quit(),
]
EVENTS = [
    toolwire.Ready([{"name": "add"}]),
    toolwire.Done(1, {"sum": 2}, ["plot.png"], {"cpu_s": 0.25}),
    toolwire.Failed(0, "unavailable", "no module named numbers"),
    toolwire.Changed([]),
]


@pytest.mark.parametrize("command", MESSAGES)
def test_commands_survive_the_wire(command: toolwire.Command) -> None:
    [payload] = wire.Frames(toolwire.MAX_MESSAGE).feed(toolwire.pack(command))
    assert toolwire.decode_command(payload) == command


@pytest.mark.parametrize("event", EVENTS)
def test_events_survive_the_wire(event: toolwire.Event) -> None:
    [payload] = wire.Frames(toolwire.MAX_MESSAGE).feed(toolwire.pack(event))
    assert toolwire.decode_event(payload) == event


def test_fields_may_be_left_out_and_added() -> None:
    """A host of another release says less, or more, and is understood."""
    short = msgspec.msgpack.encode(["Done", 3, "yes"])
    assert toolwire.decode_event(short) == toolwire.Done(3, "yes")
    longer = msgspec.msgpack.encode(["Done", 3, "yes", [], {}, "news"])
    assert toolwire.decode_event(longer) == toolwire.Done(3, "yes")


def _deep(levels: int) -> bytes:
    return b"\x93\xa4Done\x01" + b"\x91" * levels + b"\xc0"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode(["Call", 1, "add"]),
        msgspec.msgpack.encode(["Done", -1, None]),
        msgspec.msgpack.encode(["Failed", 1, "worse", "no such kind"]),
        msgspec.msgpack.encode(["Done", 1, None, ["x"] * (toolwire.MAX_ARTEFACTS + 1)]),
        _deep(100),
        _deep(1_000_000),
        b"\x93\xa4Done\x01\xdd\x00\x02\x00\x00" + b"\x90" * (2 << 16),
    ],
    ids=["nothing", "junk", "command", "ticket", "kind", "artefacts", "deep", "deeper", "many"],
)
def test_what_a_host_may_not_say_is_a_value_error(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        toolwire.decode_event(payload)


def test_what_would_be_refused_is_not_sent() -> None:
    with pytest.raises(ValueError, match="bytes, the limit is"):
        toolwire.pack(toolwire.Done(1, b"x" * (toolwire.MAX_MESSAGE + 1)))
    nested: list[object] = []
    for _ in range(wire.MAX_DEPTH + 2):
        nested = [nested]
    with pytest.raises(ValueError, match="nests deeper"):
        toolwire.pack(toolwire.Done(1, nested * 40))
