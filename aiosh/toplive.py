"""top on a terminal: a full-screen prompt-toolkit application, which restores it whatever happens.

The kernel is asked in a thread, so a slow or missing daemon never holds up a key. What must hold:
the chosen line stays on its agent while the order changes under it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from prompt_toolkit.application import Application
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout import (
    BufferControl,
    ConditionalContainer,
    FormattedTextControl,
    HSplit,
    Layout,
    VSplit,
    Window,
)
from prompt_toolkit.output.color_depth import ColorDepth
from prompt_toolkit.styles import Style

from aiosh import link, signals, tables
from aiosh.top import take
from aiosh.topview import KEYS, ORDERS, Picture, columns, header, ordered

if TYPE_CHECKING:
    from aios import Agent, Kernel

STYLE: Final = Style.from_dict(
    {
        "head": "reverse", "chosen": "bold reverse", "error": "ansired bold",
        "state.r": "ansigreen", "state.q": "ansiyellow", "state.t": "ansimagenta",
        "state.z": "ansired", "state.x": "ansibrightblack",
    }
)  # fmt: skip

SLOWEST: Final = 60.0
FASTEST: Final = 0.25


class Question:
    """Something asked in the bottom line: the words before the answer, what to do with it."""

    def __init__(self, text: str, answer: Callable[[str], None]) -> None:
        self.text = text
        self.answer = answer


class Top:
    """The state of a running top. Touched only on the event loop's thread."""

    def __init__(self, delay: float) -> None:
        self.delay = delay
        self.order = "P"
        self.turned = False
        self.everyone = False
        self.help = False
        self.chosen = 0
        self.picture: Picture | None = None
        self.trouble = ""  # why the last refresh failed
        self.message = ""  # what came of the last key
        self.question: Question | None = None
        self.wake = asyncio.Event()
        self.entry = Buffer(multiline=False, accept_handler=self._answered)
        self.app: Application[None] = Application(
            layout=self._layout(),
            key_bindings=self._keys(),
            style=STYLE,
            full_screen=True,
            color_depth=None if tables.coloured() else ColorDepth.DEPTH_1_BIT,
        )

    async def run(self) -> None:
        """Show and refresh until quit."""
        refreshing = asyncio.create_task(self._refresh())
        try:
            await self.app.run_async()
        finally:
            refreshing.cancel()

    async def _refresh(self) -> None:
        while True:
            everyone = self.everyone
            try:
                self.picture = await asyncio.to_thread(take, everyone=everyone)
                self.trouble = ""
            except (OSError, link.Failure) as error:
                self.trouble = link.sentence(error) if isinstance(error, OSError) else str(error)
            self.app.invalidate()
            try:
                await asyncio.wait_for(self.wake.wait(), self.delay)
            except TimeoutError:
                continue
            self.wake.clear()

    def rows(self) -> list[Agent]:
        """Return the agents in the order shown."""
        agents = self.picture.agents if self.picture else []
        return ordered(agents, self.order, turned=self.turned)

    def agent(self) -> Agent | None:
        """Return the chosen agent: the first of the list where the chosen one is gone."""
        rows = self.rows()
        return next((row for row in rows if row.aid == self.chosen), rows[0] if rows else None)

    def _layout(self) -> Layout:
        asking = Condition(lambda: self.question is not None)
        bottom = VSplit(
            [
                Window(
                    FormattedTextControl(lambda: self.question.text if self.question else ""),
                    dont_extend_width=True,
                ),
                Window(BufferControl(self.entry)),
            ],
            height=1,
        )
        self.body = Window(FormattedTextControl(self.text, focusable=True), always_hide_cursor=True)
        return Layout(
            HSplit([self.body, ConditionalContainer(bottom, asking)]), focused_element=self.body
        )

    def text(self) -> StyleAndTextTuples:
        """Return the whole screen above the bottom line."""
        lines: StyleAndTextTuples = []
        if self.help:
            return [("", "\n".join([*KEYS, "", "any key goes back"]))]
        if self.picture is not None:
            lines += [("", line + "\n") for line in header(self.picture)]
        lines.append(("class:error", (self.trouble or self.message) + "\n"))
        lines += self._table()
        return lines

    def _table(self) -> StyleAndTextTuples:
        rows, chosen = self.rows(), self.agent()
        size = self.app.output.get_size()
        room = size.rows - (len(header(self.picture)) if self.picture else 0) - 3
        first = next((i for i, row in enumerate(rows) if row is chosen), 0)
        begin = max(0, first - max(1, room) + 1)
        shown = rows[begin : begin + max(1, room)]
        head, *cells = tables.layout(columns(), shown, size.columns, colour=False)
        styled: StyleAndTextTuples = [("class:head", head.ljust(size.columns) + "\n")]
        for row, line in zip(shown, cells, strict=True):
            style = "class:chosen" if row is chosen else f"class:state.{row.state.lower()}"
            styled.append((style, line.ljust(size.columns) + "\n"))
        return styled

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()
        free = Condition(lambda: self.question is None)

        @keys.add("c-c")
        @keys.add("q", filter=free & Condition(lambda: not self.help))
        def _(event: KeyPressEvent) -> None:
            event.app.exit()

        @keys.add("escape", filter=~free, eager=True)
        @keys.add("c-g", filter=~free)
        def _(event: KeyPressEvent) -> None:
            self._close()

        @keys.add("<any>", filter=free)
        @keys.add("up", filter=free)
        @keys.add("down", filter=free)
        def _(event: KeyPressEvent) -> None:
            key = event.key_sequence[0]
            self.press(getattr(key.key, "value", key.key))

        return keys

    def press(self, key: str) -> None:
        """Act on a key that is no answer to a question."""
        self.message = ""
        if self.help:
            self.help = False
        elif key in ORDERS:
            self.order, self.turned = key, False
        elif key in ("up", "down"):
            self._move(-1 if key == "up" else 1)
        elif key in ("+", "-"):
            self.delay = min(SLOWEST, max(FASTEST, self.delay * (2 if key == "+" else 0.5)))
        elif key in ("h", "?"):
            self.help = True
        elif key == "R":
            self.turned = not self.turned
        elif key == "a":
            self.everyone = not self.everyone
            self.wake.set()
        elif key == " ":
            self.wake.set()
        elif key in ("k", "r", "s", "c"):
            self._act(key)

    def _move(self, step: int) -> None:
        rows, agent = self.rows(), self.agent()
        if agent is not None:
            place = rows.index(agent) + step
            self.chosen = rows[min(max(place, 0), len(rows) - 1)].aid

    def _act(self, key: str) -> None:
        agent = self.agent()
        if agent is None:
            self.message = "there is no agent to act on"
            return
        aid = self.chosen = agent.aid
        who = f"agent {aid} ({tables.clean(agent.name)})"
        if key == "s":
            self._do(lambda kernel: kernel.suspend_agent(aid=aid))
        elif key == "c":
            self._do(lambda kernel: kernel.resume_agent(aid=aid))
        elif key == "k":
            self._ask(f"kill {who} with signal [TERM]: ", lambda text: self._kill(aid, text))
        else:
            self._ask(f"renice {who} from {agent.nice} to: ", lambda text: self._nice(aid, text))

    def _ask(self, text: str, answer: Callable[[str], None]) -> None:
        self.question = Question(text, answer)
        self.entry.reset()
        self.app.layout.focus(self.entry)

    def _answered(self, buffer: Buffer) -> bool:
        question, text = self.question, buffer.text.strip()
        self._close()
        if question is not None:
            question.answer(text)
        return False

    def _close(self) -> None:
        self.question = None
        self.app.layout.focus(self.body)

    def _kill(self, aid: int, text: str) -> None:
        try:
            name = signals.parse(text or "TERM")
        except link.Misuse as error:
            self.message = str(error)
            return
        self._do(lambda kernel: kernel.kill(aid=aid, signal=name))

    def _nice(self, aid: int, text: str) -> None:
        try:
            nice = int(text)
        except ValueError:
            self.message = f"nice values are numbers from -20 to 19, not {text!r}"
            return
        self._do(lambda kernel: kernel.set_priority(aid=aid, nice=nice))

    def _do(self, deed: Callable[[Kernel], object]) -> None:
        """Carry a deed out in a thread, then refresh."""
        self.app.create_background_task(self._done(deed))

    async def _done(self, deed: Callable[[Kernel], object]) -> None:
        def act() -> None:
            with link.kernel() as kernel:
                deed(kernel)

        try:
            await asyncio.to_thread(act)
        except (OSError, link.Failure) as error:
            self.message = link.sentence(error) if isinstance(error, OSError) else str(error)
            self.app.invalidate()
            return
        self.wake.set()


def live(delay: float) -> None:
    """Run top on this terminal until it is quit. delay: seconds between refreshes."""

    async def main() -> None:
        await Top(delay).run()

    asyncio.run(main())
