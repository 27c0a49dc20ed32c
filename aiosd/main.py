"""aiosd, the daemon: its command line, its exit status.

Status: 0 ended when told to; 1 could not start or go on; 2 wrong options or configuration. A
user's mistake is one line on stderr, never a traceback.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from aiosd.config import Config
    from aiosd.kernel import Kernel

OPTIONS: Final = {
    "state_dir": "kernel.state_dir",
    "runtime_dir": "kernel.runtime_dir",
    "socket": "kernel.socket",
    "log_level": "kernel.log_level",
}
"""Options that stand for a key of the configuration."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon in the foreground; return its exit status."""
    options = _parser().parse_args(argv)
    try:
        import uvloop

        from aiosd import config, heap, kernel, log, system
    except ModuleNotFoundError as error:
        return _missing(error)
    if options.version:
        print(f"aiosd {system.VERSION}")  # noqa: T201
        return 0
    try:
        reread = _reader(options)
        settings = reread()
    except OSError as error:
        return _fail(str(error) if isinstance(error, config.ConfigError) else _line(error), 2)
    if options.check_config:
        print(f"{_source(options)}: ok")  # noqa: T201
        return 0
    if options.rotate_key:
        return _rotate(settings.encryption.key_file)
    log.start(settings.kernel.log_level, form=settings.kernel.log_format)
    heap.keep()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_live(lambda: kernel.Kernel(settings, reread, _source(options))))
    except OSError as error:
        return _fail(_line(error), 1)
    except KeyboardInterrupt:  # before the kernel hears signals itself
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aiosd",
        description="The AIOS kernel: serves system calls on a Unix socket, in the foreground.",
        epilog="SIGTERM ends it and leaves agents running; SIGHUP reads the configuration again.",
    )
    add = parser.add_argument
    add("--config", metavar="FILE", help="configuration (default: the usual aiosd.toml, if any)")
    add("--state-dir", metavar="DIR", help="what must last: database, agents' logs")
    add("--runtime-dir", metavar="DIR", help="socket and lock")
    add(
        "--socket", metavar="PATH", help="the socket (default: aiosd.sock in the runtime directory)"
    )
    add("--log-level", metavar="LEVEL", help="debug, info, warning or error")
    add("--system", action="store_true", help="be the system service: /run, /var/lib, /etc")
    add("--check-config", action="store_true", help="say whether the configuration is good, end")
    add("--rotate-key", action="store_true", help="append a fresh master key to its file, end")
    add("--version", action="store_true", help="print the version, end")
    return parser


def _reader(options: argparse.Namespace) -> Callable[[], Config]:
    """Return what reads the configuration, now and at each reload."""
    from aiosd import config, sched
    from aiosd.cores.drivers import DRIVERS
    from aiosd.cores.routing import POLICIES
    from aiosd.engine.weights import TYPES

    words = {
        "sched.policy": tuple(sched.POLICIES),
        "cores.driver": tuple(DRIVERS),
        "cores.quantize": ("", *TYPES),
        "routing.policy": tuple(POLICIES),
        "routing.rules.policy": ("", *POLICIES),
    }
    given: dict[str, Any] = {
        key: getattr(options, name) for name, key in OPTIONS.items() if getattr(options, name)
    }

    def read() -> Config:
        places = options.config, os.environ, given
        return config.load(*places, system=options.system, choices=words)

    return read


def _source(options: argparse.Namespace) -> str:
    from aiosd import config

    usual = config.default_file(os.environ, options.system)
    return options.config or (str(usual) if usual.exists() else "built-in defaults")


async def _live(make: Callable[[], Kernel]) -> None:
    """Boot a kernel and serve until told to end."""
    kernel = make()
    await kernel.boot()
    await kernel.serve()
    await kernel.end()


def _rotate(path: str) -> int:
    """Append a master key to the file at `path`; return the exit status."""
    from aiosd import vault

    try:
        id = vault.rotate(path, os.environ)
    except OSError as error:
        return _fail(_line(error), 1)
    print(f"{path}: {id} encrypts from the next SIGHUP or start on")  # noqa: T201
    return 0


def _missing(error: ModuleNotFoundError) -> int:
    if error.name is None or error.name.partition(".")[0] == "aiosd":
        raise error
    return _fail(f"{error.name} is not installed; run: pip install 'aios[daemon]'", 1)


def _line(error: OSError) -> str:
    text = error.strerror or str(error)
    return f"{error.filename}: {text}" if error.filename is not None else text


def _fail(text: str, status: int) -> int:
    for line in text.splitlines():
        print(f"aiosd: {line}", file=sys.stderr)  # noqa: T201
    return status


if __name__ == "__main__":
    sys.exit(main())
