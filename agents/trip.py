"""The Trip Agent: organizes a trip with tools, in the seven steps of the paper's first figure.

    [tools]
    path = ["agents/trip_tools"]        # in aiosd.toml, then: aiosctl run agents/trip.py

The model makes the plan, an order of the steps whose tools there are, under a grammar; it writes
the call of each step, under another; and in the end the tips. A step that comes too early for its
tool is tried again behind the others. With --photo FILE the upload has a picture to upload.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]  # this directory: its math.py would hide the one that Python brings

import argparse
from collections import deque
from pathlib import Path

import aios

TASK = (
    "I'm flying from San Francisco to New York for business next month, "
    "please help organize the trip."
)
STEPS = {
    "recall_preferences": "preference retrieval",
    "recommend_flight_and_hotel": "flight and hotel recommendation",
    "upload_photo_id": "photo ID upload",
    "select_seat": "seat selection",
    "process_payment": "payment processing",
    "add_to_calendar": "ticket to the calendar",
    "collect_reviews": "reviews and tips",
}


def orders(names: list[str]) -> str:
    """Return the grammar of all orders of some names, separated by commas."""
    rules = ["root ::= s0"]
    whole = (1 << len(names)) - 1
    for done in range(whole):
        ways = []
        for place, name in enumerate(names):
            then = done | 1 << place
            if then != done:
                ways.append(f'"{name}"' + (f' ", " s{then}' if then != whole else ""))
        rules.append(f"s{done} ::= {' | '.join(ways)}")
    return "\n".join(rules)


class Trip:
    """A trip that is being organized. facts: what the tools gave, in order."""

    def __init__(self, kernel: aios.Kernel, task: str) -> None:
        self.kernel = kernel
        self.task = task
        self.facts: list[str] = []

    def plan(self) -> list[str]:
        """Have the model put the steps in order, those whose tools there are."""
        there = {tool.name for tool in self.kernel.list_tools()}
        names = [name for name in STEPS if name in there]
        if not names:
            raise SystemExit("trip: none of its tools is declared; see [tools] path in aiosd.toml")
        listed = "\n".join(f"{number}. {name}" for number, name in enumerate(names, 1))
        prompt = (
            f"You are a travel agent. Request: {self.task}\nYour tools:\n{listed}\n"
            "Write the names of all tools, in the order in which you use them."
        )
        reply = self.kernel.llm_generate(prompt, grammar=orders(names), max_tokens=160)
        return reply.text.split(", ")

    def step(self, name: str) -> bool:
        """Have the model call a step's tool; return whether that worked."""
        known = "\n".join(self.facts) or "nothing yet"
        reply = self.kernel.llm_generate(
            f"Request: {self.task}\nKnown: {known}\nNow do this step: {STEPS[name]}.",
            tools=[name],
            tool_choice="required",
            tool_rounds=1,
            tool_calls=1,
            tool_answer=False,
            max_tokens=160,
        )
        worked = False
        for call in reply.calls:
            print(f"{STEPS[name]}: {call.tool} {call.arguments} -> {call.result or call.error}")
            if call.result:
                self.facts.append(call.result)
                worked = True
        return worked

    def tips(self) -> str:
        """Have the model write what the traveller should know."""
        known = "\n".join(self.facts)
        prompt = f"Request: {self.task}\nKnown: {known}\nGive the traveller three short tips."
        return self.kernel.llm_generate(prompt, max_tokens=64).text.strip()


def organize(kernel: aios.Kernel, task: str) -> bool:
    """Organize a trip; return whether all steps of the plan were done."""
    trip = Trip(kernel, task)
    plan = trip.plan()
    print(f"plan: {', '.join(plan)}")
    left, failed = deque(plan), 0
    while left and failed < len(left):  # every other step failed since one worked: none ever will
        name = left.popleft()
        if trip.step(name):
            failed = 0
        else:
            left.append(name)
            failed += 1
    print(f"tips: {trip.tips()}")
    return not left


def main() -> int:
    """Organize one trip; the exit status says whether all planned steps were done."""
    parser = argparse.ArgumentParser(prog="trip", description="Organize a trip.")
    parser.add_argument("--photo", type=Path, metavar="FILE", help="picture of an ID, up to 4 MiB")
    parser.add_argument("task", nargs="*", help="what is wanted")
    options = parser.parse_args()
    try:
        with aios.connect(name="trip") as kernel:
            if options.photo:
                kernel.put_file("photo-id", options.photo.read_bytes())
            return 0 if organize(kernel, " ".join(options.task) or TASK) else 1
    except OSError as error:
        print(f"trip: {error.strerror or error}", file=sys.stderr)
        return 125 if isinstance(error, ConnectionError) else 1


if __name__ == "__main__":
    sys.exit(main())
