"""The Rec Agent: works out what a guest likes and recommends a restaurant."""

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]  # this directory: its math.py would hide the one that Python brings

from aios.program import Program, main


def run(agent: Program) -> None:
    """Read the guest's wishes, then recommend by them."""
    wishes = agent.ask("wishes")
    agent.ask("recommend", wishes=wishes.text)


if __name__ == "__main__":
    sys.exit(main(__file__, run))
