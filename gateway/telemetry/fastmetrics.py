"""Histograms and counters that one thread fills and Prometheus reads.

They count every request: prometheus-client's own take a lock for each value and more than three
times as long.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from math import inf

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString

Labels = tuple[str, ...]


class Counts(Collector):
    """A counter with labels."""

    def __init__(
        self, name: str, documentation: str, labels: Sequence[str], registry: CollectorRegistry
    ) -> None:
        self._name, self._documentation, self._labels = name, documentation, labels
        self._counts: dict[Labels, int] = {}
        registry.register(self)

    def add(self, labels: Labels) -> None:
        """Add one."""
        self._counts[labels] = self._counts.get(labels, 0) + 1

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily(self._name, self._documentation, labels=self._labels)
        for labels, count in self._counts.items():
            family.add_metric(labels, count)
        return [family]


class _Series:
    """One histogram's series for one set of labels: the count of each bucket, not cumulated."""

    __slots__ = ("counts", "sum")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * buckets
        self.sum = 0.0


class Histograms(Collector):
    """A histogram with labels. `bounds` are the upper bounds of its buckets, in order and in the
    metric's unit; values above the last one have a bucket of their own."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str],
        bounds: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._name, self._documentation, self._labels = name, documentation, labels
        self._bounds = bounds
        self._series: dict[Labels, _Series] = {}
        registry.register(self)

    def add(self, labels: Labels, value: float) -> None:
        """Add a value, in the metric's unit."""
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = _Series(len(self._bounds) + 1)
        series.counts[bisect_left(self._bounds, value)] += 1
        series.sum += value

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        shown = [floatToGoString(bound) for bound in (*self._bounds, inf)]  # type: ignore[no-untyped-call]
        for labels, series in self._series.items():
            buckets = list(zip(shown, accumulate(series.counts), strict=True))
            family.add_metric(labels, buckets, series.sum)
        return [family]
