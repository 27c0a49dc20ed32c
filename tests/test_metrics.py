"""Counters and histograms, and the text that Prometheus makes of them."""

from __future__ import annotations

import math

from prometheus_client.parser import text_string_to_metric_families

from aios.prometheus import exposition
from aiosd.abi.system import Metric, Sample
from aiosd.metrics import MOST, OTHER, Counter, Histogram, gauge


def _values(metric: Metric) -> dict[tuple[str, ...], float]:
    return {tuple(sample.labels.values()): sample.value for sample in metric.samples}


def test_a_counter_adds_by_labels() -> None:
    counter = Counter("c_total", "things", "core", "kind")
    counter.add("a", "x")
    counter.add("a", "x", amount=2.5)
    counter.add("a", "y")
    assert _values(counter.metric()) == {("a", "x"): 3.5, ("a", "y"): 1.0}
    assert _values(Counter("n_total", "none so far").metric()) == {(): 0.0}


def test_labels_that_never_end_are_counted_as_other() -> None:
    counter, spread = Counter("c_total", "things", "core"), Histogram("h", "spans", "core")
    for number in range(MOST + 100):
        counter.add(str(number))
        spread.observe(1.0, str(number))
    counter.add("0")
    sums = _values(counter.metric())
    assert len(sums) == MOST and sums["0",] == 2.0 and sums[OTHER,] == 101.0
    assert len([s for s in spread.metric().samples if s.name == "h_count"]) == MOST


def test_a_histogram_holds_each_value_once() -> None:
    spread = Histogram("h", "spans", bounds=(1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        spread.observe(value)
    samples = spread.metric().samples
    buckets = [(s.labels["le"], s.value) for s in samples if s.name == "h_bucket"]
    assert buckets == [("1", 2), ("2", 3), ("+Inf", 4)]
    assert [(s.name, s.value) for s in samples[-2:]] == [("h_sum", 12.0), ("h_count", 4)]


def test_prometheus_reads_what_is_written() -> None:
    wild = 'back\\slash "quoted"\nand a second line, {braces}'
    spread = Histogram("h_seconds", f"spans\n{wild}", "core")
    spread.observe(0.003, wild)
    known = [gauge("g", "some", ("core",), [((wild,), -1.5)]), spread.metric()]
    families = {f.name: f for f in text_string_to_metric_families(exposition(known))}
    assert families["g"].type == "gauge" and families["g"].samples[0].labels == {"core": wild}
    assert families["g"].samples[0].value == -1.5
    read = [(s.name, s.labels, s.value) for s in families["h_seconds"].samples]
    assert read == [(s.name, s.labels, s.value) for s in known[1].samples]


def test_what_is_no_ordinary_number_is_written_as_prometheus_has_it() -> None:
    values = [math.inf, -math.inf, 1e300]
    odd = [Sample("g", value, {"n": str(i)}) for i, value in enumerate(values)]
    [family] = text_string_to_metric_families(exposition([Metric("g", "gauge", "odd", odd)]))
    assert [sample.value for sample in family.samples] == values
