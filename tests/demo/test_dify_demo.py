"""The Dify simulator against captures of the real server: same events, same members, same order."""

import json
from pathlib import Path

import aiohttp
import pytest
from test_dify_captures import events, read_capture

CAPTURES = Path(__file__).parent.parent / "platforms" / "captures" / "dify" / "1.16.0"


async def ask(url: str, path: str, body: dict) -> tuple[int, str, bytes]:
    async with aiohttp.ClientSession() as client:
        answer = await client.post(url + path, json=body)
        return answer.status, answer.headers["Content-Type"], await answer.read()


def keys_by_event(body: bytes) -> dict[str, list[str]]:
    return {event["event"]: list(event) for event in events(body)}


@pytest.mark.parametrize(
    ("mode", "capture", "path", "body"),
    [
        ("chat", "chat_streaming_short", "/v1/chat-messages", {"query": "短", "inputs": {}}),
        ("completion", "completion_streaming_short", "/v1/completion-messages",
         {"inputs": {"query": "短"}}),
    ],
)  # fmt: skip
async def test_events_have_the_members_of_a_real_server_in_its_order(
    demo, mode, capture, path, body
):
    served = await demo("dify", mode=mode)
    full = {**body, "response_mode": "streaming", "user": "u"}
    status, kind, raw = await ask(served.url, path, full)
    real_status, headers, real = read_capture(CAPTURES / f"{capture}.http")
    assert (status, kind) == (real_status, headers["Content-Type"])
    assert keys_by_event(raw) == keys_by_event(real)
    assert list(events(raw)[-1]["metadata"]["usage"]) == [
        key for key in events(real)[-1]["metadata"]["usage"] if not key.startswith("time_to")
    ]
    assert raw.endswith(b"\n\n")


async def test_a_workflow_starts_with_ping_and_ends_with_finished(demo):
    served = await demo("dify", mode="workflow")
    body = {"inputs": {"query": "短"}, "response_mode": "streaming", "user": "u"}
    _, _, raw = await ask(served.url, "/v1/workflows/run", body)
    _, _, real = read_capture(CAPTURES / "workflow_streaming_short.http")
    assert raw.startswith(b"event: ping\n\n")
    assert real.startswith(b"event: ping\n\n")
    mine, theirs = ([event["event"] for event in events(b)] for b in (raw, real))
    assert (
        (mine[0], mine[-1]) == (theirs[0], theirs[-1]) == ("workflow_started", "workflow_finished")
    )
    assert set(mine) <= set(theirs)
    assert keys_by_event(raw)["text_chunk"] == keys_by_event(real)["text_chunk"]


@pytest.mark.parametrize(
    ("capture", "mode", "path", "body"),
    [
        ("param_missing_user", "chat", "/v1/chat-messages", {"inputs": {}, "query": "x"}),
        ("param_empty_query_chat", "chat", "/v1/chat-messages",
         {"inputs": {}, "query": "", "user": "u"}),
        ("wrongmode_workflow_key_chat", "workflow", "/v1/chat-messages",
         {"inputs": {}, "query": "x", "user": "u"}),
        ("wrongmode_chatflow_key_workflow", "chat", "/v1/workflows/run", {"inputs": {}, "user": "u"}),
        ("wrongmode_workflow_key_completion", "workflow", "/v1/completion-messages",
         {"inputs": {}, "user": "u"}),
        ("agent-chat_blocking_not_supported", "agent-chat", "/v1/chat-messages",
         {"inputs": {}, "query": "x", "user": "u"}),
        ("param_workflow_required_missing_blocking", "workflow", "/v1/workflows/run",
         {"inputs": {}, "user": "u"}),
    ],
)  # fmt: skip
async def test_refusals_are_a_real_servers(demo, capture, mode, path, body):
    served = await demo("dify", mode=mode)
    status, _, raw = await ask(served.url, path, body)
    real_status, _, real = read_capture(CAPTURES / f"{capture}.http")
    assert (status, json.loads(raw)) == (real_status, json.loads(real))
