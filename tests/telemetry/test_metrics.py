"""Metrics and traces: exactly what happened, and nothing of the callers'."""

import asyncio

import pytest
from aiohttp import ClientPayloadError, web
from conftest import AGENTS, Script, stopped
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families
from test_streaming import HELLO, agent, until

from gateway.http.context import IN_FLIGHT

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def scrape(gw) -> dict[tuple[str, tuple], float]:
    """Every sample by (name, sorted labels)."""
    async with gw.get("/metrics") as answer:
        assert answer.status == 200
        families = text_string_to_metric_families(await answer.text())
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in families
            for sample in family.samples
        }


def value(samples, name: str, **labels) -> float:
    """The sum of the samples with these labels, whatever other labels they have."""
    found = [
        number
        for (sample, pairs), number in samples.items()
        if sample == name and labels.items() <= dict(pairs).items()
    ]
    assert found or name.endswith(("_count", "_sum", "_total")), name
    return sum(found)


async def read(answer) -> int:
    async with answer as response:
        await response.read()
        return response.status


async def test_every_call_is_counted_with_its_times_and_tokens(all_five):
    gw, _ = all_five
    await read(gw.chat("dify"))
    await read(gw.complete("dify", stream=True))
    await read(gw.chat("dify", "#fail"))
    await read(gw.complete("coze", stream=True))
    samples = await scrape(gw)
    count = "gen_ai_server_request_duration_seconds_count"
    assert value(samples, count, gen_ai_agent_name="dify") == 3
    assert value(samples, count, gen_ai_agent_name="dify", error_type="") == 2
    assert value(samples, count, gen_ai_agent_name="dify", error_type="upstream_failed") == 1
    labels = {"gen_ai_provider_name": "coze", "gen_ai_operation_name": "invoke_agent"}
    assert value(samples, count, **labels, gen_ai_request_model="coze") == 1
    first = "gen_ai_server_time_to_first_token_seconds_count"
    assert value(samples, first, gen_ai_agent_name="dify") == 1  # of streams only
    tokens = "gen_ai_client_token_usage_sum"
    for kind in ("input", "output"):
        assert value(samples, tokens, gen_ai_agent_name="dify", gen_ai_token_type=kind) > 0
    assert value(samples, "gateway_requests_total", route="/api/v1/chat", status="200") == 1
    assert value(samples, "gateway_requests_total", route="/api/v1/chat", status="502") == 1
    assert value(samples, "gateway_inflight_requests") == 1  # this one
    assert value(samples, "gateway_open_streams") == 0
    assert value(samples, "gateway_config_generation") == 1


async def test_a_cut_stream_is_counted_as_truncated(all_five):
    gw, _ = all_five
    await read(gw.complete("dify", "#cut", stream=True))
    samples = await scrape(gw)
    labels = {"agent": "dify", "reason": "upstream_cut"}
    assert value(samples, "gateway_truncated_streams_total", **labels) == 1


async def test_retries_fallbacks_and_open_circuits_are_counted(gateway, scripted):
    broken = await scripted(Script(status="503 X"))
    good = await scripted(Script(status="503 X"), Script(HELLO))
    settings = {"retries": 1, "breaker": {"failures": 2, "cooldown": "1m"}}
    gw = await gateway(
        agents={"a": agent(broken.url, **settings), "b": agent(good.url)}, routes={"r": ["a", "b"]}
    )
    assert await read(gw.complete("r")) == 200
    samples = await scrape(gw)
    assert value(samples, "gateway_retries_total", agent="a") == 1
    assert value(samples, "gateway_retries_total", agent="b") == 1
    failed = {"agent": "a", "error_type": "upstream_failed"}
    assert value(samples, "gateway_attempts_failed_total", **failed) == 2
    assert value(samples, "gateway_fallbacks_total", agent="b") == 1
    assert value(samples, "gateway_breaker_state", agent="a") == 2
    assert value(samples, "gateway_breaker_state", agent="b") == 0
    assert value(samples, "gateway_breaker_opened_total", agent="a") == 1
    count = "gen_ai_server_request_duration_seconds_count"
    assert value(samples, count, gen_ai_request_model="r", gen_ai_agent_name="b") == 1


async def test_open_streams_and_places_are_shown_while_they_last(gateway, scripted):
    upstream = await scripted(Script([HELLO[0]], end="hang"), stopped())
    gw = await gateway(agents={"bot": agent(upstream.url, concurrency=1)})
    stream = await gw.complete("bot", stream=True)
    waiting = asyncio.ensure_future(read(gw.complete("bot", stream=True)))
    samples = {}
    while value(samples, "gateway_agent_waiting", agent="bot") != 1 if samples else True:
        samples = await scrape(gw)
    assert value(samples, "gateway_open_streams") == 2
    assert value(samples, "gateway_agent_running", agent="bot") == 1
    stream.close()
    waiting.cancel()
    await asyncio.wait({waiting})

    async def is_quiet():
        now = await scrape(gw)
        names = ("gateway_open_streams", "gateway_agent_running", "gateway_agent_waiting")
        return not any(value(now, name) for name in names)

    async with asyncio.timeout(20):
        while not await is_quiet():
            await asyncio.sleep(0.01)


async def test_who_is_over_a_limit_is_counted(gateway, demo):
    served = await demo("dify")
    agents = {"dify": {**AGENTS["dify"], "base_url": served.url}}
    gw = await gateway(agents=agents, rate_limits={"chat": "1/min"})
    assert [await read(gw.complete("dify")) for _ in range(3)] == [200, 429, 429]
    samples = await scrape(gw)
    labels = {"class": "chat", "reason": "rate_limit_exceeded"}
    assert value(samples, "gateway_rate_limited_total", **labels) == 2


async def test_callers_make_no_labels(all_five):
    """Values from callers would fill Prometheus's memory."""
    gw, _ = all_five
    await read(gw.complete("openai/some-model-of-mine"))
    await read(gw.complete("OPENAI"))
    before = set(await scrape(gw))
    for i in range(20):
        await read(gw.complete(f"openai/model-{i}"))
        await read(gw.complete(f"nobody-{i}"))
        await read(gw.chat(f"nobody-{i}"))
        await read(gw.get(f"/nowhere/{i}"))
        await read(gw.get(f"/v1/models/x-{i}"))
        await read(gw.client.request(f"ODD{i}", gw.url + "/health"))
        await read(gw.post(f"/v1/x{i}", {"model": "openai"}))
    new = {name for name, _ in set(await scrape(gw)) - before}
    series = set(await scrape(gw)) - before
    assert not any("nobody" in str(it) or "model-" in str(it) or "ODD" in str(it) for it in series)
    assert len(series) < 120, new  # a few routes, statuses and their buckets


async def test_metrics_have_the_requested_format_and_can_be_private(gateway):
    gw = await gateway(agents={"dify": {"platform": "dify"}})
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    async with gw.get("/metrics", headers=accept) as answer:
        assert "openmetrics" in answer.headers["Content-Type"]
        assert (await answer.text()).endswith("# EOF\n")
    for odd in ("application/openmetrics-text; version=abc", "text/plain; version=x.y", "a/b;c"):
        assert await read(gw.get("/metrics", headers={"Accept": odd})) == 200
    gw = await gateway(agents={"dify": {"platform": "dify"}}, server={"metrics": False})
    assert await read(gw.get("/metrics")) == 404


async def test_stores_and_the_writers_queue_are_gauges(with_accounts, tmp_path):
    gw = await with_accounts(f"sqlite:///{tmp_path / 'gateway.db'}")
    samples = await scrape(gw)
    assert value(samples, "gateway_database_up") == 1
    assert value(samples, "gateway_storage_up") == 1
    assert value(samples, "gateway_record_queue_depth") == 0
    assert "gateway_redis_up" not in {name for name, _ in samples}


# Traces


class Collector:
    """Receives spans as an OpenTelemetry collector does: OTLP over HTTP."""

    def __init__(self) -> None:
        self.spans = []
        self.service = ""
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        told = ExportTraceServiceRequest.FromString(await request.read())
        for resource in told.resource_spans:
            names = {a.key: a.value.string_value for a in resource.resource.attributes}
            self.service = names["service.name"]
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        return web.Response()


@pytest.fixture
async def collector(stack):
    taker = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", taker.take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    taker.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    return taker


def attributes(span) -> dict:
    out = {}
    for pair in span.attributes:
        kind = pair.value.WhichOneof("value")
        out[pair.key] = getattr(pair.value, kind) if kind != "array_value" else [
            item.string_value for item in pair.value.array_value.values
        ]  # fmt: skip
    return out


async def test_a_callers_trace_goes_on_upstream_without_being_exported(gateway, scripted):
    upstream = await scripted(Script(HELLO))
    gw = await gateway(agents={"bot": agent(upstream.url)})
    body = {"model": "bot", "messages": [{"role": "user", "content": "hi"}]}
    headers = {"traceparent": PARENT, "tracestate": "vendor=1"}
    await read(gw.post("/v1/chat/completions", body, headers=headers))
    await read(gw.complete("bot"))
    told = [headers.get("traceparent") for _, headers, _ in upstream.requests]
    assert told == [PARENT, None]
    assert upstream.requests[0][1]["tracestate"] == "vendor=1"


@pytest.mark.parametrize(
    "parent",
    ["", "00-0-0-0", PARENT.upper(), PARENT + "-x", "00-" + "0" * 32 + "-b7ad6b7169203331-01",
     PARENT[:-2] + "zz", "x" * 5000],
)  # fmt: skip
async def test_what_is_no_traceparent_goes_nowhere(gateway, scripted, parent):
    upstream = await scripted(Script(HELLO))
    gw = await gateway(agents={"bot": agent(upstream.url)})
    body = {"model": "bot", "messages": [{"role": "user", "content": "hi"}]}
    headers = {"traceparent": parent, "tracestate": "a=b"}
    assert await read(gw.post("/v1/chat/completions", body, headers=headers)) == 200
    assert "traceparent" not in upstream.requests[0][1]
    assert "tracestate" not in upstream.requests[0][1]


async def test_a_call_is_a_span_with_one_below_it_per_attempt(collector, scripted, monkeypatch):
    from conftest import run_gateway

    broken = await scripted(Script(status="503 X"))
    good = await scripted(Script(HELLO))
    config = {
        "agents": {"a": agent(broken.url, retries=0), "b": agent(good.url)},
        "routes": {"r": ["a", "b"]},
        "traces": {"endpoint": collector.url},
    }
    async with run_gateway(config) as gw:
        body = {"model": "r", "messages": [{"role": "user", "content": "geheim"}]}
        headers = {"traceparent": PARENT}
        await read(gw.post("/v1/chat/completions", body, headers=headers))
    # Stopping has sent the rest.
    server, first, second = sorted(collector.spans, key=lambda span: span.start_time_unix_nano)
    assert collector.service == "ai-gateway"
    assert server.name == "POST /v1/chat/completions"
    assert server.trace_id.hex() == first.trace_id.hex() == PARENT[3:35]
    assert server.parent_span_id.hex() == PARENT[36:52]
    assert {first.parent_span_id, second.parent_span_id} == {server.span_id}
    assert (first.name, second.name) == ("invoke_agent a", "invoke_agent b")
    assert attributes(first)["error.type"] == "upstream_failed"
    assert first.status.code == 2
    told = attributes(second)
    assert told["gen_ai.operation.name"] == "invoke_agent"
    assert told["gen_ai.provider.name"] == "dify"
    assert told["gen_ai.agent.name"] == "b"
    assert told["gen_ai.conversation.id"] == "c-1"
    assert told["gen_ai.response.finish_reasons"] == ["stop"]
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (3, 2)
    assert attributes(server)["http.response.status_code"] == 200
    upstream_parent = good.requests[-1][1]["traceparent"]
    assert upstream_parent.split("-")[1:3] == [second.trace_id.hex(), second.span_id.hex()]
    assert "geheim" not in str(collector.spans)


async def test_what_is_not_sampled_is_passed_on_as_such(collector, scripted):
    from conftest import run_gateway

    upstream = await scripted(Script(HELLO))
    config = {
        "agents": {"bot": agent(upstream.url)},
        "traces": {"endpoint": collector.url, "sample": 0},
    }
    async with run_gateway(config) as gw:
        await read(gw.complete("bot"))
    assert collector.spans == []
    flags = upstream.requests[0][1]["traceparent"].rpartition("-")[2]
    assert int(flags, 16) & 1 == 0


async def test_a_missing_collector_slows_no_call_and_no_stop(scripted):
    from conftest import run_gateway

    upstream = await scripted(Script(HELLO))
    traces = {"endpoint": "http://127.0.0.1:9"}
    async with asyncio.timeout(20):
        async with run_gateway({"agents": {"bot": agent(upstream.url)}, "traces": traces}) as gw:
            assert await read(gw.complete("bot")) == 200


async def test_without_the_extra_the_start_says_what_to_install(
    gateway, scripted, monkeypatch, caplog
):
    import sys

    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    upstream = await scripted(Script(HELLO))
    agents = {"bot": agent(upstream.url)}
    gw = await gateway(agents=agents, traces={"endpoint": "http://127.0.0.1:9"})
    assert "requirements-traces.lock" in caplog.text
    assert await read(gw.complete("bot")) == 200
    await until(lambda: bool(upstream.requests))


async def test_an_answer_cut_by_a_stop_counts_as_503_not_499(gateway, scripted):
    upstream = await scripted(Script([HELLO[0], 60.0]))
    gw = await gateway(agents={"bot": {**AGENTS["openai"], "base_url": upstream.url}})
    async with gw.post("/v1/embeddings", {"model": "bot", "input": "hi"}) as answer:
        await answer.content.readany()
        await gw.app[IN_FLIGHT].drain(0.01)
        with pytest.raises(ClientPayloadError):
            await answer.read()
    samples = await scrape(gw)
    assert value(samples, "gateway_requests_total", status="503") == 1
    assert value(samples, "gateway_requests_total", status="499") == 0
    assert value(samples, "gateway_inflight_requests") == 1  # this one
