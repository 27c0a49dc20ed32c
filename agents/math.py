"""The Math Agent: solves a problem, checks its own solution, and states the result."""

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]  # this directory: its math.py would hide the one that Python brings

from aios.program import Program, main


def run(agent: Program) -> None:
    """Solve, check and answer, each step in view of those before."""
    solution = agent.ask("solve")
    check = agent.ask("check", context=solution.context)
    agent.ask("answer", solution=solution.text, check=check.text)


if __name__ == "__main__":
    sys.exit(main(__file__, run))
