"""aiosh as it runs scripts: from -c, a file and stdin."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.aiosh.conftest import Run

pytestmark = pytest.mark.usefixtures("kernel")


def test_a_line_from_the_command_line(aiosh: Run) -> None:
    result = aiosh("-c", "run -- sh -c 'echo hi; exit 3'")
    assert (result.status, result.out) == (3, "hi\n")


def test_a_script_from_a_file_and_from_stdin(aiosh: Run, tmp_path: Path) -> None:
    script = "# a script\n\nrun -- echo one\nrun -- echo two; exit 4\nrun -- echo never\n"
    (tmp_path / "script").write_text(script)
    for result in (aiosh(str(tmp_path / "script")), aiosh(stdin=script)):
        assert (result.status, result.out) == (4, "one\ntwo\n")


def test_joints_look_at_the_status(aiosh: Run) -> None:
    assert aiosh("-c", "run false && run -- echo no || run -- echo yes").out == "yes\n"
    assert aiosh("-c", "run true && run -- echo yes || run -- echo no").out == "yes\n"


def test_pipes_to_the_systems_programs(aiosh: Run) -> None:
    assert aiosh("-c", "kill -l | grep CONT | wc -l").out.strip() == "1"
    result = aiosh("-c", "run -- sh -c 'echo out; echo err >&2' 2>&1 | sort")
    assert result.out.splitlines() == ["err", "out"]
    assert aiosh("-c", "kill -l | false").status == 1
    assert aiosh("-c", "kill -l | true").err == ""


def test_redirections(aiosh: Run, tmp_path: Path) -> None:
    aiosh("-c", "kill -l > 'the list'; run -- echo more >> 'the list'", cwd=tmp_path)
    text = (tmp_path / "the list").read_text()
    assert "KILL" in text
    assert text.endswith("more\n")
    aiosh("-c", "pss 2> errors", cwd=tmp_path)
    assert aiosh("-c", "ps > /no/such/folder").status == 1


def test_an_unknown_word_brings_the_nearest(aiosh: Run) -> None:
    result = aiosh("-c", "suspnd 3")
    assert result.status == 127
    assert "'suspend'" in result.err
    assert "whole line" in aiosh("-c", "kill -l > /dev/null; !ls").err


def test_messages_come_from_the_shell(aiosh: Run) -> None:
    result = aiosh("-c", "kill 999999")
    assert result.status == 1
    assert result.err.startswith("aiosh: kill: there is no agent 999999")


def test_jobs_of_a_script(aiosh: Run) -> None:
    result = aiosh("-c", "run -- sh -c 'echo hi; exec sleep 100' &\njobs\nkill -9 %1\nfg")
    first, job, line, output = result.out.splitlines()
    assert first.startswith("[1] ")
    assert job.startswith("[1]+ Running")
    assert line.startswith("run -- sh")
    assert output == "hi"
    assert result.status == 137


def test_only_run_goes_to_the_background(aiosh: Run) -> None:
    assert "only `run`" in aiosh("-c", "ps &").err
    assert "there is no job %7" in aiosh("-c", "run -- true &\nfg %7").err
    assert "there are no jobs" in aiosh("-c", "fg").err


def test_the_systems_shell(aiosh: Run) -> None:
    assert aiosh("-c", "!echo $((6 * 7)) | cat; exit 5").out == "42\n"
    assert aiosh("-c", "!exit 5").status == 5


def test_cd_moves_where_agents_start(aiosh: Run, tmp_path: Path) -> None:
    assert aiosh("-c", f"cd {tmp_path}; run pwd").out == f"{tmp_path}\n"
    assert aiosh("-c", "cd /no/such/folder").status == 1


def test_help_and_mistakes(aiosh: Run) -> None:
    told = aiosh("-c", "help").out
    assert "fg" in told
    assert "renice" in told
    assert "--quantum" in aiosh("-c", "help sched").out
    assert aiosh("-c", "run 'open").status == 2
    assert aiosh("-c").status == 2
    assert aiosh("--wrong").status == 2
    assert aiosh("/no/such/script").status == 1


def test_a_missing_daemon_does_not_end_a_script(
    aiosh: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOS_SOCKET", "/nowhere/aiosd.sock")
    result = aiosh("-c", "ps\nrun true &\n!echo still here")
    assert result.out == "still here\n"
    assert result.err.count("is not running") == 2
