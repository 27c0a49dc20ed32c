"""The Travel Agent: plans a trip in steps, as the one in the paper's first figure."""

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]  # this directory: its math.py would hide the one that Python brings

from aios.program import Program, main


def run(agent: Program) -> None:
    """Recall the traveller's preferences, find flight and hotel, and write the itinerary."""
    preferences = agent.ask("preferences")
    bookings = agent.ask("bookings", preferences=preferences.text)
    agent.ask("itinerary", context=bookings.context)


if __name__ == "__main__":
    sys.exit(main(__file__, run))
