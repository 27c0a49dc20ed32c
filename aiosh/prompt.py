"""aiosh on a terminal: the prompt, its history, colours and completion (prompt-toolkit)."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import (
    CompleteEvent,
    Completer,
    Completion,
    PathCompleter,
    ThreadedCompleter,
)
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import FileHistory
from prompt_toolkit.lexers import Lexer
from prompt_toolkit.output.color_depth import ColorDepth
from prompt_toolkit.shortcuts import CompleteStyle
from prompt_toolkit.styles import Style

from aiosh import app, follow, foreground, link, tables

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiosh.shell import Shell

STYLE: Final = Style.from_dict(
    {
        "prompt": "bold ansicyan", "prompt.down": "bold ansired", "command": "bold ansigreen",
        "unknown": "ansired", "option": "ansicyan", "quoted": "ansiyellow",
        "operator": "bold ansimagenta", "comment": "ansibrightblack", "number": "ansiblue",
    }
)  # fmt: skip


def interact(shell: Shell) -> int:
    """Read and run lines until `exit` or Ctrl-D; return the exit status."""
    follow.leave_on_stop = True
    # Ctrl-Z is for agents. Filters and !COMMANDs inherit this: nobody could continue them here.
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    with foreground.taken():
        return _lines(shell, _session(shell))


def _lines(shell: Shell, session: PromptSession[str]) -> int:
    from aiosh.shell import Leave

    while True:
        try:
            announce(shell)
            line = session.prompt(prompt())
        except KeyboardInterrupt:
            continue
        except EOFError:
            line = "exit"
        try:
            shell.run(line)
        except Leave as leave:
            return leave.status
        except KeyboardInterrupt:
            shell.status = 130
            print()


_told: Final[set[int]] = set()  # requests for approval that this shell has shown


def announce(shell: Shell) -> None:
    """Say which jobs have ended since the last prompt, and who asks for approval."""
    from aiosh.rights import notices

    try:
        if shell.jobs:
            for line in shell.jobs.finished():
                print(line)
        with link.kernel() as kernel:
            for line in notices(kernel, _told):
                print(tables.paint(tables.clean(line), "yellow"))
    except (OSError, link.Failure):
        return  # the daemon is away: the prompt says so


def prompt() -> StyleAndTextTuples:
    """Return the prompt: the number of agents alive, who asks, or that the daemon is down."""
    try:
        with link.kernel() as kernel:
            alive = len(kernel.list_agents())
            asking = len(kernel.list_pending())
    except (OSError, link.Failure):
        return [("class:prompt.down", "aios(down)> ")]
    return [("class:prompt", f"aios({alive}{f', {asking} ask' if asking else ''})> ")]


def _session(shell: Shell) -> PromptSession[str]:
    return PromptSession(
        history=FileHistory(_history_file()),
        completer=ThreadedCompleter(Words(shell)),
        complete_while_typing=False,
        complete_style=CompleteStyle.MULTI_COLUMN,
        auto_suggest=AutoSuggestFromHistory(),
        lexer=Colours(shell),
        style=STYLE,
        color_depth=None if tables.coloured() else ColorDepth.DEPTH_1_BIT,
        enable_history_search=True,
    )


def _history_file() -> str:
    """Return the file of past lines, made readable by this user alone."""
    path = os.path.join(link.state_dir(), "history")
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        os.chmod(path, 0o600)
    except OSError as error:
        print(f"aiosh: no history: {link.sentence(error)}", file=sys.stderr)
        return os.devnull
    return path


class Words(Completer):
    """Completes commands, options, live aids, signals, names; after > and for programs, files."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._files = PathCompleter(expanduser=True)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """Yield what may stand where the cursor is."""
        words, begun = split(document.text_before_cursor)
        if not words:
            yield from self._commands(begun)
            return
        for value, meaning in self._offers(words, begun):
            yield Completion(value, -len(begun), display_meta=meaning)
        if words[-1] in (">", ">>", "2>", "cd") or words[0] in ("run", "cores", "demo", "cd"):
            yield from self._files.get_completions(Document(begun), complete_event)

    def _commands(self, begun: str) -> Iterable[Completion]:
        for name in self._shell.names():
            if name.startswith(begun):
                own = self._shell.own.get(name)
                command = app.group().commands.get(name)
                meaning = own[1] if own else command.get_short_help_str(60) if command else ""
                yield Completion(name, -len(begun), display_meta=meaning)

    def _offers(self, words: list[str], begun: str) -> list[tuple[str, str]]:
        if words[0] in ("fg", "bg") or begun.startswith("%"):
            return [o for o in self._shell.jobs.offers() if o[0].startswith(begun)]
        if words[0] == "help":
            return [(name, "") for name in self._shell.names() if name.startswith(begun)]
        return offers(words, begun)


def split(text: str) -> tuple[list[str], str]:
    """Return the finished words of the command under the cursor, and the word begun."""
    for joint in ("&&", "||", ";", "&"):
        text = text.rpartition(joint)[2]
    words = text.split()
    if not text or text[-1].isspace():
        return words, ""
    return words[:-1], words[-1]


def offers(words: list[str], begun: str) -> list[tuple[str, str]]:
    """Return what a command's own parameters offer for the word begun, with explanations."""
    command, rest = app.group(), list(words)
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest.pop(0)]
    if hasattr(command, "commands"):
        return [
            (name, sub.get_short_help_str(60))
            for name, sub in command.commands.items()
            if name.startswith(begun)
        ]
    options = {name: p for p in command.params for name in (*p.opts, *p.secondary_opts)}
    last = options.get(rest[-1]) if rest else None
    if last is not None and last.param_type_name == "option" and not last.is_flag:
        return _of(command, last, rest, begun)
    found: list[tuple[str, str]] = []
    if begun.startswith("-"):
        found = [
            (name, getattr(param, "help", "") or "")
            for name, param in options.items()
            if name.startswith(begun) and name.startswith("-")
        ]
    argument = _argument(command, rest, options)
    return found + (_of(command, argument, rest, begun) if argument is not None else [])


def _argument(command: Any, words: list[str], options: dict[str, Any]) -> Any:
    """Return the argument that the next word would be, None where there is none."""
    given, skip = 0, False
    for word in words:
        takes = options.get(word)
        if skip:
            skip = False
        elif takes is not None and takes.param_type_name == "option":
            skip = not takes.is_flag
        else:
            given += 1
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    for place, argument in enumerate(arguments):
        if argument.nargs == -1 or place == given:
            return argument
    return None


def _of(command: Any, param: Any, words: list[str], begun: str) -> list[tuple[str, str]]:
    context = command.make_context(command.name, list(words), resilient_parsing=True)
    return [(item.value, item.help or "") for item in param.shell_complete(context, begun)]


class Colours(Lexer):
    """Colours a line: a known command green, an unknown one red, options, quotes, operators."""

    def __init__(self, shell: Shell) -> None:
        self._known = set(shell.names())

    def lex_document(self, document: Document) -> Callable[[int], StyleAndTextTuples]:
        """Return the coloured pieces of each line."""
        return lambda number: self.pieces(document.lines[number])

    def pieces(self, line: str) -> StyleAndTextTuples:
        """Return one line as (style, text) pairs; joined they are the line."""
        found: StyleAndTextTuples = []
        first = True
        for word in _tokens(line):
            style = self._style(word, first)
            found.append((style, word))
            if not word.isspace():
                first = style == "class:operator"
        return found

    def _style(self, word: str, first: bool) -> str:
        if word.isspace():
            return ""
        if word[0] == "#":
            return "class:comment"
        if word[0] in "|&;<>":
            return "class:operator"
        if first:
            return "class:command" if word in self._known or word[0] == "!" else "class:unknown"
        if word[0] in "'\"":
            return "class:quoted"
        if word[0] == "-":
            return "class:option"
        return "class:number" if word.lstrip("%").isdecimal() else ""


def _tokens(line: str) -> list[str]:
    import re

    return re.findall(r"\s+|#.*|[|&;<>]+|\"[^\"]*\"?|'[^']*'?|[^\s|&;<>\"']+", line)
