"""The machine: system calls about cores and the schedule, and the news that cores send.

Tells watchers and the log what happens to cores, and remembers what their probes found.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from aiosd import rayplace, sched, secret
from aiosd.abi import cores as abi
from aiosd.abi import inference as abi_inference
from aiosd.abi import process as abi_process
from aiosd.access import Access, Caller
from aiosd.config import Config, mistake
from aiosd.config import Core as CoreConfig
from aiosd.cores.core import Core
from aiosd.cores.dispatcher import Cores, default_name
from aiosd.cores.drivers import setup_key
from aiosd.cores.local import LocalCore
from aiosd.cores.routing import Wish
from aiosd.cores.sequence import Sequence
from aiosd.engine import watermark
from aiosd.engine.protocol import CoreSetup
from aiosd.verdicts import Verdicts

if TYPE_CHECKING:
    from aiosd.events import Events

log = logging.getLogger(__name__)

SETTINGS: Final = frozenset(field.encode_name for field in msgspec.structs.fields(CoreConfig)) - {
    "name",
    "driver",
    "model",
    "slots",
    "n_ctx",
    "threads",
    "exact",
    "options",
}
"""What add_core's options may set of any core: all of [[cores]] but its own arguments. The rest are
the driver's own options."""


class Machine:
    """The cores of this kernel, as its callers see them."""

    def __init__(self, config: Config, events: Events, access: Access) -> None:
        key = secret.load(Path(config.kernel.state_dir))
        self._verdicts = Verdicts(Path(config.kernel.cache_dir) / "verdicts")
        self.cores = Cores(config, self, self._verdicts.find, key)
        self._events = events
        self._access = access
        self.tool_rows: Callable[[], list[abi.Core]] = list
        """The rows of the tools that are models."""

    async def boot(self) -> None:
        """Begin to load the configured cores, with what earlier probes found."""
        await self.cores.boot()

    def reload(self, config: Config) -> None:
        """Take on the schedule and the limits of a configuration that was read again."""
        self.cores.reload(config)

    # News from cores (cores.core.Listener).

    def core_changed(self, core: Core, what: str) -> None:
        """A core is ready, lost, failed or removed."""
        self._events.emit(f"core.{what}", name=core.name, error=core.error, restarts=core.restarts)

    def preempted(self, core: Core, sequence: Sequence) -> None:
        """A sequence was taken off a core for another one."""
        self._events.emit("sched.preempt", sequence.aid, core=core.name, context=sequence.cid)

    def started(self, core: Core, sequence: Sequence) -> None:
        """A sequence was given a slot."""
        self._events.emit("sched.start", sequence.aid, core=core.name, context=sequence.cid)

    def fell_back(self, core: Core, sequence: Sequence, why: str) -> None:
        """A snapshot of a sequence is lost, and what was in it is computed again."""
        self._events.emit(
            "context.fallback", sequence.aid, core=core.name, context=sequence.cid, why=why
        )

    def verdict(self, setup: CoreSetup, verdict: str) -> None:
        """Remember what a core's probe found."""
        key = setup_key(setup)
        if self._verdicts.find(key) != verdict:
            self._verdicts.keep(key, verdict)

    # System calls.

    def sys_list_cores(self, caller: Caller, args: abi.ListCores) -> list[abi.Core]:
        """List the cores, and the tools that are models."""
        return [*self.cores.rows(), *self.tool_rows()]

    async def sys_add_core(self, caller: Caller, args: abi.AddCore) -> abi.Core:
        """Load a model as a core and answer when it is ready."""
        driver = "ray" if args.model.startswith(rayplace.SCHEME) else args.driver
        given: dict[str, Any] = {
            "name": args.name or default_name(args.model),
            "driver": driver,
            "model": args.model,
            "slots": args.slots,
            "n_ctx": args.n_ctx,
            "threads": args.threads,
            "exact": args.exact,
        }
        own = {name: value for name, value in args.options.items() if name not in SETTINGS}
        given |= {name: value for name, value in args.options.items() if name in SETTINGS}
        if driver != "llama":
            given["options"] = own
        elif own:
            known = ", ".join(sorted(SETTINGS))
            text = f"add_core: unknown options {sorted(own)}; there are {known}"
            raise OSError(errno.EINVAL, text)
        try:
            config = msgspec.convert(given, CoreConfig)
        except msgspec.ValidationError as error:
            raise OSError(
                errno.EINVAL, f"add_core: options: {mistake(error, CoreConfig)}"
            ) from None
        return self.cores.row(await self.cores.add(config))

    async def sys_remove_core(self, caller: Caller, args: abi.RemoveCore) -> None:
        """Remove a core; requests on it end with an error."""
        await self.cores.remove(args.name)

    async def sys_drain_core(self, caller: Caller, args: abi.DrainCore) -> None:
        """Give a core nothing new, and remove it when it has nothing left."""
        core = self.cores.drain(args.name)
        await self.cores.evacuate(core)
        if not core.requests:
            await self.cores.remove(args.name)

    async def sys_detect_watermark(
        self, caller: Caller, args: abi_inference.DetectWatermark
    ) -> abi_inference.Watermark:
        """Look for this kernel's watermark in a text or in tokens."""
        if bool(args.text) == bool(args.token_ids):
            raise OSError(errno.EINVAL, "detect_watermark: give either text or token_ids")
        core, _ = self.cores.choose(Wish(features=frozenset({"watermark"})), args.core)
        if not isinstance(core, LocalCore):
            raise OSError(
                errno.ENOTSUP, f"detect_watermark: core {core.name} marks nothing; name a local one"
            )
        found = await core.questions.detect(args.text, args.token_ids)
        count = watermark.Count(found.pairs, found.green)
        return abi_inference.Watermark(
            marked=count.z > watermark.SHOWN,
            z=count.z,
            p=count.p,
            tokens=found.tokens,
            pairs=count.pairs,
            green=count.green,
            core=core.name,
        )

    def sys_get_sched(self, caller: Caller, args: abi_process.GetSched) -> abi_process.Sched:
        """Return the policy, and of the queues what the caller may see."""
        rows = [
            abi_process.SchedRow(
                aid=row.aid,
                cid=row.id,
                core=core.name,
                state=row.state,
                nice=row.nice,
                place=-1 if row.place is None else row.place,
                used=row.used,
                level=row.level,
                virtual=row.virtual,
                width=core.queue.policy.task(row.id).width,
            )
            for core in self.cores
            for row in core.queue.policy.snapshot()
            if self._access.may_see(caller, row.aid)
        ]
        rows += [
            abi_process.SchedRow(
                aid=task.aid,
                cid=task.id,
                core="",
                state="S",
                nice=task.nice,
                place=-1,
                used=0,
                after=list(task.waits_for),
            )
            for task in self.cores.waiting
            if self._access.may_see(caller, task.aid)
        ]
        return abi_process.Sched(
            policy=self.cores.sched.policy,
            quantum=self.cores.sched.quantum,
            policies=list(sched.POLICIES),
            preemptions=sum(core.preemptions for core in self.cores),
            rows=rows,
            options=self.cores.tuning,
        )

    def sys_set_sched(self, caller: Caller, args: abi_process.SetSched) -> abi_process.Sched:
        """Change the policy or its numbers; nothing in flight is lost."""
        self.cores.set_sched(args.policy, args.quantum, args.options)
        now = self.cores.sched
        self._events.emit(
            "sched.policy", policy=now.policy, quantum=now.quantum, **self.cores.tuning
        )
        return self.sys_get_sched(caller, abi_process.GetSched())
