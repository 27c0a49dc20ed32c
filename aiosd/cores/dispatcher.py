"""The dispatcher: all cores by name, how they come and go, and which one a request gets.

How a core is made is its driver's business (drivers.py); what it is, the interface's (core.py).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from aiosd import config as configuration
from aiosd import rayplace, sched
from aiosd.abi import cores as abi
from aiosd.config import Config
from aiosd.config import Core as CoreConfig
from aiosd.config import Sched as SchedConfig
from aiosd.cores import drivers, rows, slotclass
from aiosd.cores.bridge import Bridge
from aiosd.cores.core import Core, Listener, Parts
from aiosd.cores.local import LocalCore
from aiosd.cores.offer import CoreOffer, why_not
from aiosd.cores.price import Price
from aiosd.cores.routing import Router, Wish
from aiosd.cores.sequence import Sequence
from aiosd.cores.tiers import Tiers
from aiosd.engine.protocol import CoreSetup
from aiosd.sched import Task
from aiosd.sched.due import Parties

log = logging.getLogger(__name__)

Verdicts = Callable[[str], str]  # key of a core's setting -> what its probe said before, or ""

TUNABLE: Final = ("levels", "boost", "credit", "period", "prefill_cost", "decode_cost")
"""Numbers of [sched] beside the quantum that set_sched may change."""

SAVING: Final = 5.0  # seconds for all workers to save what is in their slots


class Cores:
    """The cores of this kernel."""

    def __init__(
        self, config: Config, listener: Listener, verdicts: Verdicts, secret: bytes = b""
    ) -> None:
        """secret: the key of watermarks."""
        self._secret = secret
        self.sched = config.sched  # and what set_sched has changed since
        self._config = config
        self._listener = listener
        self._verdicts = verdicts
        self.tiers = Tiers(
            Path(config.context.kv_dir),
            config.context.ram_limit,
            Path(config.kernel.state_dir) / "contexts",
            config.context.disk_limit,
        )
        self.bridge = Bridge(config.kernel.endpoints_timeout)
        self._cores: dict[str, Core] = {}
        self.router = Router(config.routing)
        self.offers: dict[str, CoreOffer] = {}
        self.fetch: Callable[[str], Awaitable[str]] | None = None  # brings models of the hub
        self.evacuate: Callable[[Core], Awaitable[None]]  # moves a core's contexts to others
        self._configs: dict[str, CoreConfig] = {}
        self._absent: dict[str, Core] = {}  # cores of contexts that are there no more
        self.refused: dict[str, tuple[CoreConfig, str]] = {}
        """Configured cores that could not be begun, and why."""
        self._tasks: set[asyncio.Task[None]] = set()

    def __iter__(self) -> Iterator[Core]:
        return iter(self._cores.values())

    @property
    def local(self) -> list[LocalCore]:
        """Those whose KV is in our hands."""
        return [core for core in self if isinstance(core, LocalCore)]

    @property
    def waiting(self) -> Iterable[Task]:
        """The requests that wait for others to end."""
        return {task.id: task for core in self for task in core.queue.policy.waiting}.values()

    async def boot(self) -> None:
        """Begin to load the configured cores; requests wait for them."""
        self.tiers.boot()
        for core in self._config.cores:
            try:
                self._begin(core)
            except OSError as error:
                why = f"core {core.name}: {error.strerror or error}"
                self.refused[core.name] = core, why
                log.error("%s", why)

    def reload(self, config: Config) -> None:
        """Take on the schedule and the limits of KV off the cores; cores stay as they are."""
        self.bridge.silence = config.kernel.endpoints_timeout
        self.tiers.ram.limit = config.context.ram_limit
        self.tiers.disk.limit = config.context.disk_limit
        for core in self.local:
            core.sharing.public_limit = config.context.public_limit
            core.sharing.bound()
        if config.routing != self.router.routing:
            self.router.set_rules(config.routing)
        before, self._config = self._config.sched, config
        if config.sched != before:
            self._reschedule(config.sched)

    async def adopt(self, sequences: dict[int, Sequence], named: Iterable[str] = ()) -> None:
        """Take over the KV that an earlier kernel left of these sequences, by context id.

        named: files that are kept whatever they hold. All others are deleted.
        """
        known = (*self._cores.values(), *self._absent.values())
        homes = [core for core in known if isinstance(core, LocalCore)]
        grids = {cid: core.setup.grid for core in homes for cid in core.placement.sequences}
        await self.tiers.adopt(sequences, lambda sequence: grids.get(sequence.cid, 1), named)

    async def close(self) -> None:
        """Save what is in the slots, stop all cores, and leave the files to the next kernel."""
        await self._save_all()
        await self.tiers.drain(self._config.kernel.drain_timeout)
        self.tiers.seal()
        await asyncio.gather(*(core.stop() for core in list(self._cores.values())))
        await self.bridge.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.tiers.close()

    async def _save_all(self) -> None:
        """Bring what is only in slots into files, while the worker answers soon."""
        saves = (core.placement.save_all() for core in self.local)
        try:
            async with asyncio.timeout(SAVING):
                await asyncio.gather(*saves)
        except TimeoutError:
            log.warning("contexts were not saved in %g s; they will be computed again", SAVING)

    async def add(self, core: CoreConfig) -> Core:
        """Load a model as a core and return it when it is ready.

        Raises OSError with the reason; nothing is left of a core that could not be loaded.
        """
        if core.name in self._cores:
            raise FileExistsError(errno.EEXIST, f"core {core.name}: there is one of this name")
        made, task = self._begin(core)
        try:
            await asyncio.shield(task)
        except BaseException:
            self._drop(made)
            await made.stop()
            raise
        return made

    async def remove(self, name: str) -> None:
        """Remove a core; what runs on it fails. Raises OSError(ENOENT)."""
        if self.refused.pop(name, None) is not None:
            return
        core = self.get(name)
        for beside in [other for other in self if other.base == name]:
            await self.remove(beside.name)
        self._drop(core)
        await core.stop()

    def retire(self, core: Core) -> None:
        """Remove a draining core that has nothing left, from where nothing can be awaited."""
        if self._drop(core):
            task = asyncio.create_task(core.stop())
            self._tasks.add(task)
            task.add_done_callback(self._begun)

    def drain(self, name: str) -> Core:
        """Give a core nothing new. Raises OSError(ENOENT)."""
        core = self.get(name)
        for one in [other for other in self if other is core or other.base == name]:
            one.drain()
        return core

    def get(self, name: str) -> Core:
        """Return a core by name; raises FileNotFoundError that lists those there are."""
        core = self._cores.get(name)
        if core is None:
            known = ", ".join(self._cores) or "none"
            why = f" ({self.refused[name][1]})" if name in self.refused else ""
            raise FileNotFoundError(errno.ENOENT, f"no core {name!r}{why}; there are: {known}")
        return core

    def find(self, name: str) -> Core | None:
        """Return a core by name, None when there is none; a slot class beside a core is begun."""
        core, found = self._cores.get(name), slotclass.parse(name)
        base = self._cores.get(found[0]) if found is not None else None
        if core is None and found is not None and isinstance(base, LocalCore):
            return self.widened(base, found[1], yarn=found[2])
        return core

    def widened(self, base: LocalCore, n_ctx: int, *, yarn: bool) -> LocalCore:
        """Return the slot class of this window beside a core; it is begun if there is none yet.

        Raises OSError(ENOMEM).
        """
        name = slotclass.title(base.name, n_ctx, yarn=yarn)
        if isinstance(core := self._cores.get(name), LocalCore):
            return core
        if base.loaded is not None:
            slotclass.check_memory(base, n_ctx)
        config = msgspec.structs.replace(self._configs[base.name], name=name, n_ctx=n_ctx)
        setup = msgspec.structs.replace(base.setup, n_ctx=n_ctx, yarn=yarn)
        core, _ = self._begin(config, setup)
        assert isinstance(core, LocalCore)
        core.base, core.on_empty = base.name, self.tidy
        return core

    def tidy(self, core: LocalCore) -> None:
        """Remove a slot class that no context is on, nor about to be."""
        if core.base and core.empty and not core.awaited:
            self.retire(core)

    def home(self, name: str) -> Core:
        """Return the core of a context that outlived a kernel, by its name.

        Where there is none any more: one that computes nothing, is on no list, and says why.
        """
        core = self.find(name) or self._absent.get(name)
        if core is None:
            core = self._absent[name] = self._stand_in(name)
        return core

    def _stand_in(self, name: str) -> Core:
        nothing = CoreSetup(
            runner="", model="", slots=1, n_ctx=0, grid=1, threads=1, gpu_layers=0,
            kv_k="", kv_v="", exact=True, verdict="",
        )  # fmt: skip
        policy = sched.make(self.sched.policy, **_options(self.sched))
        core = LocalCore(name, nothing, 0, policy, self.tiers, self._listener)
        gone = f"there is no core {name!r} since aiosd was restarted"
        _, why = self.refused.get(name, (None, gone))
        core.never(f"{why}; add it again to go on with this context")
        return core

    def choose(self, wish: Wish, name: str = "", without: Collection[str] = ()) -> tuple[Core, str]:
        """Return the core for a request, and why it: the named one, else as routing.py decides.

        without: names of cores that have failed on it. Raises OSError: ENOENT, EINVAL for a route
        that there is not, ENODEV when none can take it.
        """
        if name:
            core = self.get(name)
            if not core.accepting:
                raise OSError(errno.ENODEV, why_not(core))
            if (offer := self.offers.get(name)) is not None:
                self.router.check(offer, wish)
            return core, "it was asked for by name"
        try:
            choice = self.router.choose(wish, time.monotonic(), without)
        except OSError as error:
            refused = "; ".join(why for _, why in self.refused.values())
            more = f"; {refused}" if refused and error.errno == errno.ENODEV else ""
            raise OSError(error.errno, f"{error.strerror}{more}") from None
        return self._cores[choice.name], choice.reason

    def has(self, core: Core, feature: str) -> bool:
        """Whether a core has a feature, of itself or as configured."""
        found = self.offers.get(core.name)
        return feature in (core.features if found is None else found.features)

    def count(self, core: Core, requests: int) -> None:
        """Note that a core was given so many requests more."""
        core.requests += requests
        self.router.changed(core.name)

    def measured(self, core: Core, load: int, speed: tuple[float, float] | None) -> None:
        """Note what a request met on a core that had so many with it when it came.

        speed: seconds to its first token, and of each further one; None: it says nothing.
        """
        offer = self.offers.get(core.name)
        if speed is not None and offer is not None and offer.core is core:
            offer.speed.add(load, *speed, time.monotonic())
            self.router.changed(core.name)

    def set_sched(self, policy: str, quantum: int, options: Mapping[str, float]) -> None:
        """Change the policy of all cores, or numbers of [sched] by their names (TUNABLE).

        policy "" and quantum 0 leave them as they are. Raises OSError(EINVAL) and changes nothing
        then.
        """
        if unknown := sorted(options.keys() - set(TUNABLE)):
            known = ", ".join(TUNABLE)
            raise OSError(errno.EINVAL, f"set_sched: no option {unknown[0]!r}; there are {known}")
        now = msgspec.to_builtins(self.sched)
        now |= {"policy": policy or self.sched.policy, "quantum": quantum or self.sched.quantum}
        now |= {name: int(v) if v == int(v) else v for name, v in options.items()}
        try:
            new = msgspec.convert(now, SchedConfig)
        except msgspec.ValidationError as error:
            raise OSError(errno.EINVAL, f"set_sched: {error}") from None
        self._reschedule(new)

    @property
    def tuning(self) -> dict[str, float]:
        """The numbers of [sched] that the present policy uses, by name."""
        names = [name for name in TUNABLE if sched.takes(self.sched.policy, name)]
        return {name: getattr(self.sched, name) for name in names}

    def _reschedule(self, new: SchedConfig) -> None:
        sched.make(new.policy, **_options(new))
        self.sched = new
        for core in self._cores.values():
            core.queue.change(new.policy, **_options(new))
            core.queue.standing.parties = _parties(new)

    def rows(self) -> list[abi.Core]:
        """Describe every core, those that were refused at last."""
        refused = [rows.refused(config, why) for config, why in self.refused.values()]
        return [self.row(core) for core in self._cores.values()] + refused

    def row(self, core: Core) -> abi.Core:
        """Describe one core."""
        row, offer = core.row(), self.offers.get(core.name)
        if offer is None:
            return row
        first, _ = offer.speed.expect(core.requests + 1, time.monotonic())
        return msgspec.structs.replace(
            row,
            capability=offer.kind,
            features=sorted(offer.features),
            price_in=core.price.prompt,
            price_out=core.price.output,
            quality=offer.quality,
            requests=core.requests,
            first_token_s=first,
        )

    def _begin(
        self, config: CoreConfig, setup: CoreSetup | None = None
    ) -> tuple[Core, asyncio.Task[None]]:
        """Make a core and start loading it. setup: where it is not as its configuration says."""
        parts = Parts(
            config,
            sched.make(self.sched.policy, **_options(self.sched)),
            self.tiers,
            self._listener,
            self._verdicts,
            self._secret,
            setup,
            self.fetch,
            self.bridge,
            os.path.join(self._config.kernel.cache_dir, "weights"),
        )
        core = drivers.find(config.driver)(parts)
        core.price = _price(config)
        core.queue.standing.parties = _parties(self.sched)
        if isinstance(core, LocalCore):
            core.sharing.public_limit = self._config.context.public_limit
        self._cores[config.name] = core
        self._configs[config.name] = config
        if setup is None:  # nobody is sent to a slot class
            self.offers[config.name] = CoreOffer(core, config)
            self.router.add(self.offers[config.name])
        self.refused.pop(config.name, None)
        task = asyncio.create_task(core.start())
        self._tasks.add(task)
        task.add_done_callback(self._begun)
        return core, task

    def _drop(self, core: Core) -> bool:
        """Take a core off the list; False when it is not on it any more."""
        if self._cores.get(core.name) is not core:
            return False
        del self._cores[core.name], self._configs[core.name]
        self.offers.pop(core.name, None)
        self.router.remove(core.name)
        return True

    def _begun(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and getattr(error, "errno", 0) != errno.ECANCELED:  # it was removed
            log.error("%s", getattr(error, "strerror", None) or error)


def _options(settings: SchedConfig) -> dict[str, Any]:
    """Return what a policy is made with: of all settings those that it takes."""
    parties = _parties(settings)
    given = {
        "quantum": settings.quantum,
        **{name: getattr(settings, name) for name in TUNABLE},
        "groups": parties.groups,
        "members": parties.members,
        "weights": parties.weights,
    }
    return {name: value for name, value in given.items() if sched.takes(settings.policy, name)}


def _parties(settings: SchedConfig) -> Parties:
    """Return who shares with whom; a user who is gone meanwhile shares alone."""
    find = configuration.find_user
    named = [(find(user), group) for group, users in settings.groups.items() for user in users]
    weights: dict[Hashable, float] = {
        name if name in settings.groups else find(name): weight
        for name, weight in settings.weights.items()
    }
    members = {uid: group for uid, group in named if uid is not None}
    return Parties(settings.share_by == "user", members, weights)


def _price(config: CoreConfig) -> Price:
    """Return what a core's tokens cost; what a local one has read before costs nothing."""
    if config.driver in ("llama", "fake", "ray"):
        return Price(config.price_in, config.price_out)
    cached = config.remote.price_cached
    return Price(config.price_in, config.price_out, config.price_in if cached < 0 else cached)


def default_name(model: str) -> str:
    """Return the name of a core that was added without one: its model's, made a valid name."""
    if model.startswith(rayplace.SCHEME):
        model = rayplace.title(model)
    stem = Path(model).name.removesuffix(".gguf")
    return re.sub(r"[^A-Za-z0-9._:-]", "-", stem)[:64].lstrip("._:-") or "core"
