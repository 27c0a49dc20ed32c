"""Who is doing what while the demo runs: a live table on a terminal, else a line per trial.

All of it goes to stderr: stdout is for the tables.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from aiosh import tables
from aiosh.ps import STATE_COLOURS, place, waiting

if TYPE_CHECKING:
    from aios import Agent, AsyncKernel
    from aiosh.trial import Part, Trial

REFRESH_S: Final = 0.2


class Progress:
    """Shows the trial that runs just now; `begin` is called with each, `say` with other news."""

    def __init__(self, kernel: AsyncKernel, trials: int) -> None:
        self._kernel = kernel
        self._trials = trials
        self._trial: Trial | None = None
        self._begun: dict[str, int] = {}
        self._news = ""
        self._live: Any = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            # No markup: agents' words are shown, not obeyed.
            console = Console(stderr=True, markup=False, highlight=False)
            self._live = Live(console=console, auto_refresh=False, transient=True)
            self._live.start()
            self._task = asyncio.create_task(self._refresh())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await self._task
        if self._live is not None:
            self._live.stop()

    def begin(self, trial: Trial) -> None:
        """Show this trial from now on."""
        if self._trial is not None and trial.kind == "alone":
            self._begun.clear()  # another core's turn
        number = self._begun[trial.kind] = self._begun.get(trial.kind, 0) + 1
        of = "" if trial.kind == "alone" else f" {number}/{self._trials}"
        self._trial = trial
        self.say(f"{trial.kind}{of}: {' '.join(part.agent for part in trial.parts)}")

    def say(self, news: str) -> None:
        """Say what goes on."""
        if news != self._news and self._live is None:
            print(news, file=sys.stderr, flush=True)
        self._news = news

    async def _refresh(self) -> None:
        while True:
            rows: dict[int, Agent] = {}
            if self._trial is not None:
                rows = {row.aid: row for row in await self._kernel.list_agents()}
            self._live.update(self._table(rows), refresh=True)
            await asyncio.sleep(REFRESH_S)

    def _table(self, rows: dict[int, Agent]) -> Any:
        from rich.table import Table

        table = Table(title=self._news, title_justify="left", title_style="bold", box=None)
        for head in ("AGENT", "AID", "S", "CORE/SLOT", "TOKENS", "TOK/S", "WAITING", "REPLIES"):
            table.add_column(head, no_wrap=True)
        for part in self._trial.parts if self._trial else []:
            row = rows.get(part.aid)
            table.add_row(*_cells(part, row), style=STATE_COLOURS[row.state] if row else "dim")
        return table


def _cells(part: Part, row: Agent | None) -> list[str]:
    replies = str(len(part.replies))
    if row is None:
        state = "done" if part.done else "to come" if not part.aid else "ended"
        return [part.agent, str(part.aid or "-"), "-", "-", "-", "-", state, replies]
    tokens = str(row.usage.tokens_out)
    rate = f"{row.tokens_per_s:.1f}"
    where = place(row) or "-"
    return [
        part.agent, str(row.aid), row.state, where, tokens, rate,
        tables.clean(waiting(row)) or "-", replies,
    ]  # fmt: skip
