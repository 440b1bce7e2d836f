"""Metrics for Prometheus: OpenTelemetry's GenAI names in Prometheus form, and `gateway_*`.

They are counted once per call or request, never per event. Label values come from config.yaml and
from fixed lists, so their number is bounded; no value from a caller is ever a label. GenAI names:
semantic conventions 1.37 (status "development").
"""

import asyncio
from collections.abc import Callable, Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.telemetry.call import Call
from gateway.telemetry.fastmetrics import Counts, Histograms

# The buckets that the conventions recommend, and larger ones: agents take longer to begin than
# models.
_DURATION_S = (
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84,
    327.68, 655.36,
)  # fmt: skip
_FIRST_S = (
    0.005, 0.01, 0.02, 0.04, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 60, 120,
)  # fmt: skip
_PER_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304)
_LAG_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
_LAG_INTERVAL_S = 0.5
_GEN_AI = (
    "gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "gen_ai_agent_name",
)  # fmt: skip

ReadState = Callable[[], Iterable[Metric]]


class Metrics:
    """`read_state` returns gauges that are read at each scrape instead of being counted."""

    def __init__(self, read_state: ReadState) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        registry.register(_State(read_state))

        self._duration = Histograms(
            "gen_ai_server_request_duration_seconds",
            "From the request to the end of its answer",
            (*_GEN_AI, "error_type"),
            _DURATION_S,
            registry,
        )
        self._first = Histograms(
            "gen_ai_server_time_to_first_token_seconds",
            "From the request to the first delta of its answer",
            _GEN_AI,
            _FIRST_S,
            registry,
        )
        self._per_token = Histograms(
            "gen_ai_server_time_per_output_token_seconds",
            "Between two tokens after the first, where the platform counted them",
            _GEN_AI,
            _PER_TOKEN_S,
            registry,
        )
        self._tokens = Histograms(
            "gen_ai_client_token_usage",
            "Tokens of a call as the platform counted them",
            (*_GEN_AI, "gen_ai_token_type"),
            _TOKENS,
            registry,
        )
        self._requests = Counts(
            "gateway_requests", "Requests by route and status", ("route", "status"), registry
        )
        self.rate_limited = Counter(
            "gateway_rate_limited", "Requests over a limit", ("class", "reason"),
            registry=registry,
        )  # fmt: skip
        self.open_streams = 0
        Gauge("gateway_open_streams", "Streamed answers under way", registry=registry).set_function(
            lambda: self.open_streams
        )
        self._truncated = Counter(
            "gateway_truncated_streams", "Streams that broke after they had begun",
            ("agent", "reason"), registry=registry,
        )  # fmt: skip
        self._gone = Counter(
            "gateway_client_disconnects", "Callers who left before the end", ("agent", "phase"),
            registry=registry,
        )  # fmt: skip
        self._retries = Counter(
            "gateway_retries", "Further tries at the same agent", ("agent",), registry=registry
        )
        self._failures = Counter(
            "gateway_attempts_failed", "Tries at an agent that gave no answer, also where another"
            " one answered afterwards", ("agent", "error_type"), registry=registry,
        )  # fmt: skip
        self._fallbacks = Counter(
            "gateway_fallbacks", "Answers of an agent in place of the route's first", ("agent",),
            registry=registry,
        )  # fmt: skip
        self._memory = Counts(
            "gateway_memory",
            "Histories of stateless clients, by what became of them",
            ("agent", "result"),
            registry,
        )
        self._tasks = Counter(
            "gateway_background_calls", "Background calls of chat clients, and who answered them",
            ("task", "answered_by"), registry=registry,
        )  # fmt: skip
        self.loop_lag = Histogram(
            "gateway_event_loop_lag_seconds", "How late the event loop runs what is due",
            buckets=_LAG_S, registry=registry,
        )  # fmt: skip

    def call_ended(self, call: Call, status: int, error: str, seconds: float) -> None:
        """Count a finished call. `error` is the code of its error, or ""."""
        agent = call.agent
        if call.task:
            self._tasks.labels(call.task, call.answered_by or "none").inc()
        if not agent:
            return  # refused before an agent was asked; `requests` counts it
        labels = ("invoke_agent", call.provider, call.model or agent, agent)
        error_type = "client_disconnected" if call.client_gone else error
        self._duration.add((*labels, error_type), seconds)
        if call.first_delta_at is not None and call.streamed:  # a whole answer arrives all together
            first_s = call.first_delta_at - call.began
            self._first.add(labels, first_s)
            if call.usage and call.usage.completion > 1:
                rest_s = max(0.0, seconds - first_s)
                per_token_s = rest_s / (call.usage.completion - 1)
                self._per_token.add(labels, per_token_s)
        if call.usage is not None and call.usage.total:
            self._tokens.add((*labels, "input"), call.usage.prompt)
            self._tokens.add((*labels, "output"), call.usage.completion)
        if call.client_gone:
            phase = "before_first_delta" if call.first_delta_at is None else "streaming"
            self._gone.labels(agent, phase).inc()
        elif error and call.streamed and call.first_delta_at is not None:
            self._truncated.labels(agent, error).inc()
        if call.memory:
            self._memory.add((agent, call.memory))
        for name in call.retries:
            self._retries.labels(name).inc()
        for name, code in call.failures:
            self._failures.labels(name, code).inc()
        if call.fallbacks and not error:
            self._fallbacks.labels(agent).inc()

    def request_ended(self, route: str, status: int) -> None:
        """Count one request of any kind. `route` is the declared path."""
        self._requests.add((route, str(status)))

    def know(self, agents: Iterable[str]) -> None:
        """Start the counters of these agents at 0, so that the first event shows as an increase."""
        for agent in agents:
            self._retries.labels(agent)
            self._fallbacks.labels(agent)
            for phase in ("before_first_delta", "streaming"):
                self._gone.labels(agent, phase)

    def text(self, accept: str) -> tuple[bytes, str]:
        """(all metrics, their content type), as the header `Accept` asks."""
        try:
            encode, kind = choose_encoder(accept)
        except (TypeError, ValueError):  # an invalid version
            encode, kind = choose_encoder("")
        return encode(self.registry), kind


class _State(Collector):
    def __init__(self, read_state: ReadState) -> None:
        self._read_state = read_state

    def collect(self) -> Iterable[Metric]:
        return self._read_state()

    def describe(self) -> Iterable[Metric]:
        return ()  # else the registry would read the state before it exists


class LoopLag:
    """Measures twice a second how late the event loop runs a timer."""

    def __init__(self, observe: Callable[[float], None]) -> None:
        self._observe = observe
        self._loop = asyncio.get_running_loop()
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._schedule()

    def _schedule(self) -> None:
        self._due = self._loop.time() + _LAG_INTERVAL_S
        self._timer = self._loop.call_at(self._due, self._measure)

    def _measure(self) -> None:
        self._observe(max(0.0, self._loop.time() - self._due))
        self._schedule()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
