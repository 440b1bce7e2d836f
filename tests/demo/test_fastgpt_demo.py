"""The FastGPT simulator sends what FastGPT 4.12.2 sends, event by event."""

import json

import aiohttp
import pytest
from test_fastgpt_captures import capture, events


async def stream_of(served, question: str, key: str = "fastgpt-k", detail: bool = True):
    body = {
        "stream": True,
        "detail": detail,
        "messages": [{"role": "user", "content": question}] if question else [],
    }
    headers = {"Authorization": f"Bearer {key}"}
    url = f"{served.url}/api/v1/chat/completions"
    async with (
        aiohttp.ClientSession() as client,
        client.post(url, json=body, headers=headers) as answer,
    ):
        return answer.status, answer.headers.get("Content-Type"), await answer.read()


def shape(body: bytes) -> list[tuple[str, tuple[str, ...]]]:
    """The names of the events, and their members; pieces of text count as one."""
    found = []
    for name, data in events(body):
        one = data[-1] if isinstance(data, list) else data
        members = tuple(one) if isinstance(one, dict) else (one,)
        if "choices" in members:
            choice = data["choices"][0]
            members = (*members, *choice, *choice["delta"], choice["finish_reason"])
        if not found or found[-1] != (name, members):
            found.append((name, members))
    return found


@pytest.mark.parametrize(
    ("name", "question"),
    [
        ("model_unknown_stream_detail", "hi"),
        ("think_stream_detail", "#think"),
        ("model_500_stream_detail", "#fail"),
        ("midstream_cut_stream_detail", "#break"),
    ],
)
async def test_a_stream_has_the_events_of_a_real_one(demo, name, question):
    real = capture("4.12.2", name)
    status, kind, body = await stream_of(await demo("fastgpt"), question)
    assert (status, kind) == (real.status, real.headers["content-type"])
    assert shape(body) == shape(real.body)


@pytest.mark.parametrize(
    ("name", "key", "question"),
    [("auth_bad_key_stream", "fastgpt-x", "hi"), ("err_messages_empty_stream", "k", "")],
)
async def test_a_refused_stream_is_an_event_without_a_content_type(demo, name, key, question):
    real = capture("4.12.2", name)
    status, kind, body = await stream_of(await demo("fastgpt", key="k"), question, key)
    assert (status, kind, body) == (real.status, real.headers.get("content-type"), real.body)


async def test_an_unstreamed_failure_is_an_empty_text(demo):
    served = await demo("fastgpt")
    url = f"{served.url}/api/v1/chat/completions"
    asked = {"detail": True, "messages": [{"role": "user", "content": "#fail"}]}
    async with aiohttp.ClientSession() as client, client.post(url, json=asked) as answer:
        body = json.loads(await answer.read())
    real = capture("4.12.2", "model_500_whole_detail").json
    assert body.keys() == real.keys()
    assert body["choices"] == real["choices"]
    assert body["responseData"][-1].keys() == real["responseData"][-1].keys()
