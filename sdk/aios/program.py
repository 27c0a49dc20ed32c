"""What the agent programs that come with aios share: options, prompts from a file, output.

    def run(agent: Program) -> None:
        plan = agent.ask("plan")
        agent.ask("check", context=plan.context, plan=plan.text)

    if __name__ == "__main__":
        sys.exit(main(__file__, run))

Exit status: 0 done, 1 the kernel refused or a generation was cancelled, 2 wrong options,
125 aiosd can't be reached, 130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from aios.kernel import Kernel, connect
from aiosd.abi.inference import Generation

MAX_TOKENS = 64


class Step(msgspec.Struct, frozen=True):
    """One request and its reply, as `--json` prints them: a line each."""

    agent: str
    aid: int
    step: str
    prompt: str
    reply: dict[str, object]


class Program:
    """An agent at work. task: what it is to do, the prompt file's own or the command line's."""

    def __init__(
        self, kernel: Kernel, name: str, prompts: dict[str, str], options: Options
    ) -> None:
        self.kernel = kernel
        self.name = name
        self.task = options.task or prompts.get("task", "")
        self._prompts = prompts
        self._options = options

    def ask(self, step: str, context: int = 0, **words: str) -> Generation:
        """Send the prompt called `step`, its {words} filled in, and print the reply.

        context: the context to continue, 0 for a fresh one. Temperature is 0: the same question
        has the same answer. Raises OSError (ECANCELED) when the generation was cancelled.
        """
        prompt = self._prompts[step].strip().format(task=self.task, **words)
        reply = self.kernel.llm_generate(
            prompt,
            max_tokens=self._options.max_tokens,
            temperature=0,
            context=context,
            core=self._options.core,
        )
        self._show(step, prompt, reply)
        if reply.finish_reason == "cancelled":
            raise OSError(errno.ECANCELED, f"{step}: cancelled ({reply.reason or 'no reason'})")
        return reply

    def _show(self, step: str, prompt: str, reply: Generation) -> None:
        if self._options.json:
            told = Step(self.name, self.kernel.aid, step, prompt, _whole(reply))
            line = msgspec.json.encode(told).decode()
        else:
            took = f"{reply.usage.completion_tokens} tokens, {reply.timing.turnaround_s:.2f} s"
            waited = f"waited {reply.timing.waiting_s:.2f} s"
            line = f"-- {self.name}: {step} ({took}, {waited})\n{reply.text.strip()}\n"
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def _whole(record: msgspec.Struct) -> dict[str, object]:
    """Return a record's fields, those that have their default value too."""
    fields = msgspec.structs.asdict(record).items()
    return {
        name: _whole(value) if isinstance(value, msgspec.Struct) else value
        for name, value in fields
    }


class Options(argparse.Namespace):
    """The command line of an agent program."""

    task: str
    max_tokens: int
    core: str
    json: bool


def main(file: str, run: Callable[[Program], None], argv: Sequence[str] | None = None) -> int:
    """Connect as the agent named like the file, run it, and return the exit status."""
    name = Path(file).stem
    options = _parser(name).parse_args(argv, namespace=Options())
    prompts = tomllib.loads((Path(file).parent / "prompts" / f"{name}.toml").read_text("utf-8"))
    try:
        with connect(name=name) as kernel:
            run(Program(kernel, name, prompts, options))
    except OSError as error:
        print(f"{name}: {error.strerror or error}", file=sys.stderr)  # noqa: T201
        return 125 if isinstance(error, ConnectionError) else 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=name, description=f"The {name} agent of AIOS.")
    add = parser.add_argument
    add("task", nargs="?", default="", help="what to do (default: the prompt file's own task)")
    add(
        "--max-tokens",
        type=_count,
        default=os.environ.get("AIOS_MAX_TOKENS") or str(MAX_TOKENS),
        metavar="N",
        help=f"tokens per answer (default: AIOS_MAX_TOKENS, else {MAX_TOKENS})",
    )
    add("--core", default=os.environ.get("AIOS_CORE", ""), metavar="NAME", help="the core to use")
    add("--json", action="store_true", help="print a JSON line per answer")
    return parser


def _count(text: str) -> int:
    """Read a number of tokens."""
    number = int(text)
    if not 1 <= number <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{number} is not within 1 to 1000000")
    return number
