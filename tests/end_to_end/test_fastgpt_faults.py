"""Callers' answers when a real FastGPT server's run fails, hangs or stops short."""

import asyncio
from typing import Any

import pytest
from conftest import AGENTS, Script, stopped, streamed
from test_fastgpt_captures import Capture, capture

from gateway.config.load import load
from gateway.server.check import check_live


def replayed(of: Capture) -> Script:
    """The captured answer, with each line of an event in its own write, as in FastGPT."""
    lines = of.body.replace(b"\ndata:", b"\n\0data:").replace(b"\n\n", b"\n\n\0").split(b"\0")
    headers = {"Content-Type": of.headers["content-type"]} if "content-type" in of.headers else {}
    return Script([line for line in lines if line], status=f"{of.status} X", headers=headers)


@pytest.fixture
async def answers(gateway, scripted):
    """`await answers(version, name, …)`: a gateway whose agent `bot` gives these in turn."""

    async def start(version: str, *names: str, **settings: Any):
        upstream = await scripted(*(replayed(capture(version, name)) for name in names))
        return await gateway(
            agents={
                "bot": {**AGENTS["fastgpt"], "base_url": upstream.url, "retries": 0, **settings}
            }
        )

    return start


@pytest.mark.parametrize("version", ["4.8.11", "4.8.20", "4.9.7", "4.12.2"])
@pytest.mark.parametrize("name", ["midstream_cut_stream_detail", "chat_baddata_stream_detail"])
async def test_a_model_that_is_cut_ends_in_an_error(answers, version, name):
    gw = await answers(version, name)
    got = streamed(await (await gw.complete("bot", stream=True)).read())
    assert got["text"].startswith("你好，年假一共")
    assert got["error"]["code"] == "upstream_failed"
    assert got["finish"] == []
    whole = await gw.complete("bot")
    assert whole.status == 502
    assert whole.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("version", ["4.8.11", "4.8.20", "4.9.7", "4.12.2"])
async def test_a_failed_http_node_is_no_empty_answer(answers, version):
    gw = await answers(version, "http_fail_stream_detail")
    answer = await gw.complete("bot", stream=True)
    error = (await answer.json())["error"]
    assert (answer.status, error["code"]) == (502, "upstream_failed")
    assert "Request failed with status code 500" in error["message"]


async def test_heartbeats_do_not_hold_a_model_that_hangs(gateway, scripted):
    body = capture("4.12.2", "model_hang_mid_stream_detail").body
    name, data = body[body.rindex(b"event: answer") :].split(b"\n", 1)
    beats = [name + b"\n", data, 0.05] * 100
    upstream = await scripted(Script([body, *beats], end="hang"), stopped())
    bot = {**AGENTS["fastgpt"], "base_url": upstream.url, "timeouts": {"idle": "300ms"}}
    gw = await gateway(agents={"bot": bot})
    async with asyncio.timeout(4):
        got = streamed(await (await gw.complete("bot", stream=True)).read())
    assert got["text"] == "你好，年假一共"
    assert got["error"]["code"] == "upstream_timeout"


async def test_steps_before_the_first_word_are_waited_for(gateway, scripted):
    step = b'event: flowNodeStatus\ndata: {"status":"running","name":"x"}\n\n'
    rest = capture("4.12.2", "model_unknown_stream_detail").body
    upstream = await scripted(Script([*([step, 0.1] * 8), rest]))
    bot = {**AGENTS["fastgpt"], "base_url": upstream.url, "timeouts": {"first_delta": "500ms"}}
    gw = await gateway(agents={"bot": bot})
    answer = await (await gw.complete("bot")).json()
    assert answer["choices"][0]["message"]["content"] == "好的👌"


async def test_a_model_at_its_limit_ends_with_length(answers):
    gw = await answers("4.12.2", "chat_finish_length_stream_detail")
    got = streamed(await (await gw.complete("bot", stream=True)).read())
    assert (got["text"], got["finish"]) == ("只说一半", ["length"])
    whole = await (await gw.complete("bot")).json()
    assert whole["choices"][0]["finish_reason"] == "length"


async def test_a_wrong_choice_is_reported_and_no_success(answers):
    gw = await answers("4.12.2", "select_continue_wrong_value")
    answer = await gw.chat("bot", "不在里面", chat_id="c-1")
    assert answer.status == 400
    assert "reply with one of them, or its number" in (await answer.json())["msg"]


async def test_an_internal_id_is_no_output(answers):
    gw = await answers("4.8.11", "variables_stream_detail")
    answer = await (await gw.chat("bot", "hi", detail=True)).json()
    assert answer["gateway"]["outputs"] == {"name": "张三 🐼", "count": 42}


async def test_a_whole_answer_is_read_with_its_nodes(answers):
    gw = await answers("4.12.2", "think_whole_detail", "model_429_whole_detail")
    answer = await (await gw.chat("bot", "思考")).json()
    message = answer["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == (
        "先想一想🤔：一加一等于二。", "答案是 2 ✅",
    )  # fmt: skip
    assert answer["usage"]["total_tokens"] == 348
    limited = await gw.chat("bot", "错误429")
    assert limited.status == 429


@pytest.mark.parametrize(
    ("names", "well", "words"),
    [
        (("init", "err_body_empty"), "ok", "the key is good"),
        (("init", "auth_bad_key_whole"), "FAILED", "refused the gateway's API key"),
    ],
)
async def test_check_live_knows_a_good_key_of_an_old_server(scripted, tmp_path, names, well, words):
    upstream = await scripted(*(replayed(capture("4.8.11", name)) for name in names))
    path = tmp_path / "config.yaml"
    bot = f"{{platform: fastgpt, base_url: '{upstream.url}', api_key: fastgpt-x, app_id: '6b'}}"
    path.write_text(f"database: none\nagents: {{bot: {bot}}}\n", "utf-8")
    ((name, _, _, state, said),) = await check_live(load(path))
    assert (name, state) == ("bot", well)
    assert words in said
