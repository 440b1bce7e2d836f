"""The gateway's histograms and counters read like those of prometheus-client."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    exposition,
)
from prometheus_client.openmetrics import exposition as openmetrics

from gateway.telemetry.fastmetrics import Counts, Histograms

BOUNDS = (0.01, 0.5, 1, 2.5, 1048576)
LABELS = st.tuples(st.sampled_from(["dify", '"quoted"\n', "客服"]), st.sampled_from(["", "a"]))


def read(registry):
    """In both exposition formats."""
    return exposition.generate_latest(registry), openmetrics.generate_latest(registry)


@pytest.fixture(autouse=True)
def without_creation_times():
    disable_created_metrics()


@given(st.lists(st.tuples(LABELS, st.floats(0, 1e9) | st.sampled_from(BOUNDS))))
def test_a_histogram_reads_as_the_librarys(values):
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    mine = Histograms("seconds", "How long", ("agent", "error"), BOUNDS, ours)
    library = Histogram("seconds", "How long", ("agent", "error"), buckets=BOUNDS, registry=theirs)
    for labels, value in values:
        mine.add(labels, value)
        library.labels(*labels).observe(value)
    assert read(ours) == read(theirs)


@given(st.lists(LABELS))
def test_a_counter_reads_as_the_librarys(values):
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    mine = Counts("requests", "How many", ("route", "status"), ours)
    library = Counter("requests", "How many", ("route", "status"), registry=theirs)
    for labels in values:
        mine.add(labels)
        library.labels(*labels).inc()
    assert read(ours) == read(theirs)


def test_a_value_on_a_bound_is_in_the_bucket_below_it():
    registry = CollectorRegistry()
    histograms = Histograms("seconds", "How long", ("agent",), BOUNDS, registry)
    histograms.add(("dify",), 0.5)
    assert registry.get_sample_value("seconds_bucket", {"agent": "dify", "le": "0.01"}) == 0
    assert registry.get_sample_value("seconds_bucket", {"agent": "dify", "le": "0.5"}) == 1
