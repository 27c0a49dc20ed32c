"""What `kernel.quota()` and `kernel.usage()` make of the rows of get_quota and get_usage."""

from __future__ import annotations

from collections.abc import Iterable
from time import gmtime, strftime

from aiosd.abi.accounts import Quota, UsageRow


def tightest(rows: Iterable[Quota]) -> dict[str, Quota]:
    """Return, by resource, the hard limit that leaves least."""
    found: dict[str, Quota] = {}
    for row in rows:
        if row.hard and (row.resource not in found or left(row) < left(found[row.resource])):
            found[row.resource] = row
    return found


def left(row: Quota) -> float:
    """Return what a limit leaves, requests in flight taken at their worst; 0 at least."""
    return max(0.0, row.limit - row.used - row.reserved)


def named(rows: Iterable[UsageRow], by: str) -> dict[str, UsageRow]:
    """Return what was used by core, tool, or day (as 2026-01-31)."""
    return {_name(row, by): row for row in rows}


def _name(row: UsageRow, by: str) -> str:
    if by == "day":
        return strftime("%Y-%m-%d", gmtime(row.since))
    return row.tool if by == "tool" else row.core
