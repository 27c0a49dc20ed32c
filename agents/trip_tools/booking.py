#!/usr/bin/env python3
"""The tools of the Trip Agent: a travel office of one file, which keeps a trip in its workspace.

    echo '{"kind": "aisle"}' | booking.py select_seat

Reads the arguments as JSON from standard input and writes the result to standard output. What comes
too early (a payment before there is a seat) is refused with status 1 and the reason. All of it is
made up and stays here: nothing is booked, and nobody is paid.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

KEPT = Path("trip.json")
PHOTO = Path("photo-id")
"""A picture of the document, where the traveller's agent has put one into the workspace."""
FLIGHTS = {"morning": "AO 17 at 07:40", "evening": "AO 23 at 19:10"}
HOTELS = {"quiet": "Hotel Elm, 2 km from the centre", "central": "Hotel Grand, in the centre"}
SEATS = {"aisle": "12C", "window": "14A", "middle": "21E"}
REVIEWS = {
    "hotel": ["Breakfast from six, which suits early meetings.", "Ask for a room to the back."],
    "flight": ["Boards on time.", "Bring your own water."],
    "city": ["The subway is faster than a taxi at rush hour.", "Concerts begin at eight."],
}
ICS = """BEGIN:VCALENDAR
VERSION:2.0
PRODID:-//AIOS//trip//EN
BEGIN:VEVENT
UID:trip@aios
DTSTAMP:20300101T000000Z
DTSTART:20300114T074000
SUMMARY:{title}
END:VEVENT
END:VCALENDAR
"""

Trip = dict[str, Any]


def recall_preferences(trip: Trip, given: Trip) -> Trip:
    """What the traveller liked before."""
    return {"preferences": {"departure": "morning", "hotel": "quiet", "seat": "aisle"}}


def recommend_flight_and_hotel(trip: Trip, given: Trip) -> Trip:
    """A flight and a hotel by the traveller's preferences."""
    _needs(trip, "preferences")
    return {"flight": FLIGHTS[given["departure"]], "hotel": HOTELS[given["hotel"]], "price": 640}


def upload_photo_id(trip: Trip, given: Trip) -> Trip:
    """The document that is shown at the gate."""
    _needs(trip, "flight")
    found = {"photo_id": given["document"]}
    if PHOTO.is_file():
        found["photo_sha256"] = hashlib.sha256(PHOTO.read_bytes()).hexdigest()[:16]
    return found


def select_seat(trip: Trip, given: Trip) -> Trip:
    """A seat on the flight."""
    _needs(trip, "flight")
    return {"seat": SEATS[given["kind"]]}


def process_payment(trip: Trip, given: Trip) -> Trip:
    """Pay for what was chosen."""
    _needs(trip, "flight", "photo_id", "seat")
    if "receipt" in trip:
        raise SystemExit("it has been paid for already")
    return {"receipt": f"R-1 {given['method']} {trip['price']}"}


def add_to_calendar(trip: Trip, given: Trip) -> Trip:
    """An entry in the calendar, as a file."""
    _needs(trip, "receipt")
    title = " ".join(given["title"].split()) or "Trip"
    Path("trip.ics").write_text(ICS.format(title=title), encoding="utf-8")
    return {"calendar": "trip.ics"}


def collect_reviews(trip: Trip, given: Trip) -> Trip:
    """What other travellers say."""
    _needs(trip, "flight")
    return {"reviews": REVIEWS[given["about"]]}


TOOLS: dict[str, Callable[[Trip, Trip], Trip]] = {
    each.__name__: each
    for each in (
        recall_preferences, recommend_flight_and_hotel, upload_photo_id, select_seat,
        process_payment, add_to_calendar, collect_reviews,
    )
}  # fmt: skip


def _needs(trip: Trip, *names: str) -> None:
    missing = [name for name in names if name not in trip]
    if missing:
        raise SystemExit(f"too early: there is no {' and no '.join(missing)} yet")


def main(tool: str) -> None:
    """Carry a tool out and keep what came of it."""
    trip = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    found = TOOLS[tool](trip, json.load(sys.stdin))
    KEPT.write_text(json.dumps(trip | found), encoding="utf-8")
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
