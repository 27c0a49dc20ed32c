"""What the demo found: its numbers, and how they are laid out as the paper's Tables 4 and 5."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aiosh import link, scores, tables
from aiosh.tables import Column

if TYPE_CHECKING:
    from aios import Core, Sched
    from aiosh.trial import Part, Reply, Trial


@dataclass(frozen=True)
class Spread:
    """Mean and deviation over the trials, in seconds."""

    mean: float
    deviation: float

    def __str__(self) -> str:
        return f"{self.mean:.3f}±{self.deviation:.3f}"


@dataclass(frozen=True)
class Line:
    """One agent on one core: a row of both tables. Scores are None where not computable."""

    core: str
    agent: str
    requests: int
    sequential_waiting: Spread
    sequential_turnaround: Spread
    concurrent_waiting: Spread
    concurrent_turnaround: Spread
    bleu: float | None
    similarity: float | None
    replies: int
    same_texts: int
    same_tokens: int


@dataclass(frozen=True)
class Block:
    """What was found on one core: its lines, and how long all agents took together."""

    core: str
    model: str
    exact: str
    lines: list[Line]
    sequential_s: Spread
    concurrent_s: Spread


def spread(values: Sequence[float]) -> Spread:
    """Return mean and sample deviation."""
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)


def block(core: Core, solo: Trial, sequential: list[Trial], concurrent: list[Trial]) -> Block:
    """Return what the trials on one core come to."""
    return Block(
        core=core.name,
        model=os.path.basename(core.model),
        exact=core.exact,
        lines=[
            _line(core.name, i, solo.parts[i], sequential, concurrent)
            for i in range(len(solo.parts))
        ],
        sequential_s=spread([trial.seconds for trial in sequential]),
        concurrent_s=spread([trial.seconds for trial in concurrent]),
    )


def _line(core: str, i: int, solo: Part, sequential: list[Trial], concurrent: list[Trial]) -> Line:
    # Every reply of every concurrent trial is compared with the one given alone.
    pairs = [
        (reply, solo.replies[n])
        for trial in concurrent
        for n, reply in enumerate(trial.parts[i].replies[: len(solo.replies)])
    ]
    texts, references = [reply.text for reply, _ in pairs], [ref.text for _, ref in pairs]
    return Line(
        core=core,
        agent=solo.agent,
        requests=len(solo.replies),
        sequential_waiting=_over(sequential, i, lambda reply: reply.waiting_s),
        sequential_turnaround=_over(sequential, i, lambda reply: reply.turnaround_s),
        concurrent_waiting=_over(concurrent, i, lambda reply: reply.waiting_s),
        concurrent_turnaround=_over(concurrent, i, lambda reply: reply.turnaround_s),
        bleu=scores.bleu(texts, references),
        similarity=scores.similarity(texts, references),
        replies=len(solo.replies) * len(concurrent),
        same_texts=sum(reply.text == reference.text for reply, reference in pairs),
        same_tokens=sum(reply.token_ids == reference.token_ids for reply, reference in pairs),
    )


def _over(trials: list[Trial], i: int, time_of: Callable[[Reply], float]) -> Spread:
    """Return an agent's time as the paper takes it: its requests' mean, over the trials."""
    return spread([statistics.fmean(map(time_of, trial.parts[i].replies)) for trial in trials])


TIMES: Final[list[Column[Line]]] = [
    Column("CORE", lambda line: line.core, least=9),
    Column("AGENT", lambda line: line.agent),
    Column("SEQ-WAITING", lambda line: str(line.sequential_waiting), right=True),
    Column("SEQ-TURNAROUND", lambda line: str(line.sequential_turnaround), right=True),
    Column("CON-WAITING", lambda line: str(line.concurrent_waiting), right=True),
    Column("CON-TURNAROUND", lambda line: str(line.concurrent_turnaround), right=True),
]

SCORES: Final[list[Column[Line]]] = [
    Column("CORE", lambda line: line.core, least=9),
    Column("AGENT", lambda line: line.agent),
    Column("BLEU", lambda line: _score(line.bleu), right=True),
    Column("SIMILARITY", lambda line: _score(line.similarity), right=True),
    Column("SAME-TEXTS", lambda line: f"{line.same_texts}/{line.replies}", right=True),
    Column("SAME-TOKENS", lambda line: f"{line.same_tokens}/{line.replies}", right=True),
]


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _unscored(lines: list[Line]) -> list[str]:
    """Return what to install for the scores that could not be computed."""
    return [
        f"{kind.upper()} takes another package: {scores.MISSING[kind]}"
        for kind in ("bleu", "similarity")
        if any(getattr(line, kind) is None for line in lines)
    ]


def report(blocks: list[Block], sched: Sched, trials: int) -> None:
    """Print both tables, and per core how long all agents took."""
    lines = [line for block in blocks for line in block.lines]
    policy = f"{sched.policy}, quantum {sched.quantum} tokens"
    times = "one trial" if trials == 1 else f"{trials} trials"
    print(f"Table 5: seconds, mean±deviation of {times}; waiting and turnaround are means")
    print(f"over an agent's requests. Sequential (SEQ) against concurrent under {policy} (CON).")
    tables.show(TIMES, lines, json=False)
    print()
    print("Table 4: concurrent replies against the solo run's (1.0 is identical).")
    tables.show(SCORES, lines, json=False)
    for line in _unscored(lines):
        print(line)
    print()
    for block in blocks:
        print(
            f"{block.core} is {block.model}, exact: {block.exact}; all agents were done after"
            f" {block.sequential_s} s in sequence, {block.concurrent_s} s concurrently"
        )


def judge(blocks: list[Block]) -> None:
    """Raise Failure where a core that promises exactness gave another text than in a solo run."""
    for block in blocks:
        wrong = [line.agent for line in block.lines if line.same_tokens != line.replies]
        if wrong and block.exact == "yes":
            raise link.Failure(
                f"core {block.core} promises exact replies, but those of {' and '.join(wrong)}"
                " differ from the solo run"
            )
