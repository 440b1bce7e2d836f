"""Cases of the wire contracts that no sample has: other orders, versions and endings."""

from dataclasses import replace

import orjson
import pytest
from decoding import feed, summary

from gateway.errors import ConversationNotFound, GatewayError
from gateway.platforms.base import base_url
from gateway.platforms.coze.adapter import Coze
from gateway.platforms.coze.decoder import CozeDecoder
from gateway.platforms.coze.options import CozeOptions
from gateway.platforms.dify.adapter import Dify
from gateway.platforms.dify.decoder import DifyDecoder
from gateway.platforms.dify.options import DifyOptions
from gateway.platforms.failures import explain_message
from gateway.platforms.fastgpt.adapter import FastGPT
from gateway.platforms.fastgpt.decoder import FastGPTDecoder
from gateway.platforms.fastgpt.options import FastGPTOptions
from gateway.platforms.openai_compatible import ChunkDecoder
from gateway.platforms.zhipu.adapter import zhipu
from gateway.platforms.zhipu.glms import GlmsDecoder
from gateway.platforms.zhipu.models import ModelDecoder
from gateway.platforms.zhipu.options import ZhipuOptions
from gateway.protocol.exchange import UpstreamReply
from gateway.protocol.messages import ChatRequest, Message


def data(*values, name: str = "") -> bytes:
    head = f"event: {name}\n".encode() if name else b""
    return b"".join(head + b"data: " + orjson.dumps(value) + b"\n\n" for value in values)


def dify(*events: tuple, mode: str = "chat", **kwargs) -> dict:
    ids = {"conversation_id": "c", "message_id": "m", "task_id": "t"} if mode == "chat" else {}
    raw = b"".join(data({"event": name, **ids, **members}) for name, members in events)
    return summary(feed(DifyDecoder(mode, **kwargs), raw, 5))


USAGE = {"usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}
DONE = ("message_end", {"metadata": USAGE})
FINISHED = ("workflow_finished", {"data": {"status": "succeeded", "outputs": {}}})

# Dify


def test_each_round_of_an_agent_may_think():
    got = dify(
        ("agent_thought", {"id": "1"}),
        ("agent_message", {"answer": "<think>一</think>先查。"}),
        ("agent_thought", {"id": "1", "tool": "a;b"}),
        ("agent_thought", {"id": "2"}),
        ("agent_message", {"answer": "<think>二</think>好了"}),
        DONE,
    )
    assert (got["reasoning"], got["text"]) == ("一二", "先查。好了")


def test_each_node_of_a_workflow_may_think():
    def chunk(node: str, text: str) -> tuple:
        return "text_chunk", {"data": {"text": text, "from_variable_selector": [node, "text"]}}

    got = dify(
        ("workflow_started", {}), chunk("a", "<think>x</think>A"), chunk("b", "<think>y</think>B"),
        FINISHED, mode="workflow",
    )  # fmt: skip
    assert (got["reasoning"], got["text"]) == ("xy", "AB")


def test_thinking_at_a_nodes_end_appears_once_before_the_answer():
    node = {"node_type": "llm", "outputs": {"reasoning_content": "想"}}
    finished = ("node_finished", {"data": node})
    start, said = ("workflow_started", {}), ("message", {"answer": "好"})
    assert dify(start, finished, said, DONE, FINISHED)["reasoning"] == "想"
    assert "reasoning" not in dify(start, said, finished, DONE, FINISHED)
    streamed = ("reasoning_chunk", {"data": {"reasoning": "想"}})
    assert dify(start, streamed, finished, said, DONE, FINISHED)["reasoning"] == "想"


def test_a_replacement_is_split_too_and_what_follows_is_answer():
    got = dify(
        ("message", {"answer": "<think>想"}),
        ("message_replace", {"answer": "<think>想</think>电话***"}),
        ("message", {"answer": "，谢谢"}),
        DONE,
    )
    assert (got["text"], got["finish"]) == ("电话***，谢谢", "content_filter")


def test_a_new_agents_closing_repeat_appears_only_if_needed():
    said = ("agent_message", {"answer": "<think>一</think>"})
    assert dify(said, ("message", {"answer": "答"}), DONE)["text"] == "答"
    said = ("agent_message", {"answer": "<think>一</think>答案"})
    assert dify(said, ("message", {"answer": "答案。"}), DONE)["text"] == "答案。"
    assert dify(said, ("message", {"answer": "别的"}), DONE)["text"] == "答案"


@pytest.mark.parametrize(
    "ending",
    [
        [FINISHED, DONE],
        [DONE, FINISHED],
        [FINISHED],
        [DONE, ("workflow_finished", {"data": {"status": "failed", "error": "no terminal event"}})],
    ],
    ids=["legacy", "new", "1.13.0", "annotation hit"],
)
def test_a_chatflow_ends_well_in_every_versions_order(ending):
    got = dify(("workflow_started", {}), ("message", {"answer": "好"}), *ending)
    assert (got["text"], got["finish"]) == ("好", "stop")


@pytest.mark.parametrize(
    "ending",
    [
        [("workflow_finished", {"data": {"status": "failed", "error": "x", "total_steps": 2}})],
        [("error", {"message": "x"})],
        [("error", {"code": "new_code", "status": 413, "message": "x"})],
        [],
    ],
)
def test_a_chatflow_that_fails_never_ends_with_stop(ending):
    got = dify(("workflow_started", {}), ("message", {"answer": "好"}), *ending)
    assert got["text"] == "好"
    assert "finish" not in got
    assert got["status"] in (413, 502)


def test_the_usage_is_the_nodes_sum_where_the_message_says_zero():
    node = {"node_type": "llm", "outputs": {"usage": {"prompt_tokens": 10, "completion_tokens": 5}}}
    got = dify(
        ("workflow_started", {}),
        ("node_finished", {"data": node}),
        ("message", {"answer": "好"}),
        ("message_end", {"metadata": {"usage": {"prompt_tokens": 0, "total_tokens": 0}}}),
        FINISHED,
    )
    assert got["usage"] == [10, 5, 15]


def test_a_plugins_error_is_reported_by_its_sentence():
    words = 'req_id: 1 PluginInvokeError: {"args":{},"message":"[models] Error: no such model"}'
    decoder = DifyDecoder()
    (failed,) = [d for d in decoder.feed(data({"event": "error", "message": words}))]
    assert failed.error.message.endswith(" Dify says: [models] Error: no such model.")


@pytest.mark.parametrize(
    ("status", "body", "want"),
    [
        (400, {"code": "invalid_param", "message": "Incorrect API key provided: x"}, 502),
        (400, {"code": "invalid_param", "message": "[openai] 429 too fast"}, 429),
        (400, {"code": "provider_quota_exceeded", "message": "x"}, 429),
        (400, {"code": "agent_not_published", "message": "x"}, 502),
        (404, {"code": "not_found", "message": "Conversation Not Exists. You have"}, 404),
        (413, {"code": "file_too_large", "message": "{message}"}, 413),
        (415, {"code": "x"}, 415),
        (500, {"code": "internal_server_error", "message": "x"}, 502),
    ],
)
def test_difys_refusals(status, body, want):
    platform = Dify("d", DifyOptions(platform="dify", mode="chat", api_key="k"), "http://d")
    chat = ChatRequest("d", (Message("user", "x"),), "u")
    with pytest.raises(GatewayError) as caught:
        platform.recover(UpstreamReply(status, {}, orjson.dumps(body)), chat)
    assert caught.value.status == want


def test_a_lost_conversation_restarts_from_its_turns():
    platform = Dify("d", DifyOptions(platform="dify", mode="chat", api_key="k"), "http://d")
    turns = (Message("user", "一"), Message("assistant", "甲"), Message("user", "二"))
    chat = ChatRequest("d", turns, "u", conversation_id="gone")
    gone = UpstreamReply(404, {}, b'{"code":"not_found","message":"Conversation Not Exists."}')
    with pytest.raises(ConversationNotFound):
        platform.recover(gone, chat)
    assert platform.restarts  # so the attempt asks again without the id
    body = orjson.loads(platform.prepare(replace(chat, conversation_id=None)).body)
    assert "conversation_id" not in body
    assert body["query"] == "User: 一\n\nAssistant: 甲\n\nUser: 二"


def test_files_of_a_workflow_go_into_its_file_input():
    from gateway.platforms.base import Preliminary
    from gateway.protocol.messages import Media

    platform = Dify("d", DifyOptions(platform="dify", mode="workflow", api_key="k"), "http://d")
    chat = ChatRequest("d", (Message("user", "看", (Media("image", "https://x/a.png"),)),), "u")
    step = platform.prepare(chat)
    assert isinstance(step, Preliminary)
    form = {
        "user_input_form": [{"file-list": {"variable": "pics"}}, {"paragraph": {"variable": "q"}}]
    }
    request = step.learn(UpstreamReply(200, {}, orjson.dumps(form)))
    inputs = orjson.loads(request.body)["inputs"]
    assert inputs["q"] == "看"
    assert inputs["pics"][0]["url"] == "https://x/a.png"


# FastGPT


def fastgpt(raw: bytes) -> dict:
    return summary(feed(FastGPTDecoder("c", detail=False), raw, 7))


def test_a_leaked_duration_is_no_text():
    chunk = {"choices": [{"delta": {"content": "好"}, "finish_reason": None}]}
    stop = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
    got = fastgpt(data(chunk, {"durationSeconds": 1.2}, stop) + b"data: [DONE]\n\n")
    assert (got["text"], got["finish"]) == ("好", "stop")


@pytest.mark.parametrize(
    ("message", "status"),
    [
        ("429 status code (no body)", 429),
        ("user quota is not enough", 429),
        ("余额不足", 429),
        ("x", 502),
    ],
)
def test_a_failed_nodes_message_decides_the_status(message, status):
    node = [{"moduleName": "AI", "errorText": message}]
    assert fastgpt(data(node, name="flowResponses") + b"data: [DONE]\n\n")["status"] == status


def test_a_handled_error_of_a_node_is_none():
    answer = {"choices": [{"delta": {"content": "备用"}, "finish_reason": "stop"}]}
    node = [{"errorText": "x", "errorCaptured": True}]
    got = fastgpt(
        data(answer, name="answer") + data(node, name="flowResponses") + b"data: [DONE]\n\n"
    )
    assert (got["text"], got["finish"]) == ("备用", "stop")


@pytest.mark.parametrize(
    ("status", "body", "want"),
    [
        (500, {"code": 514}, 502), (403, {"code": 403}, 502), (500, {"code": 506004}, 502),
        (500, {"code": 502002}, 502), (500, {"code": 500004}, 429), (500, {"code": 504001}, 409),
        (500, {"code": 504000}, 404), (400, {"code": 510000}, 400), (400, {"code": 400}, 400),
        (429, {"code": 429, "message": "Please try again in 9 seconds."}, 429),
        (429, {"message": "slow"}, 429), (401, {"message": "x"}, 502), (413, {"message": "x"}, 413),
        (504, {"message": "x"}, 504), (500, {"code": 500, "message": "appId is empty"}, 502),
    ],
)  # fmt: skip
def test_fastgpts_refusals(status, body, want):
    platform = FastGPT("f", FastGPTOptions(platform="fastgpt", api_key="k"), "http://f")
    chat = ChatRequest("f", (Message("user", "x"),), "u")
    with pytest.raises(GatewayError) as caught:
        platform.recover(UpstreamReply(status, {}, orjson.dumps(body)), chat)
    assert caught.value.status == want
    if "9 seconds" in str(body):
        assert caught.value.retry_after_s == 9


# Coze


COZE = [
    (4000, 400), (4001, 404), (4006, 502), (4200, 502), (4008, 429), (4009, 503), (4010, 400),
    (4011, 429), (4014, 400), (4015, 502), (4016, 409), (4020, 429), (4028, 429), (4100, 502),
    (4101, 502), (4315, 409), (5000, 502), (700012006, 502), (720702204, 502), (999999, 502),
]  # fmt: skip


@pytest.mark.parametrize(("code", "status"), COZE)
def test_cozes_codes_mean_the_same_in_a_reply_and_in_a_stream(code, status):
    platform = Coze("c", CozeOptions(platform="coze", bot_id="1", api_key="k"), "http://c")
    chat = ChatRequest("c", (Message("user", "x"),), "u")
    for value in (code, str(code)):
        body = orjson.dumps({"code": value, "msg": "words"})
        with pytest.raises(GatewayError) as caught:
            platform.recover(UpstreamReply(200, {}, body), chat)
        assert caught.value.status == status
        assert "words" in caught.value.message
        got = summary(feed(CozeDecoder(), b"event:error\ndata:" + body + b"\n\n"))
        assert got["status"] == status


def test_a_coze_workflow_gets_at_most_fifty_messages():
    agent = CozeOptions(platform="coze", mode="workflow", workflow_id="1", api_key="k")
    turns = [Message("system", "s")]
    turns += [Message("user" if i % 2 == 0 else "assistant", str(i)) for i in range(201)]
    chat = ChatRequest("c", tuple(turns), "u")
    for platform, most in ((Coze("c", agent, "http://c"), 50),
                           (Coze("c", CozeOptions(platform="coze", bot_id="1", api_key="k"), "http://c"), 100)):  # fmt: skip
        sent = orjson.loads(platform.prepare(chat).body)["additional_messages"]
        assert len(sent) <= most
        assert sent[-1]["content"] == "200"
        assert sent[0]["content"].startswith("s")


# Zhipu


GLMS = [
    {"status": "init", "message": {"content": {"type": "text", "text": "请看【注意"}}},
    {"status": "finish", "message": {"content": None}},
]


def test_a_mark_that_never_closes_is_text():
    assert summary(feed(GlmsDecoder(), data(*GLMS)))["text"] == "请看【注意"


def test_marks_of_sources_are_dropped_however_they_are_cut():
    texts = ["见", "见【", "见【3†", "见【3†来源】", "见【3†来源】。"]
    frames = [
        {"status": "init", "message": {"content": {"type": "text", "text": t}}} for t in texts
    ]
    frames.append({"status": "finish", "message": {"content": {"type": "text", "text": texts[-1]}}})
    assert summary(feed(GlmsDecoder(), data(*frames)))["text"] == "见。"


def test_an_error_envelope_inside_the_assistants_stream_is_seen():
    frame = {"status": 10040, "message": "assistant not found", "result": {}}
    assert summary(feed(GlmsDecoder(), data(frame)))["error"] == "UpstreamMisconfigured"


def test_a_moderated_answer_without_a_word_is_refused():
    chunk = {"choices": [{"delta": {"content": ""}, "finish_reason": "sensitive"}]}
    assert summary(feed(ModelDecoder(), data(chunk)))["status"] == 400
    said = {"choices": [{"delta": {"content": "抱歉"}}]}
    assert summary(feed(ModelDecoder(), data(said, chunk)))["finish"] == "content_filter"


def test_tool_calls_without_a_usable_index_are_distinguished():
    def call(id_: str, name: str) -> dict:
        piece = {"index": -1, "id": id_, "function": {"name": name, "arguments": "{}"}}
        return {"choices": [{"delta": {"tool_calls": [piece]}}]}

    end = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
    for ids in (("a", "b"), ("", "")):
        got = summary(feed(ChunkDecoder(), data(call(ids[0], "f"), call(ids[1], "g"), end)))
        assert [(c[1], c[2]) for c in got["tool_calls"]] == [("f", "{}"), ("g", "{}")]
        assert got["finish"] == "tool_calls"


ZHIPU_URLS = [
    ("models", "https://open.bigmodel.cn", "https://open.bigmodel.cn/api/paas/v4"),
    ("models", "https://open.bigmodel.cn/api/paas/v4/", "https://open.bigmodel.cn/api/paas/v4"),
    ("models", "https://open.bigmodel.cn/api/coding/paas/v4", "https://open.bigmodel.cn/api/coding/paas/v4"),
    ("models", "https://api.z.ai/api/paas/v4/chat/completions", "https://api.z.ai/api/paas/v4"),
    ("glms", "https://chatglm.cn", "https://chatglm.cn/chatglm/assistant-api/v1"),
    ("application", "https://open.bigmodel.cn/api", "https://open.bigmodel.cn/api/llm-application/open"),
]  # fmt: skip


@pytest.mark.parametrize(("api", "given", "want"), ZHIPU_URLS)
def test_zhipus_addresses(api, given, want):
    agent = ZhipuOptions(platform="zhipu", api=api, assistant_id="a", app_id="b", api_key="i.s")
    url = zhipu("z", agent, given).probe().url
    assert url.startswith(want + "/")


def test_what_openais_clients_send_is_put_right_for_zhipu():
    agent = ZhipuOptions(platform="zhipu", api_key="i.s")
    schema = {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}
    raw = {
        "messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x"}}]}
        ],
        "response_format": schema,
        "reasoning_effort": "none",
    }
    chat = ChatRequest("z", (Message("user", "x"),), "user-123", raw=raw)
    body = orjson.loads(zhipu("z", agent, "http://z").prepare(chat).body)
    assert body["thinking"] == {"type": "disabled"}
    assert body["response_format"] == {"type": "json_object"}
    assert '"type":"object"' in body["messages"][0]["content"]
    assert body["messages"][1]["content"][-1]["type"] == "text"


# Shared


def test_a_base_url_keeps_at_least_its_host():
    assert base_url("http://v1/v1/", "/v1") == "http://v1"
    assert base_url("https://h/api/v1", "/v1", "/api", then="/api") == "https://h/api"


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("API request failed with status code 429: x", 429), ("HTTP 429", 429), ("Error 429: x", 429),
        ("took 4290 ms", 502), ("v1.429.0", 502), ("insufficient_quota", 429),
        ("maximum context length is 8192", 400), ("Incorrect API key provided", 502), ("", 502),
    ],
)  # fmt: skip
def test_words_of_a_model_server_decide_the_status(words, status):
    assert explain_message("It", words).status == status


# Options that Zhipu's models refuse.


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({"max_tokens": 0}, {}), ({"max_tokens": -1}, {}), ({"max_tokens": True}, {}),
        ({"max_tokens": "9"}, {"max_tokens": 9}), ({"max_tokens": 500_000}, {"max_tokens": 131_072}),
        ({"max_completion_tokens": 9}, {"max_tokens": 9}),
        ({"max_completion_tokens": 9, "max_tokens": 8}, {"max_tokens": 8}),
        ({"max_completion_tokens": 9, "max_tokens": -1}, {"max_tokens": 9}),
        ({"tools": []}, {}), ({"tools": {}}, {}), ({"tools": [{}]}, {"tools": [{}]}),
        ({"tools": [{}], "tool_choice": "auto"}, {"tools": [{}], "tool_choice": "auto"}),
        ({"tools": [{}], "tool_choice": "none"}, {}), ({"tool_choice": "auto"}, {}),
        ({"thinking": True}, {"thinking": {"type": "enabled"}}),
        ({"thinking": False}, {"thinking": {"type": "disabled"}}),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, {"thinking": {"type": "enabled"}}),
        ({"thinking": {"type": "adaptive"}}, {"thinking": {"type": "enabled"}}),
        ({"thinking": "disabled"}, {"thinking": {"type": "disabled"}}), ({"max_tokens": 9.0}, {"max_tokens": 9}),
        ({"thinking": "high"}, {}), ({"enable_thinking": False}, {"thinking": {"type": "disabled"}}),
        ({"reasoning_effort": "minimal"}, {"thinking": {"type": "disabled"}}),
        ({"reasoning_effort": ""}, {}), ({"temperature": 2}, {"temperature": 1.0}),
        ({"temperature": True}, {}), ({"temperature": -1}, {"temperature": 0.0}),
        ({"top_p": 1}, {"top_p": 0.99}), ({"top_p": 0}, {"top_p": 0.01}),
        ({"stop": ""}, {}), ({"stop": ["", "a", "b"]}, {"stop": ["a"]}), ({"stop": [7]}, {}),
        ({"do_sample": "yes", "tool_stream": 1}, {}), ({"do_sample": False}, {"do_sample": False}),
    ],
)  # fmt: skip
def test_zhipu_gets_options_only_in_values_that_it_takes(asked, sent):
    models = zhipu(
        "z", ZhipuOptions(platform="zhipu", base_url="http://x", api_key="a.b"), "http://x"
    )
    turn = {"role": "user", "content": "hi"}
    chat = ChatRequest("z", (Message("user", "hi"),), "user-1", raw={"messages": [turn], **asked})
    body = orjson.loads(models.prepare(chat).body)
    for name in ("model", "messages", "stream", "user_id"):
        del body[name]
    assert body == sent


def test_a_plain_text_error_event_keeps_its_text():
    (failed,) = DifyDecoder().feed(b"data: the worker has been killed\n\n")
    assert "It says: the worker has been killed" in failed.error.message
