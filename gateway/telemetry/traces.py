"""Traces: a caller's `traceparent` is sent upstream, and with an endpoint spans are exported.

A call is a server span with one `invoke_agent` span per attempt under it, named by OpenTelemetry's
GenAI conventions. Without the extra `traces` no part of OpenTelemetry is loaded. Questions and
answers are never in a span.
"""

import logging
import os
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol
from urllib.parse import urlsplit

from gateway.config.models import Traces
from gateway.errors import GatewayError
from gateway.protocol.messages import Usage

log = logging.getLogger("gateway")

_PARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_GOODBYE_S = 3.0
_STATE = re.compile(r"[\x20-\x7e]{1,512}")


class CallTrace(Protocol):
    """The trace of one call."""

    def attempt(self, agent: str, provider: str, url: str) -> Mapping[str, str]:
        """Begin a new attempt and end the previous one. Returns headers to send upstream."""

    def failed(self, error: GatewayError) -> None:
        """Mark the current attempt as failed."""

    def end(
        self, status: int, error: str, conversation_id: str, finish: str, usage: Usage | None
    ) -> None:
        """End the call."""


class Tracer(Protocol):
    def call(
        self, name: Callable[[], str], headers: Mapping[str, str], request_id: str
    ) -> CallTrace:
        """`name` computes the span's name, and is called only if there is a span."""

    def close(self) -> None:
        """Export the remaining spans; may take seconds."""


def open_tracer(settings: Traces) -> Tracer:
    """The tracer for the configuration."""
    if not settings.endpoint:
        return _PassOn()
    try:
        return _Exporting(settings)
    except ImportError:
        log.warning(
            "Traces are not exported: install the extra from the checkout,"
            " .venv/bin/pip install -r requirements-traces.lock; or build the image with TRACES=1"
        )
        return _PassOn()


def _trace_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The trace context of a caller's request, as headers."""
    parent = headers.get("traceparent", "")
    if not _PARENT.fullmatch(parent):
        return {}
    state = headers.get("tracestate", "")
    return {"traceparent": parent} | ({"tracestate": state} if _STATE.fullmatch(state) else {})


class _PassOn:
    """Exports nothing, and sends the caller's trace context upstream."""

    def call(
        self, name: Callable[[], str], headers: Mapping[str, str], request_id: str
    ) -> CallTrace:
        return _Passed(_trace_headers(headers)) if "traceparent" in headers else NO_TRACE

    def close(self) -> None:
        pass


class _Passed:
    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = headers

    def attempt(self, agent: str, provider: str, url: str) -> Mapping[str, str]:
        return self._headers

    def failed(self, error: GatewayError) -> None:
        pass

    def end(
        self, status: int, error: str, conversation_id: str, finish: str, usage: Usage | None
    ) -> None:
        pass


NO_TRACE: CallTrace = _Passed({})


class _Exporting:
    """OpenTelemetry's SDK: spans go to the endpoint in batches, from its own thread."""

    def __init__(self, settings: Traces) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # It warns about callers' malformed headers, and quotes them.
        logging.getLogger("opentelemetry.trace.span").setLevel(logging.ERROR)
        named = "service.name" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        name = {} if named or os.environ.get("OTEL_SERVICE_NAME") else {"service.name": _SERVICE}
        self._provider = TracerProvider(
            resource=Resource.create(name),
            sampler=ParentBased(TraceIdRatioBased(settings.sample)),
            shutdown_on_exit=False,
        )
        exporter = OTLPSpanExporter(
            endpoint=f"{settings.endpoint.rstrip('/')}/v1/traces", timeout=5
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("gateway")
        self._propagator = TraceContextTextMapPropagator()

    def call(
        self, name: Callable[[], str], headers: Mapping[str, str], request_id: str
    ) -> CallTrace:
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind

        context = self._propagator.extract(_trace_headers(headers), Context())
        span = self._tracer.start_span(name(), context, SpanKind.SERVER)
        span.set_attribute("gateway.request_id", request_id)
        return _Spans(self._tracer, self._propagator, span)

    def close(self) -> None:
        # A collector that hangs would delay the shutdown for too long.
        last = threading.Thread(target=self._provider.shutdown, daemon=True)
        last.start()
        last.join(_GOODBYE_S)


_SERVICE = "ai-gateway"


class _Spans:
    def __init__(self, tracer: Any, propagator: Any, span: Any) -> None:
        self._tracer = tracer
        self._propagator = propagator
        self._server = span
        self._attempt: Any = None

    def attempt(self, agent: str, provider: str, url: str) -> Mapping[str, str]:
        from opentelemetry.trace import SpanKind, set_span_in_context

        self._end_attempt()
        parts = urlsplit(url)
        self._attempt = self._tracer.start_span(
            f"invoke_agent {agent}",
            set_span_in_context(self._server),
            SpanKind.CLIENT,
            {
                "gen_ai.operation.name": "invoke_agent",
                "gen_ai.provider.name": provider,
                "gen_ai.agent.name": agent,
                "server.address": parts.hostname or "",
                "server.port": parts.port or (443 if parts.scheme == "https" else 80),
            },
        )
        headers: dict[str, str] = {}
        self._propagator.inject(headers, set_span_in_context(self._attempt))
        return headers

    def failed(self, error: GatewayError) -> None:
        if self._attempt is not None:
            _mark(self._attempt, error.code or error.type)
            self._end_attempt()

    def end(
        self, status: int, error: str, conversation_id: str, finish: str, usage: Usage | None
    ) -> None:
        if (attempt := self._attempt) is not None:
            if conversation_id:
                attempt.set_attribute("gen_ai.conversation.id", conversation_id)
            if finish:
                attempt.set_attribute("gen_ai.response.finish_reasons", [finish])
            if usage is not None and usage.total:
                attempt.set_attribute("gen_ai.usage.input_tokens", usage.prompt)
                attempt.set_attribute("gen_ai.usage.output_tokens", usage.completion)
            if error:
                _mark(attempt, error)
            self._end_attempt()
        self._server.set_attribute("http.response.status_code", status)
        if error or status >= 500:
            _mark(self._server, error or str(status))
        self._server.end()

    def _end_attempt(self) -> None:
        if self._attempt is not None:
            self._attempt.end()
            self._attempt = None


def _mark(span: Any, error: str) -> None:
    from opentelemetry.trace import StatusCode

    span.set_attribute("error.type", error)
    span.set_status(StatusCode.ERROR)
