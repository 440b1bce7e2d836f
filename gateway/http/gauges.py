"""The state of the process as gauges, read at each scrape of the metrics."""

import asyncio
from collections.abc import Iterator

from aiohttp import web
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric

from gateway import __version__
from gateway.http.context import BUCKETS, FILES, IN_FLIGHT, SERVICES, STATE

_BREAKER = {"closed": 0, "half-open": 1, "open": 2}


def process_gauges(app: web.Application) -> Iterator[Metric]:
    """Gauges of what exists so far: the ops port may be scraped during the start."""
    yield InfoMetricFamily("gateway_build", "The version", value={"version": __version__})
    yield _gauge("inflight_requests", "Requests under way", len(app[IN_FLIGHT]))
    text = "Connections beyond server.max_connections"
    yield _counter("connections_refused", text, app[IN_FLIGHT].refused)
    tasks = len(asyncio.all_tasks())
    yield _gauge("event_loop_tasks", "Tasks of the event loop, waiting ones too", tasks)
    yield _gauge("stopping", "1 while the process drains", app[IN_FLIGHT].stopping)
    if STATE in app:
        yield from _config(app)
        yield from _agents(app)
    if BUCKETS in app and app[BUCKETS].is_configured:
        buckets = app[BUCKETS]
        yield _gauge("redis_up", "0 while each process limits by itself", buckets.is_shared)
        yield _counter(
            "redis_failures", "Calls of Redis that failed or were late", buckets.failures
        )
    if SERVICES in app:
        yield from _services(app)
    if FILES in app:
        yield _gauge(
            "storage_up", "0 while files cannot be kept or read", not app[FILES].unavailable
        )


def _config(app: web.Application) -> Iterator[Metric]:
    holder = app[STATE]
    text = "Counts the configurations since the start"
    yield _gauge("config_generation", text, holder.now.generation)
    text = "1 if config.yaml as it is now cannot be taken"
    yield _gauge("config_problem", text, bool(holder.problems))
    reloads = CounterMetricFamily(
        "gateway_config_reloads", "Times config.yaml was read again", labels=["result"]
    )
    for result in ("ok", "failed"):
        reloads.add_metric([result], holder.reloads[result])
    yield reloads


def _agents(app: web.Application) -> Iterator[Metric]:
    texts = {
        "agent_running": "Calls under way",
        "agent_waiting": "Calls that wait for a place",
        "agent_queue": "Calls that may wait for a place",
        "agent_draining": "Calls under way whose caller has left",
        "agent_concurrency": "Calls that may be under way",
        "breaker_state": "0 closed, 1 half-open, 2 open",
    }
    families = {
        name: GaugeMetricFamily(f"gateway_{name}", text, labels=["agent"])
        for name, text in texts.items()
    }
    opened = CounterMetricFamily("gateway_breaker_opened", "Times it opened", labels=["agent"])
    for name, target in app[STATE].now.routing.targets.items():
        values = (
            target.running, target.waiting, target.agent.queue, target.draining,
            target.agent.concurrency,
            _BREAKER[target.breaker.state],
        )  # fmt: skip
        for family, value in zip(families.values(), values, strict=True):
            family.add_metric([name], value)
        opened.add_metric([name], target.breaker.opened)
    yield from families.values()
    yield opened


def _services(app: web.Application) -> Iterator[Metric]:
    recorder = app[SERVICES].recorder
    is_up = not (app[SERVICES].directory.unavailable or recorder.unavailable)
    yield _gauge("database_up", "0 while calls wait for it on disk", is_up)
    text = "Calls that the database does not have yet"
    yield _gauge("record_queue_depth", text, recorder.waiting)
    yield _counter("record_written", "Calls written to the database", recorder.written)
    yield _counter("record_lost", "Calls that nothing had room for", recorder.lost)
    yield _counter("record_damaged", "Files of the spool that were set aside", recorder.damaged)
    yield _counter("record_rejected", "Calls that the database refused", recorder.rejected)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"gateway_{name}", text, value=float(value))


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"gateway_{name}", text, value=float(value))
