"""Cores whose weights are converted, through the daemon's door, with models made up at random."""

from __future__ import annotations

import errno
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import aios
from aiosd.killpoint import VARIABLE
from tests.daemon import Daemon

if importlib.util.find_spec("llama_cpp") is None or importlib.util.find_spec("gguf") is None:
    pytest.skip("needs the packages llama-cpp-python and gguf", allow_module_level=True)

from tests.engine import tiny

pytestmark = pytest.mark.model

PROMPT = "The sea, the wind and a small boat. " * 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.write(tmp_path_factory.mktemp("models") / "boat.gguf", "llama", half=True)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def daemon(state_dir: Path, runtime_dir: Path, kv_dir: Path, cache: Path) -> Daemon:
    """One that is not started yet, with a cache of its own."""
    return Daemon(state_dir, runtime_dir, kv_dir, config=f'[kernel]\ncache_dir = "{cache}"\n')


@contextmanager
def connected(daemon: Daemon) -> Iterator[aios.Kernel]:
    with daemon, aios.connect(daemon.socket) as kernel:
        yield kernel


def add(kernel: aios.Kernel, model: str, name: str, quantize: str) -> aios.Core:
    options = {"quantize": quantize, "grid": 32}
    return kernel.add_core(
        model, name=name, slots=2, n_ctx=512, threads=1, exact=False, options=options
    )


def say(kernel: aios.Kernel, core: str) -> aios.Reply:
    return kernel.llm_generate(PROMPT, raw=True, max_tokens=24, temperature=0, core=core)


def test_converted_weights_are_another_model_of_the_same_name(
    daemon: Daemon, model: str, cache: Path
) -> None:
    with connected(daemon) as kernel:
        plain = add(kernel, model, "plain", "")
        first = add(kernel, model, "first", "q4_0")
        second = add(kernel, model, "second", "q4_0")
        [file] = (cache / "weights").iterdir()
        itself = add(kernel, str(file), "itself", "")
        assert first.model == second.model == plain.model
        assert first.setting == f"weights q4_0, {plain.setting}" and "weights" not in plain.setting
        with aios.connect(daemon.socket, name="a") as agent:
            replies = {core.name: say(agent, core.name) for core in (plain, first, second, itself)}
            tokens = {name: reply.token_ids for name, reply in replies.items()}
            assert tokens["first"] == tokens["second"] == tokens["itself"] != tokens["plain"]
            # KV goes along to a core of the same weights, and to no other.
            context = replies["first"].context
            for core, along in (("second", True), ("itself", True), ("plain", False)):
                assert bool(agent.move_context(context, core).kv) == along, core


@pytest.mark.parametrize("point", ["weights.written", "weights.synced"])
def test_a_worker_that_dies_in_the_middle(
    daemon: Daemon, model: str, cache: Path, tmp_path: Path, point: str
) -> None:
    daemon.environ[VARIABLE] = f"{point}:1:{tmp_path / 'died'}"
    with connected(daemon) as kernel:
        core = add(kernel, model, "c", "q4_0")
        assert (core.state, core.restarts) == ("ready", 1)
        assert [file.suffix for file in (cache / "weights").iterdir()] == [".gguf"]


def test_what_can_not_be_converted_is_refused(
    daemon: Daemon, model: str, cache: Path, tmp_path: Path
) -> None:
    foreign = tiny.write(tmp_path / "abacus.gguf", "abacus")
    with connected(daemon) as kernel:
        with pytest.raises(OSError, match=r"q9_0.*q4_0, q8_0") as refused:
            add(kernel, model, "c", "q9_0")
        assert refused.value.errno == errno.EINVAL
        for driver in ("fake", "ray", "openai"):
            with pytest.raises(OSError, match="only the driver llama") as refused:
                kernel.add_core(model, driver=driver, options={"quantize": "q4_0"})
            assert refused.value.errno == errno.EINVAL
        with pytest.raises(OSError, match=r"abacus.*take another type") as refused:
            add(kernel, foreign, "c", "q4_0")
        assert refused.value.errno == errno.ENOEXEC
        assert kernel.list_cores() == [] and list((cache / "weights").iterdir()) == []
        (cache / "weights").rmdir()
        (cache / "weights").touch()
        with pytest.raises(OSError, match=r"cache/weights: File exists; .*cache_dir"):
            add(kernel, model, "c", "q4_0")


def test_a_wrong_type_in_the_configuration_is_named(daemon: Daemon) -> None:
    daemon.configure('[[cores]]\nquantize = "q4-0"\n')
    ended = daemon.run("--check-config")
    assert ended.returncode and "did you mean 'q4_0'" in ended.stderr
