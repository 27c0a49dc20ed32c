"""Jobs of aiosh: agents that were started here and are not in the foreground.

A job's agent may end, or be killed or resumed by somebody else, at any time: the kernel is asked
whenever its state is wanted. What must hold: a job stays listed until its end was announced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aiosh import link, signals

if TYPE_CHECKING:
    from aios import Kernel

WORDS: Final = {
    "R": "Running", "Q": "Queued", "S": "Running", "T": "Stopped", "Z": "Done", "X": "Done",
}  # fmt: skip


@dataclass
class Job:
    """An agent in the background. shown: records of its output that were shown already."""

    number: int
    aid: int
    text: str
    shown: int = 0
    background: bool = True


class Jobs:
    """The jobs of one shell, oldest first; the last one touched is the current one."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def add(self, aid: int, text: str, shown: int = 0, *, stopped: bool = False) -> Job:
        """Enter an agent as a job, or make the job that it is already the current one."""
        for job in self._jobs:
            if job.aid == aid:
                self._jobs.remove(job)
                job.shown, job.background = max(job.shown, shown), not stopped
                break
        else:
            number = max((job.number for job in self._jobs), default=0) + 1
            job = Job(number, aid, text, shown, not stopped)
        self._jobs.append(job)
        return job

    def find(self, word: str = "") -> Job:
        """Return a job by %N, N, %NAME or nothing for the current one. Raises Failure."""
        if not self._jobs:
            raise link.Failure("there are no jobs; `run PROGRAM &` starts one")
        name = word.removeprefix("%")
        if name in ("", "%", "+"):
            return self._jobs[-1]
        if name == "-":
            return self._jobs[-2 if len(self._jobs) > 1 else -1]
        for job in self._jobs:
            if name == str(job.number) or (not name.isdecimal() and name in job.text):
                return job
        raise link.Failure(f"there is no job {word}; `jobs` lists them")

    def offers(self) -> list[tuple[str, str]]:
        """Return what completion offers: each job as %N, with what it is."""
        return [(f"%{job.number}", job.text) for job in self._jobs]

    def drop(self, job: Job) -> None:
        """Forget a job."""
        if job in self._jobs:
            self._jobs.remove(job)

    def lines(self) -> list[str]:
        """Return one line for each job, as `jobs` shows them, and forget those that ended."""
        return self._listed(only_ended=False)

    def finished(self) -> list[str]:
        """Return one line for each job that has ended, and forget and reap those."""
        return self._listed(only_ended=True)

    def _listed(self, *, only_ended: bool) -> list[str]:
        lines = []
        with link.kernel() as kernel:
            rows = {row.aid: row for row in kernel.list_agents(all=True)} if self._jobs else {}
            for job in sorted(self._jobs, key=lambda job: job.number):
                row = rows.get(job.aid)
                state = row.state if row else "X"
                ended = state in link.ENDED
                if ended or not only_ended:
                    how = _how(row.exit_code, row.exit_signal) if row and ended else WORDS[state]
                    lines.append(self._line(job, how))
                if ended:
                    self.drop(job)
                    _reap(kernel, job.aid)
        return lines

    def _line(self, job: Job, how: str) -> str:
        mark = "+" if job is self._jobs[-1] else " "
        return f"[{job.number}]{mark} {how:<10} aid {job.aid:<4} {job.text}"


def _how(code: int | None, signal: int | None) -> str:
    if code == 0 and not signal:
        return "Done"
    if code is not None and not signal:
        return f"Exit {code}"
    return signals.described(code, signal)


def _reap(kernel: Kernel, aid: int) -> None:
    """Let the kernel forget a zombie; somebody else may have reaped it."""
    try:
        kernel.wait(aid=aid, timeout=0)
    except ConnectionError:
        raise
    except OSError:
        return
