"""A worker behind a bridge says what one beside the kernel says, whatever the node does.

The node is a process of this machine (tests/cores/bridge.py); what Ray adds is in test_ray.py.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
from pathlib import Path

import psutil
import pytest

from aiosd.cores.sequence import Sequence
from aiosd.engine.snapshot import verify
from aiosd.raynode import Node
from aiosd.rayplace import Place, place, title
from aiosd.rayshelf import GRACE, Shelf
from tests.cores.conftest import DEADLINE, Bench, MakeBench, Result, within

PROMPTS = [f"agent {i} greets the world. " * (3 + 3 * i) for i in range(6)]
AGAIN = "And then? "
SLOTS = 2  # so that four of the six contexts have left their slots before they go on


@pytest.fixture
def node(tmp_path: Path) -> Path:
    path = tmp_path / "node"
    path.mkdir()
    return path


async def ended(result: Result) -> list[int]:
    await within(result.done)
    return result.tokens


_beside: list[list[int]] = []


async def beside(bench: MakeBench) -> list[list[int]]:
    """What is said in both turns by a worker of the kernel's own, each context alone."""
    if not _beside:
        async with bench() as b:
            await b.core.start()
            _beside.extend([await b.solo(prompt, AGAIN) for prompt in PROMPTS])
    return _beside


async def first(b: Bench) -> list[tuple[Sequence, list[int]]]:
    """Have all contexts take their first turn."""
    await b.core.start()
    runs = [await b.submit(prompt) for prompt in PROMPTS]
    return [(sequence, await ended(result)) for sequence, result in runs]


async def second(b: Bench, told: list[tuple[Sequence, list[int]]]) -> list[list[int]]:
    """Have them go on; returns what each has said in both turns."""
    runs = [await b.submit(AGAIN, sequence=sequence) for sequence, _ in told]
    rest = [await ended(result) for _, result in runs]
    return [tokens + more for (_, tokens), more in zip(told, rest, strict=True)]


def test_contexts_take_turns_on_a_node_and_come_back(bench: MakeBench, node: Path) -> None:
    async def go() -> None:
        solo = await beside(bench)
        async with bench(slots=SLOTS, node=node) as b:
            told = await first(b)
            for sequence, _ in told:  # what left a slot last may be on its way yet
                async with asyncio.timeout(DEADLINE):
                    await b.core.placement.settle(sequence)
            held = [s for sequence, _ in told for s in sequence.snapshots]
            assert len(held) >= len(PROMPTS) - SLOTS
            assert all(verify(s.path).used == s.size for s in held)  # here, whole
            assert await second(b, told) == solo
            assert b.core.loaded is not None and "; on node " in b.core.loaded.setting
        assert not (node / "stored").exists()  # the node had its own copies all the while
        assert b.news.count("lost") == 0 and not [n for n in b.news if n.startswith("fell")]
        assert list(node.iterdir()) == []

    asyncio.run(go())


def test_contexts_resume_on_another_node(bench: MakeBench, node: Path) -> None:
    """The first is lost; what had left its slots is carried to the second."""

    async def go() -> None:
        solo = await beside(bench)
        async with bench(slots=SLOTS, node=node) as b:
            told = await first(b)
            (node / "cut").touch()
            assert await second(b, told) == solo
            assert b.core.restarts == 1 and b.news.count("lost") == 1
            assert not [n for n in b.news if n.startswith("fell")]
        assert (node / "stored").exists() and not (node / "cut").exists()

    asyncio.run(go())


def test_a_node_without_room_computes_again(bench: MakeBench, node: Path) -> None:
    """What can't be carried is no loss: the sequence goes on from its tokens."""

    async def go() -> None:
        solo = await beside(bench)
        async with bench(slots=SLOTS, node=node) as b:
            told = await first(b)
            (node / "full").touch()
            (node / "cut").touch()
            assert await second(b, told) == solo
            assert [news for news in b.news if "can't be brought" in news]

    asyncio.run(go())


def test_an_engine_that_is_killed_is_replaced(bench: MakeBench, node: Path) -> None:
    async def go() -> None:
        solo = await beside(bench)
        async with bench(slots=SLOTS, node=node) as b:
            told = await first(b)
            (engine,) = psutil.Process(b.core.pid).children()
            engine.send_signal(signal.SIGKILL)
            assert await second(b, told) == solo
            assert b.core.restarts == 1

    asyncio.run(go())


def test_files_that_are_damaged_or_lost_at_the_kernel(
    bench: MakeBench, node: Path, kv_dir: Path
) -> None:
    async def go() -> None:
        solo = await beside(bench)
        async with bench(slots=SLOTS, node=node) as b:
            told = await first(b)
            for at, path in enumerate(sorted(kv_dir.glob("*.kv"))):
                if at % 2:
                    path.unlink()
                else:
                    path.write_bytes(b"no snapshot" + path.read_bytes()[11:])
            assert await second(b, told) == solo
            assert b.core.restarts == 0
            assert [news for news in b.news if news.startswith("fell back")]
        shutil.rmtree(kv_dir / "damaged")  # kept to be looked at

    asyncio.run(go())


def test_why_a_core_can_t_be_had(bench: MakeBench, node: Path) -> None:
    async def why(**told: object) -> str:
        async with bench(node=node, place=told) as b:
            await b.core.start()
        raise AssertionError("it started")

    for told, expected in (
        ({"num_gpus": 1}, "there are no GPUs here"),
        ({"address": "/nowhere"}, "no directory"),
        ({"model": '{"fail_load": "weights of lead"}'}, "weights of lead"),
    ):
        with pytest.raises(OSError, match=expected):
            asyncio.run(why(**told))


def test_the_files_of_a_dead_actor_are_swept(node: Path) -> None:
    async def go() -> None:
        one, two = Node(str(node)), Node(str(node))
        for each in (one, two):
            await each.open("fake", "{}", 19)
        await one.store("1.kv", 0, b"x" * 100)
        left = Path(shutil.copytree(await one.directory(), f"{await one.directory()}-dead"))
        assert (left / "1.kv").exists()
        three = Node(str(node))
        await three.open("fake", "{}", 19)
        assert await one.fetch("1.kv", 98, 200) == b"xx"  # it lives: nobody touched it
        assert not left.exists()
        for each in (one, two, three):
            await each.close()
        assert list(node.iterdir()) == []

    asyncio.run(go())


class TestShelf:
    """The bookkeeping of a node's files."""

    now = 0.0

    def make(self, limit: int) -> Shelf:
        return Shelf(limit, lambda: self.now)

    def test_a_file_is_known_by_what_is_in_it(self) -> None:
        shelf = self.make(1000)
        name = shelf.write("/kv/1.kv")
        assert shelf.find("/kv/1.kv", b"old") == name  # it is being written
        shelf.written(name, b"mark", 100)
        assert shelf.find("/kv/1.kv", b"old") == ""  # another has been put there since
        assert shelf.find("/disk/1.snapshot", b"mark") == name
        assert shelf.find("/kv/2.kv", b"") == ""

    def test_what_was_not_written_is_not_there(self) -> None:
        shelf = self.make(1000)
        name = shelf.write("/kv/1.kv")
        shelf.written(name, b"", 0)
        assert shelf.find("/kv/1.kv", b"mark") == ""

    def test_the_oldest_gives_way_when_nobody_has_named_it_for_a_while(self) -> None:
        shelf = self.make(250)
        names = [shelf.add(mark, 100) for mark in (b"a", b"b", b"c")]
        assert len(set(names)) == 3 and shelf.surplus() == []  # all were named just now
        self.now = GRACE + 1
        assert shelf.find("", b"a") == names[0]
        assert shelf.add(b"d", 100) == names[1]  # written again: it costs no fresh pages
        assert shelf.find("", b"b") == ""
        assert shelf.find("", b"a") == names[0]
        assert shelf.surplus() == [names[2]] and shelf.used == 200

    def test_what_is_being_written_stays(self) -> None:
        shelf = self.make(0)
        name = shelf.write("/kv/1.kv")
        self.now = 2 * GRACE
        assert shelf.write("/kv/2.kv") != name
        shelf.written(name, b"mark", 50)
        self.now = 4 * GRACE
        assert shelf.surplus() == [name] and shelf.used == 0


class TestPlace:
    """Where a core is to run, in words."""

    def test_an_address_says_it_all(self) -> None:
        url = "ray://head:1234/models/x.gguf?num_cpus=4&resources=arm:2&resources=fast&wait=9"
        told = place(url, 3, {"cache": 5})
        assert told == Place(
            address="head:1234",
            model="/models/x.gguf",
            threads=3,
            num_cpus=4,
            resources={"arm": 2, "fast": 1},
            wait=9,
            cache=5,
        )
        assert told.wants == {"CPU": 4, "arm": 2, "fast": 1}
        assert title(url) == "x.gguf"
        assert title("ray://head") == "ray-head"
        assert place("ray://head", 0, {}).address == "head:6379"
        assert place("smollm2", 0, {"address": "h:1"}).model == "smollm2"

    @pytest.mark.parametrize(
        ("model", "options", "why"),
        [
            ("x.gguf", {}, "no address"),
            ("ray://", {}, "no host"),
            ("ray://head:70000/x", {}, "ort"),
            ("ray://head?speed=9", {}, "speed"),
            ("ray://head?num_cpus=-1", {}, "num_cpus"),
            ("ray://head", {"runner": "other"}, "runner"),
        ],
    )
    def test_what_is_wrong_is_named(self, model: str, options: dict[str, object], why: str) -> None:
        with pytest.raises(OSError, match=why):
            place(model, 0, options)
