"""What a provider may ask for a request, whatever it says."""

from __future__ import annotations

from aiosd.bill import Bill


def test_a_providers_figures_count_up_to_what_was_reserved() -> None:
    bill = Bill(100, 50, sent=True)
    bill.metered(80, 90, 20)
    bill.finished()
    assert (bill.read(), bill.cached, bill.said(999), bill.disputed) == (80, 80, 20, False)
    bill.metered(10**9, 0, 10**9)
    assert (bill.read(), bill.said(0), bill.disputed) == (100, 50, True)


def test_without_figures_the_most_that_it_can_be_counts() -> None:
    bill = Bill(100, 50)
    assert (bill.read(), bill.said(7)) == (0, 0)  # nothing was asked
    bill.sent = True
    assert (bill.read(), bill.said(7), bill.said(70)) == (100, 7, 50)
    bill.metered(30, 0, 10)  # it said so before it was cut off
    assert (bill.read(), bill.said(7)) == (30, 10)
    bill.lost = True
    assert bill.said(7) == 50
