"""Kills without end: `make soak KILLS=1000`, and a short one among the tests.

    python -m tests.soak [KILLS [SEED [SECONDS]]]

It prints how far it has come every 50 kills, and goes on no longer than SECONDS (0: as long as it
takes): a long soak can be done in parts, each with a seed of its own.

Agents stream generations, each in the context of the one before, and are reniced and suspended;
memory holds the KV of a few. Keepers write, change, read and delete texts and objects, their own
and a group's (tests/soakstores.py); a person grants and revokes (tests/soakrights.py); spenders
generate under limits that are raised as they are used up (tests/soakquotas.py). Meanwhile
the kernel and its worker are killed: at random moments, and at every kill point in turn
(aiosd/killpoint.py). After each kill the database is looked into, and in the end everything is
counted.

What must hold: each token comes once, and is the one of the undisturbed run; each request that was
answered is on record once, with all its tokens; what an agent logged is in the history once, and
its forks are made once; in the end no request is open, no context left, no file leaked.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from math import inf
from pathlib import Path
from typing import Any, Final

import aios
from aiosd.killpoint import POINTS, VARIABLE
from tests.daemon import PATIENCE, Daemon
from tests.soakquotas import PRICES, Budget, Spender
from tests.soakrights import Rights
from tests.soakstores import LIMITS, POOL, Keeper, left_over
from tests.soakstores import look as look_at_stores

CORE: Final = (
    """
[sched]
policy = "fair"
[agents]
orphan_timeout = 120
[[cores]]
name = "c"
driver = "fake"
slots = 3
n_ctx = 2048
options = {step_ms = 1, prefill_ms = 2, eog = 0.003}
"""
    + PRICES
)
RAM: Final = "ram_limit = 400_000\n"
"""What [context] has besides: room for a few contexts, the others go to disk."""

AGENTS: Final = 6
KEEPERS: Final = 3
SPENDERS: Final = 2
TURNS: Final = 3
TOKENS: Final = 90
EVERY: Final = 50  # kills between two lines that say how far it has come
ARMED_S: Final = 4.0  # seconds that a kernel has to come to its kill point
RECONNECT: Final = 120.0


class Soak:
    """One daemon, its agents and what they were told.

    turn: the kill points that are died at in turn.
    """

    def __init__(
        self,
        daemon: Daemon,
        seed: int,
        agents: int = AGENTS,
        keepers: int = 0,
        spenders: int = 0,
        turn: Sequence[str] = tuple(POINTS),
    ) -> None:
        self.daemon = daemon
        self.kills = self.worker_kills = 0
        self.answered: dict[int, int] = {}  # tokens of each request that was answered
        self.logged: list[int] = []
        self.forked: list[int] = []
        self.usage: dict[int, list[int]] = {}  # requests and tokens of each agent
        self.rights = Rights()
        self.budget = Budget()
        self.points: dict[str, int] = {}  # how often each kill point was died at
        self._mark = daemon.state_dir / "mark"  # there once a process has died at a point
        self.keepers = [Keeper(n, seed + n, lambda: daemon.process.pid) for n in range(keepers)]
        self.spenders = [Spender(n, seed + n, self.budget) for n in range(spenders)]
        self._rng = random.Random(seed)
        self._turn = list(turn)
        self._rng.shuffle(self._turn)  # a soak in parts begins with other points each time
        self._agents = agents
        self._solo: dict[int, list[list[int]]] = {}
        self._living: set[int] = set()
        self._over = False
        self._marks = 0

    async def run(self, kills: int, points: Sequence[str] = (), seconds: float = inf) -> None:
        """Kill at these points, then so many times at random, though no longer than that.

        Raises AssertionError when something does not hold.
        """
        end = time.monotonic() + seconds
        for index in range(self._agents):
            self._solo[index] = await self._story(index)
        agents = [asyncio.create_task(self._live(index)) for index in range(self._agents)]
        agents.append(asyncio.create_task(self._grant()))
        agents += [asyncio.create_task(self._keep(keeper)) for keeper in self.keepers]
        agents += [asyncio.create_task(self._spend(spender)) for spender in self.spenders]
        try:
            for point in points:  # whoever takes up what one leaves dies at the next
                await self._arm(point, most=3)
                await self._await_death(point, PATIENCE)
                self._look()
                self._check(agents)
            if points:
                await asyncio.to_thread(self.daemon.start)
            kills += self.kills
            told = self.kills
            while self.kills < kills and time.monotonic() < end:
                await self._moment(agents)
                await self._kill()
                self._look()
                if self.kills >= told + EVERY:
                    told = self.kills
                    print(f"{self}; all holds", flush=True)
        finally:
            self._over = True
            self.rights.step()
            if any(task.done() for task in agents):
                for task in agents:
                    task.cancel()
            results = await asyncio.gather(*agents, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        await self._count()

    def __str__(self) -> str:
        kept = sum(keeper.done for keeper in self.keepers)
        spent = sum(len(spender.answered) for spender in self.spenders)
        return (
            f"{self.kills} kills ({self.worker_kills} of workers, {sum(self.points.values())} at "
            f"{len(self.points)} points): {len(self.answered)} requests, {kept} deeds of keepers, "
            f"{len(self.rights.given)} grants, {spent} requests within limits and "
            f"{sum(self.budget.refused.values())} beyond"
        )

    # The agents.

    async def _live(self, index: int) -> None:
        while not self._over:
            told = await self._story(index)
            assert told == self._solo[index], f"agent {index}: {told} is not {self._solo[index]}"

    async def _grant(self) -> None:
        async with await self._connect("") as person:
            await self.rights.live(person, lambda: self._over)

    async def _keep(self, keeper: Keeper) -> None:
        """Be one keeper, a member of the group; in the end count what it has."""

        def over() -> bool:
            self.rights.step()
            return self._over

        async with (
            await self._connect(keeper.tag) as kernel,
            await self._connect("") as person,
        ):
            await person.grant(f"agent:{kernel.aid}", "member", f"group:{POOL}")
            await self.budget.limit_keepers(person)
            await keeper.live(kernel, over)
            await keeper.count(kernel)

    async def _spend(self, spender: Spender) -> None:
        async with await self._connect(spender.tag) as kernel, await self._connect("") as person:
            await spender.live(kernel, person, lambda: self._over)

    async def _story(self, index: int) -> list[list[int]]:
        """Be one agent: some requests in one context, and a note about each."""
        told: list[list[int]] = []
        async with await self._connect(f"a{index}") as kernel:
            context = 0
            self._living.add(kernel.aid)
            for turn in range(TURNS):
                reply = await self._ask(kernel, index, turn, context)
                context = reply.context
                told.append(reply.token_ids)
                self._marks += 1
                mark = self._marks
                await kernel.log_event("mark", data={"n": mark})
                self.logged.append(mark)
                await self.rights.write_home(kernel, mark)
                if not turn:
                    begun = await kernel.gen_snapshot(context)
            await kernel.gen_restore(context, snapshot=begun.id)
            again = await self._ask(kernel, index, 1, context)
            assert again.token_ids == told[1], "it went on otherwise from a snapshot"
            child = await kernel.fork(kernel.aid)
            self.forked.append(child.aid)
            await kernel.kill(child.aid, signal="KILL")
            requests, tokens = self.usage.setdefault(kernel.aid, [0, 0])
            tokens += sum(map(len, [*told, again.token_ids]))
            self.usage[kernel.aid] = [requests + TURNS + 1, tokens]
            with suppress(FileNotFoundError):  # it was done before the answer got lost
                await kernel.clr_context(context)
            self._living.discard(kernel.aid)
        return told

    async def _connect(self, name: str) -> aios.AsyncKernel:
        """Connect; a kernel that is away just now is not waited for the first time, but by us."""
        while True:
            with suppress(ConnectionError):
                return await aios.connect_async(self.daemon.socket, name, reconnect=RECONNECT)
            await asyncio.sleep(0.05)

    async def _ask(
        self, kernel: aios.AsyncKernel, index: int, turn: int, context: int
    ) -> aios.Generation:
        words = f"Agent {index} keeps a diary about the sea and a small boat. " * (index + 1)
        stream = kernel.llm_generate(
            f" And on day {turn}," if turn else words,
            raw=True,
            max_tokens=TOKENS,
            temperature=0.8 if index % 2 else 0.0,
            seed=index,
            context=context,
            stream=True,
        )
        tokens: list[int] = []
        async for chunk in stream:
            assert chunk.index == len(tokens), "a token twice, or left out"
            tokens += chunk.token_ids
        reply: aios.Generation = stream.reply
        assert reply.token_ids == tokens and reply.exact
        assert reply.request not in self.answered, "a request was answered twice"
        self.answered[reply.request] = len(tokens)
        return reply

    # The kills.

    async def _moment(self, agents: list[asyncio.Task[None]]) -> None:
        """Let some work be done, and bother an agent; one that failed ends the run."""
        bother = asyncio.create_task(self._bother())
        await asyncio.wait([bother, *agents], return_when=asyncio.FIRST_COMPLETED)
        pause = self._rng.random() * 0.6
        await asyncio.wait(agents, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
        self._check(agents)
        await bother

    def _check(self, agents: list[asyncio.Task[None]]) -> None:
        """Raise what one of them has raised; none ends before the others."""
        for task in agents:
            if task.done():
                task.result()

    async def _bother(self) -> None:
        """Renice some agent, suspend it and let it go on."""
        if not self._living:
            return
        aid = self._rng.choice(sorted(self._living))
        async with await self._connect("") as person:
            with suppress(ProcessLookupError):  # it has ended meanwhile
                await person.set_priority(aid, self._rng.randint(0, 10))
                await person.suspend_agent(aid)
                await person.ping()
                await person.resume_agent(aid)

    async def _kill(self) -> None:
        deeds = [self._kill_worker, self._kill_kernel, self._kill_at_next]
        weights = [3 if self._agents or self.spenders else 0, 4, 3]
        await self._rng.choices(deeds, weights)[0]()

    async def _kill_worker(self) -> None:
        async with await self._connect("") as person:
            pid = (await person.list_cores())[0].pid
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.kills += 1
                self.worker_kills += 1

    async def _kill_kernel(self) -> None:
        await asyncio.to_thread(self.daemon.stop, signal.SIGKILL)
        self.kills += 1
        await asyncio.to_thread(self.daemon.start)

    async def _kill_at_next(self) -> None:
        point = self._turn.pop(0)
        self._turn.append(point)
        await self._kill_at(point)

    async def _kill_at(self, point: str) -> None:
        """Restart the kernel so that it dies at a point, or after a while; and once more.

        Where none has died yet, it dies soon: some points are seldom come by.
        """
        await self._arm(point, most=12 if point in self.points else 2)
        await self._await_death(point, ARMED_S)
        await asyncio.to_thread(self.daemon.start)

    async def _arm(self, point: str, most: int) -> None:
        """Have a kernel that dies at a point. most: times that it may come by before."""
        if self.daemon.process.poll() is None:
            self.kills += 1
        await asyncio.to_thread(self.daemon.stop, signal.SIGKILL)
        self._mark.unlink(missing_ok=True)
        self.daemon.environ[VARIABLE] = f"{point}:{self._rng.randint(1, most)}:{self._mark}"
        await asyncio.to_thread(self.daemon.launch)

    async def _await_death(self, point: str, seconds: float) -> None:
        """Return when it has died; it is killed when that takes too long, or its worker died."""
        with suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self.daemon.process.wait, seconds)
        if self._mark.exists():
            self.points[point] = self.points.get(point, 0) + 1
        del self.daemon.environ[VARIABLE]
        self.kills += 1
        await asyncio.to_thread(self.daemon.stop, signal.SIGKILL)

    # What must hold.

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.daemon.state_dir / "aios.db", timeout=PATIENCE)) as db:
            return db.execute(query).fetchall()

    def _look(self) -> None:
        """What was acknowledged is there, once; nothing is on record twice."""
        self.rights.look(self._rows)
        for keeper in self.keepers:
            keeper.look(self._rows)
        if self.keepers:
            look_at_stores(self._rows, self.daemon.state_dir / "blobs")
            self.budget.look_at_held(self._rows, [keeper.owner for keeper in self.keepers])
        self.budget.look(self._rows, [spender.aid for spender in self.spenders if spender.aid])
        for spender in self.spenders:
            spender.look(self._rows)
        answered, logged = dict(self.answered), list(self.logged)
        spenders = {spender.aid for spender in self.spenders}
        both = self._rows(_REQUESTS)  # at one moment, while others are ending
        found = [row for aid, *row, kept in both if not kept and aid not in spenders]
        ended = {id: tokens for id, tokens, finish in found if finish in ("stop", "length")}
        assert len(ended) == len(found), "a request was not ended by its agent"
        missing = answered.items() - ended.items()
        assert not missing, f"answered (request, tokens) {missing}, on record {len(ended)}"
        kept = sorted(id for _, id, *_, old in both if old)
        assert kept == sorted(id for _, id, *_, old in both if not old), "the history differs"
        marks = [n for (n,) in self._rows(_MARKS)]
        assert len(marks) == len(set(marks)), "an entry is in the history twice"
        assert set(logged) <= set(marks), "an entry that was acknowledged is not in the history"

    async def _count(self) -> None:
        """Nothing is left open, and the sums are right."""
        self._look()
        if self.keepers:
            left_over(self._rows, self.daemon.state_dir / "blobs")
        for spender in self.spenders:
            spender.count(self._rows)
        spenders = {spender.aid for spender in self.spenders}
        ran = [id for aid, id in self._rows("select aid, id from requests") if aid not in spenders]
        assert len(ran) == len(self.answered), "a request was run that nobody got an answer of"
        async with await self._connect("") as person:
            await self.rights.count(person)
            await self.budget.count(person, self._rows)
            assert await person.list_contexts() == []
            rows = {
                aid: (await person.list_agents(aid=aid, all=True))[0].usage for aid in self.usage
            }
        children = [aid for (aid,) in self._rows("select aid from agents where kind = 'forked'")]
        assert sorted(children) == sorted(self.forked), "a fork was done twice, or is lost"
        for aid, (requests, tokens) in self.usage.items():
            assert (rows[aid].requests, rows[aid].tokens_out) == (requests, tokens)
        for table in ("open_requests", "contexts", "snapshots"):
            assert self._rows(f"select count(*) from {table}") == [(0,)], f"rows left in {table}"


_REQUESTS: Final = (
    "select aid, id, completion_tokens, finish, 0 from requests"
    " union all select aid, rid, 0, '', 1 from interactions"
)
_MARKS: Final = "select json_extract(data, '$.n') from events where kind like '%mark'"


def squeezed(daemon: Daemon) -> Daemon:
    """Leave a daemon that is not started little memory for KV."""
    with daemon.config.open("a") as file:
        file.write(RAM)
    return daemon


def main(kills: int = 1000, seed: int = 1, seconds: int = 0) -> None:
    """Run the soak in directories of its own."""
    with tempfile.TemporaryDirectory(prefix="aios-soak-", dir="/tmp") as base:
        places = [Path(base) / name for name in ("state", "run", "kv")]
        for place in places:
            place.mkdir(mode=0o700)
        state, run, kv = places
        with squeezed(Daemon(state, run, kv, config=CORE + LIMITS)) as daemon:
            soak = Soak(daemon, seed, keepers=KEEPERS, spenders=SPENDERS)
            asyncio.run(soak.run(kills, seconds=seconds or inf))
        left = [str(path) for path in (*run.rglob("*"), *kv.rglob("*"))]
        assert not left, f"files leaked: {left}"
    print(f"{soak}; all holds in the end, seed {seed}")
    print(f"at points: {soak.points}, not met: {sorted(POINTS.keys() - soak.points.keys())}")
    print(f"refused: {dict(soak.budget.refused)}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
