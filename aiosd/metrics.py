"""Metrics: counters, gauges and histograms with labels, as Prometheus understands them.

    ended = Counter("aios_requests_total", "requests that have ended", "core", "finish")
    ended.add("local", "stop")
    ended.metric()                      # an abi.Metric, to be sent

Numbers alone: nothing here knows what is counted, or waits, or does I/O. What must hold: a metric
never has more than MOST sets of labels, whoever makes them up; what comes later counts as `other`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Final

from aiosd.abi.system import Metric, Sample

MOST: Final = 512
"""Sets of labels that one metric keeps."""

OTHER: Final = "other"
"""The value of every label of what has no place of its own."""

SECONDS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0,
)  # fmt: skip
"""Upper bounds of the buckets for durations, from a ping to a long queue."""

Labels = tuple[str, ...]


class Counter:
    """Sums that only grow. labels: the names of what tells one sum from another."""

    def __init__(self, name: str, text: str, *labels: str) -> None:
        self.name = name
        self.text = text
        self._labels = labels
        self._sums: dict[Labels, float] = {} if labels else {(): 0.0}

    def add(self, *values: str, amount: float = 1.0) -> None:
        """Add to the sum of these values of the labels, which stand in their order."""
        values = _admitted(values, self._sums)
        self._sums[values] = self._sums.get(values, 0.0) + amount

    def metric(self) -> Metric:
        """Return the sums as they are now."""
        return counter(self.name, self.text, self._labels, self._sums.items())


class Histogram:
    """How values are spread over buckets. bounds: their upper bounds, ascending."""

    def __init__(
        self, name: str, text: str, *labels: str, bounds: Sequence[float] = SECONDS
    ) -> None:
        self.name = name
        self.text = text
        self._labels = labels
        self._bounds = tuple(bounds)
        self._spreads: dict[Labels, _Spread] = {}

    def observe(self, value: float, *values: str) -> None:
        """Count a value under these values of the labels."""
        values = _admitted(values, self._spreads)
        spread = self._spreads.get(values)
        if spread is None:
            spread = self._spreads[values] = _Spread(len(self._bounds) + 1)
        spread.counts[bisect_left(self._bounds, value)] += 1
        spread.sum += value

    def metric(self) -> Metric:
        """Return the buckets as they are now, each with all that is below it."""
        samples: list[Sample] = []
        for values, spread in self._spreads.items():
            labels = dict(zip(self._labels, values, strict=True))
            total = 0
            for bound, count in zip((*self._bounds, None), spread.counts, strict=True):
                total += count
                upper = "+Inf" if bound is None else f"{bound:g}"
                samples.append(Sample(f"{self.name}_bucket", total, {**labels, "le": upper}))
            samples.append(Sample(f"{self.name}_sum", spread.sum, labels))
            samples.append(Sample(f"{self.name}_count", total, labels))
        return Metric(self.name, "histogram", self.text, samples)


class _Spread:
    """How often each bucket was hit, and the sum of what hit them."""

    __slots__ = ("counts", "sum")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * buckets
        self.sum = 0.0


def counter(name: str, text: str, labels: Labels, sums: Iterable[tuple[Labels, float]]) -> Metric:
    """Return sums that somebody else keeps, by the values of the labels."""
    return Metric(name, "counter", text, _samples(name, labels, sums))


def gauge(name: str, text: str, labels: Labels, values: Iterable[tuple[Labels, float]]) -> Metric:
    """Return numbers that go up and down, by the values of the labels."""
    return Metric(name, "gauge", text, _samples(name, labels, values))


def _samples(name: str, labels: Labels, values: Iterable[tuple[Labels, float]]) -> list[Sample]:
    return [Sample(name, value, dict(zip(labels, each, strict=True))) for each, value in values]


def _admitted(values: Labels, known: dict[Labels, float] | dict[Labels, _Spread]) -> Labels:
    """Return the labels to count under: these, or OTHER where there are too many already."""
    if values in known or len(known) < MOST - 1:
        return values
    return (OTHER,) * len(values)
