"""The Narrative Agent: invents a story's premise, writes its opening, and ends it."""

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]  # this directory: its math.py would hide the one that Python brings

from aios.program import Program, main


def run(agent: Program) -> None:
    """Think the story up, then write it in one context, so that it remembers itself."""
    premise = agent.ask("premise")
    opening = agent.ask("opening", premise=premise.text)
    agent.ask("ending", context=opening.context)


if __name__ == "__main__":
    sys.exit(main(__file__, run))
