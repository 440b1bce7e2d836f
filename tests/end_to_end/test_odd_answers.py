"""Odd answers that upstreams really send, and that are answers. Both surfaces, streamed
and whole."""

import json
from typing import Any

import orjson
import pytest
from conftest import AGENTS, Script

DONE = b"data: [DONE]\n\n"
JSON = {"Content-Type": "application/json"}
IDS = {"conversation_id": "c-1", "message_id": "m-1", "task_id": "t-1", "created_at": 1}
PICTURE = "data:image/png;base64,QUJD"


def event(value: Any, name: str = "") -> bytes:
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def chunk(delta: Any, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "1", "object": "chat.completion.chunk", "choices": [choice], **more}


def dify(kind: str, **members: Any) -> bytes:
    return event({"event": kind, **IDS, **members})


def node(**data: Any) -> bytes:
    return dify("node_finished", data={"title": "T", "status": "succeeded", **data})


def finished(outputs: Any) -> bytes:
    return dify("workflow_finished", data={"status": "succeeded", "outputs": outputs})


def coze(kind: str, **members: Any) -> bytes:
    ids = {"id": "m", "conversation_id": "c-1", "chat_id": "ch"}
    return event({**ids, **members}, f"conversation.{kind}")


def coze_message(text: str, kind: str = "answer") -> bytes:
    return coze("message.completed", type=kind, content=text, content_type="text")


def glms(text: str, status: str = "init") -> bytes:
    """Each frame has all of the text so far."""
    message = {"role": "assistant", "content": {"type": "text", "text": text}}
    return event({"conversation_id": "c-1", "message": message, "status": status}, "message")


OPENAI_END = event(chunk({}, "stop")) + DONE
APP_END = event({"choices": [{"index": 0, "finish_reason": "stop", "delta": {}}]}) + DONE
COZE_END = coze("chat.completed", status="completed") + b'event: done\ndata: "[DONE]"\n\n'

# For each kind of agent: its settings, an event with TEXT, and the end of an answer.
SAYS = event(chunk({"role": "assistant", "content": "TEXT"}))
KINDS: dict[str, tuple[dict[str, Any], bytes, bytes]] = {
    "openai": ({}, SAYS, OPENAI_END),
    "zhipu": ({}, SAYS, OPENAI_END),
    "fastgpt": ({}, SAYS, OPENAI_END),
    "dify": ({"mode": "chat"}, dify("message", answer="TEXT"), dify("message_end")),
    "dify workflow": (
        {"mode": "workflow", "input_variable": "q"},
        dify("text_chunk", data={"text": "TEXT"}),
        dify("workflow_finished", data={"status": "succeeded"}),
    ),
    "coze": (
        {},
        coze("message.delta", type="answer", content="TEXT", content_type="text"),
        COZE_END,
    ),
    "coze workflow": (
        {"mode": "workflow", "workflow_id": "7"},
        event({"content": "TEXT", "node_title": "output"}, "Message"),
        event({}, "Done"),
    ),
    "zhipu application": (
        {"api": "application", "app_id": "7"},
        event({"choices": [{"index": 0, "delta": {"content": {"type": "text", "msg": "TEXT"}}}]}),
        APP_END,
    ),
    "zhipu glms": ({"api": "glms", "assistant_id": "7"}, glms("TEXT"), glms("", "finish")),
}


FIRST: dict[str, Any] = {
    "zhipu application": lambda: [Script([b'{"data":{"conversation_id":"c"}}'], headers=JSON)],
    "zhipu glms": lambda: [Script([b'{"result":{"access_token":"t"}}'], headers=JSON)],
}


class Told:
    """One caller's answer; all of it must be strict JSON in UTF-8."""

    def __init__(self, status: int, raw: bytes) -> None:
        self.status, self.raw = status, raw
        self.text = self.reasoning = ""
        self.finish: Any = None
        self.error: Any = None
        self.gateway: dict[str, Any] = {}
        lines = [raw] if raw.startswith(b"{") else raw.split(b"\n")
        for line in lines:
            line = line.removeprefix(b"data: ")
            if line.startswith(b"{"):
                self._add(orjson.loads(line))

    def _add(self, body: dict[str, Any]) -> None:
        self.error = self.error or body.get("error") or (body if "msg" in body else None)
        self.gateway |= body.get("gateway") or {}
        for choice in body.get("choices") or []:
            said = choice.get("message") or choice.get("delta") or {}
            content = said.get("content")
            self.text += content if isinstance(content, str) else ""
            self.reasoning += said.get("reasoning_content") or ""
            self.finish = choice["finish_reason"] or self.finish


@pytest.fixture
def ask(gateway, scripted):
    """`await ask(kind, *pieces)`: the callers' answers: {(surface, is streamed): outcome}."""

    async def asked(kind: str, *pieces: bytes, headers: Any = None, **settings: Any):
        script = Script(list(pieces), **({"headers": headers} if headers else {}))
        upstream = await scripted(*FIRST.get(kind, list)(), script)
        if kind == "zhipu application":  # it is asked for a conversation each time
            upstream.scripts = [*FIRST[kind](), script] * 4
        name = kind.partition(" ")[0]
        own = {**KINDS[kind][0], **settings}
        bot = {**AGENTS[name], "base_url": upstream.url, "retries": 0, **own}
        gw = await gateway(agents={"bot": bot})
        out = {}
        for stream in (True, False):
            for surface, question in (("/v1", gw.complete), ("/api/v1", gw.chat)):
                async with question("bot", stream=stream) as answer:
                    out[surface, stream] = Told(answer.status, await answer.read())
        return out

    return asked


@pytest.fixture(params=[kind for kind in KINDS if kind != "zhipu glms"])
def kind(request):
    return request.param


def saying(kind: str, text: bytes) -> bytes:
    """An event with `text`, which is the inside of a JSON string."""
    return KINDS[kind][1].replace(b"TEXT", text)


def is_whole(told: Told, text: str) -> bool:
    return (told.status, told.text, told.error, told.finish) == (200, text, None, "stop")


# JSON


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ((b"ok \\ud83d", b"\\ude00!"), "ok 😀!"),
        ((b"\\uD83D", b"\\uDE00"), "😀"),
        ((b"ok \\ud83d", b"no", b"\\ude00"), "ok \ufffdno\ufffd"),
        ((b"ok", b"\\ud83d"), "ok\ufffd"),
        ((b"a\\ud83db", b"\\ud83d\\ude00"), "a\ufffdb😀"),
        ((b"C:\\\\ud83d", b"x"), "C:\\ud83dx"),
    ],
)
async def test_halves_of_a_character_are_joined_or_replaced(kind, pieces, text, ask):
    events = [saying(kind, piece) for piece in pieces]
    for told in (await ask(kind, *events, KINDS[kind][2])).values():
        assert is_whole(told, text)


async def test_halves_at_the_end_of_a_text_that_comes_again_and_again(ask):
    frames = [glms("TEXT", status) for status in ("init", "init", "finish")]
    texts = [b"ok \\ud83d", b"ok \\ud83d\\ude00", b"ok \\ud83d\\ude00!"]
    pieces = [f.replace(b"TEXT", text) for f, text in zip(frames, texts, strict=True)]
    for told in (await ask("zhipu glms", *pieces)).values():
        assert is_whole(told, "ok 😀!")


@pytest.mark.parametrize("name", ["text", "result"])
async def test_half_a_character_at_the_end_of_an_output_is_replaced(name, ask):
    for kind, ends in (("dify workflow", []), ("dify", [dify("message_end")])):
        output = finished({name: "ok HALF"}).replace(b"HALF", b"\\ud83d")
        for told in (await ask(kind, STARTED, *ends, output)).values():
            assert is_whole(told, "ok \ufffd")


async def test_halves_in_what_is_not_the_answer_leave_it_alone(ask):
    cut = node(node_type="code", outputs={"text": "HALF"}).replace(b"HALF", b"\\ud83d")
    end = dify("message_end", metadata={"retriever_resources": [{"content": "HALF"}]})
    pieces = [cut, dify("message", answer="hi"), end.replace(b"HALF", b"\\ud83d")]
    for told in (await ask("dify", *pieces)).values():
        assert is_whole(told, "hi")


@pytest.mark.parametrize("constant", [b"NaN", b"Infinity", b"-Infinity", b"1e400"])
async def test_constants_that_are_no_json_are_null(kind, constant, ask):
    odd = saying(kind, b'one \\"NaN, Infinity').replace(b"data: {", b'data: {"x":[%b],' % constant)
    for told in (await ask(kind, odd, KINDS[kind][2])).values():
        assert is_whole(told, 'one "NaN, Infinity')


@pytest.mark.parametrize(
    ("text", "read"), [(b"ok \xe4\xbd", "ok \ufffd"), (b"\xff\xfe", "\ufffd\ufffd")]
)
async def test_bytes_that_are_no_text_are_replaced(kind, text, read, ask):
    for told in (await ask(kind, saying(kind, text), KINDS[kind][2])).values():
        assert is_whole(told, read)


async def test_a_byte_order_mark_is_skipped(kind, ask):
    for told in (await ask(kind, b"\xef\xbb\xbf" + saying(kind, b"hi"), KINDS[kind][2])).values():
        assert is_whole(told, "hi")


# Long events

LONG = "x" * 3_000_000
UNNEEDED = {
    "dify": [node(node_type="http-request", outputs={"body": LONG}),
             node(node_type="code", outputs={"embedding": [0.5] * 400_000}),
             node(node_type="llm", outputs={"text": LONG, "usage": {"prompt_tokens": 3}}),
             dify("tts_message", audio=LONG)],
    "coze": [coze_message(LONG, "tool_response"), coze_message(LONG, "verbose"),
             coze("audio.delta", content=LONG)],
    "openai": [event(chunk({"content": ""}, x=LONG))],
}  # fmt: skip


async def test_long_node_results_are_read_for_what_is_needed(ask):
    quotes = [{"id": str(i), "sourceName": "s", "q": "q" * 500, "a": ""} for i in range(8000)]
    nodes = [
        {"id": "1", "moduleType": "datasetSearchNode", "quoteList": quotes},
        {"id": "2", "moduleType": "chatNode", "inputTokens": 5, "outputTokens": 6},
    ]
    results = event(nodes, "flowResponses")
    assert len(results) > 4_000_000
    for told in (await ask("fastgpt", saying("fastgpt", b"hi"), OPENAI_END, results)).values():
        assert is_whole(told, "hi")
        assert told.gateway["usage"] == "exact"


@pytest.mark.parametrize("kind", UNNEEDED, indirect=True)
async def test_a_long_event_that_is_not_needed_is_passed_over(kind, ask):
    pieces = [saying(kind, b"you"), *UNNEEDED[kind], saying(kind, b"rs"), KINDS[kind][2]]
    for told in (await ask(kind, *pieces)).values():
        assert is_whole(told, "yours")


async def test_a_long_text_in_one_event_is_an_answer(kind, ask):
    for told in (await ask(kind, saying(kind, LONG.encode()), KINDS[kind][2])).values():
        assert is_whole(told, LONG)


async def test_a_long_output_next_to_the_answer_is_left_out(ask):
    pieces = [dify("text_chunk", data={"text": "hi"}), finished({"text": "hi", "pages": LONG})]
    for told in (await ask("dify workflow", *pieces)).values():
        assert is_whole(told, "hi")
        assert "outputs" not in told.gateway


async def test_a_picture_of_megabytes_arrives(ask):
    picture = "data:image/png;base64," + "QUJD" * 750_000
    said = chunk({"content": "here", "images": [{"image_url": {"url": picture}}]})
    for told in (await ask("openai", event(said), OPENAI_END)).values():
        assert (told.status, told.error, told.finish, told.text[:4]) == (200, None, "stop", "here")
        assert picture.encode() in told.raw


# Other shapes

MESSAGE = {"role": "assistant", "content": "hello"}
WHOLE = {"id": "1", "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop"}]}
RUN = {"task_id": "t", "workflow_run_id": "r"}
BODIES: list[tuple[str, Any]] = [
    ("openai", WHOLE),
    ("zhipu", WHOLE),
    ("fastgpt", WHOLE),
    ("dify", {"event": "message", **IDS, "mode": "chat", "answer": "hello", "metadata": {}}),
    ("dify", {**IDS, "answer": "hello"}),
    ("dify workflow", {**RUN, "data": {"status": "succeeded", "outputs": {"text": "hello"}}}),
    ("dify", {"event": "workflow_paused", **IDS, "data": {"reasons": [{"form_content": "hello"}]}}),
    ("coze", {"code": 0, "data": [{"type": "answer", "content": "hello"}, {"type": "verbose"}]}),
    ("coze", {"code": 0, "messages": [{"type": "answer", "content": "hello"}]}),
    ("coze workflow", {"code": 0, "data": '{"output":"hello"}'}),
    ("coze workflow", {"code": 0, "data": "hello"}),
    ("zhipu application", {"choices": [{"finish_reason": "stop", "messages": {"content": {"type": "text", "msg": "hello"}}}]}),
    ("zhipu application", {"choices": [{"finish_reason": "stop", "messages": [{"content": {"type": "text", "text": "hello"}}]}]}),
    ("zhipu application", {"code": 200, "data": {"content": "hello"}}),
    ("zhipu glms", {"status": 0, "result": {"status": "finish", "output": [{"content": [{"type": "text", "text": "hello"}]}]}}),
    ("fastgpt", {"choices": [{"message": {"content": [{"type": "text", "text": {"content": "hello"}}]}, "finish_reason": "stop"}], "responseData": []}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "body"), BODIES)
@pytest.mark.parametrize("label", ["application/json", "text/event-stream", "text/plain"])
async def test_json_where_a_stream_was_asked_for_is_the_answer(kind, body, label, ask):
    raw = json.dumps(body).encode()
    for told in (await ask(kind, raw, headers={"Content-Type": label})).values():
        assert is_whole(told, "hello")


async def test_line_ends_before_the_json_are_a_server_at_work(kind, ask):
    body = next(body for name, body in BODIES if name == kind)
    pieces = [b"\n", b"\n\n", json.dumps(body).encode()]
    for told in (await ask(kind, *pieces)).values():
        assert is_whole(told, "hello")


async def test_an_error_as_json_is_still_an_error(kind, ask):
    body = b'{"code":40001,"message":"no","msg":"no"}'
    for told in (await ask(kind, body, headers=JSON)).values():
        assert told.status >= 400


async def test_a_tool_call_as_json_is_one_in_a_stream():
    from gateway.protocol.completions import as_events
    from gateway.protocol.exchange import UpstreamReply

    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    body = orjson.dumps({"choices": [{"message": message, "finish_reason": "tool_calls"}]})
    sent = as_events(UpstreamReply(200, {}, body))
    assert b'"delta":{"role":"assistant","content":null,"tool_calls":[{"index":0,"id":"a"' in sent
    assert sent.endswith(DONE)


@pytest.mark.parametrize("kind", ["openai", "zhipu", "dify"], indirect=True)
async def test_json_in_lines_is_a_stream(kind, ask):
    events = saying(kind, b"hi") + KINDS[kind][2].removesuffix(DONE)
    for told in (await ask(kind, events.replace(b"data: ", b"").replace(b"\n\n", b"\n"))).values():
        assert is_whole(told, "hi")


async def test_a_whole_answer_in_one_event_is_a_chunk(ask):
    message = {"role": "assistant", "content": "hi"}
    body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    told = await ask("openai", event(body), DONE)
    assert all(is_whole(one, "hi") for one in told.values())
    assert b'"delta":{' in told["/v1", True].raw


async def test_an_error_next_to_choices_is_an_error(ask):
    message = {"role": "assistant", "content": "Ha"}
    body = {"choices": [{"index": 0, "message": message}], "error": {"message": "NO GPU"}}
    for told in (await ask("openai", json.dumps(body).encode(), headers=JSON)).values():
        assert told.status == 502


@pytest.mark.parametrize("first", [b"", b"retry: 3000\n\n", b": hi\n\n", b"\n\n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("size", [1, 2, 4])
async def test_the_size_of_the_first_piece_does_not_matter(first, size, kind, ask):
    raw = first + saying(kind, b"hi") + KINDS[kind][2]
    pieces = [raw[:size], 0.02, raw[size : size + 2], 0.02, raw[size + 2 :]]
    for told in (await ask(kind, *pieces, headers=JSON)).values():
        assert is_whole(told, "hi")


async def test_a_byte_order_mark_may_come_alone(ask):
    message = {"role": "assistant", "content": "hi"}
    body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    for told in (await ask("zhipu", b"\xef\xbb", 0.02, b"\xbf", 0.02, orjson.dumps(body))).values():
        assert is_whole(told, "hi")


async def test_a_stream_where_json_was_asked_for_is_the_answer(ask):
    told = await ask("openai", saying("openai", b"hi"), OPENAI_END)
    assert is_whole(told["/v1", False], "hi")


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
async def test_one_line_end_between_events_is_enough(kind, end, ask):
    pieces = [saying(kind, b"hel"), saying(kind, b"lo"), KINDS[kind][2]]
    pieces = [piece.replace(b"\n\n", b"\n").replace(b"\n", end) for piece in pieces]
    for told in (await ask(kind, *pieces)).values():
        assert is_whole(told, "hello")


PARTS = [
    {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
    {"type": "text", "text": "Hel"},
    {"type": "text", "text": {"content": "lo"}},
    {"type": "reference", "reference_ids": [1]},
    "!",
    7,
]


@pytest.mark.parametrize("kind", ["openai", "zhipu", "fastgpt"], indirect=True)
@pytest.mark.parametrize("is_whole_body", [False, True])
async def test_content_may_be_a_list_of_parts(kind, is_whole_body, ask):
    message = {"role": "assistant", "content": PARTS}
    body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    pieces = [event(chunk(message)), OPENAI_END]
    if is_whole_body:
        pieces = [json.dumps(body).encode()]
    for (surface, _), told in (await ask(kind, *pieces)).items():
        if kind != "openai" or surface != "/v1":  # which gets the upstream's bytes unchanged
            is_fastgpts = kind == "fastgpt" and is_whole_body  # whose own parts are paragraphs
            assert is_whole(told, "Hel\nlo!" if is_fastgpts else "Hello!")
            assert told.reasoning == "hm"


async def test_an_answer_of_coze_may_be_a_list_of_parts(ask):
    parts = '[{"type":"text","text":"look"},{"type":"image","file_url":"https://x.test/a.png"}]'
    said = coze("message.completed", type="answer", content=parts, content_type="object_string")
    for (surface, _), told in (await ask("coze", said, COZE_END)).items():
        words = "\n\n![image](https://x.test/a.png)" if surface == "/v1" else ""
        assert is_whole(told, "look" + words)
        assert told.gateway["files"][0]["url"] == "https://x.test/a.png"


@pytest.mark.parametrize("kind", ["openai", "zhipu"], indirect=True)
@pytest.mark.parametrize(
    "members",
    [
        {"images": [{"type": "image_url", "index": 0, "image_url": {"url": PICTURE}}]},
        {"images": [PICTURE]},
        {"content": [{"type": "image_url", "image_url": {"url": PICTURE}}]},
        {"content": [{"type": "image", "source": {"media_type": "image/png", "data": "QUJD"}}]},
    ],
)
async def test_pictures_of_a_model_are_shown_once(kind, members, ask):
    said = event(chunk({"role": "assistant", **members}))
    for (surface, _), told in (await ask(kind, said, said, OPENAI_END)).items():
        if surface == "/v1" and kind == "zhipu":
            assert told.text == f"![image]({PICTURE})"
        if surface != "/v1":
            assert is_whole(told, "")
            assert told.gateway["files"] == [{"type": "image", "url": PICTURE, "name": ""}]


MADE = {"id": "f", "type": "image", "belongs_to": "assistant", "url": "http://x.test/t/a.png?s=1"}


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("", "![a.png](http://x.test/t/a.png?s=1)"),
        ("Look:", "Look:\n\n![a.png](http://x.test/t/a.png?s=1)"),
        ("![](http://x.test/t/a.png?s=2)", "![](http://x.test/t/a.png?s=2)"),
    ],
)
async def test_pictures_of_dify_are_seen_where_only_text_is_shown(text, seen, ask):
    again = dify("message_end", files=[{**MADE, "url": "http://x.test/t/a.png?s=3"}])
    pieces = [dify("message_file", **MADE), dify("agent_message", answer=text), again]
    for (surface, _), told in (await ask("dify", *pieces)).items():
        assert is_whole(told, seen if surface == "/v1" else text)
        assert [file["url"] for file in told.gateway["files"]] == [MADE["url"]]


# The same content in another event


@pytest.mark.parametrize("outputs", [{"text": ""}, {"text": None}, {"a": [], "b": {}}, {}, None])
async def test_a_workflow_that_says_nothing_is_an_empty_answer(outputs, ask):
    for told in (await ask("dify workflow", finished(outputs))).values():
        assert is_whole(told, "")


async def test_a_workflow_of_dify_may_return_nothing_but_a_file(ask):
    file = {"dify_model_identity": "__dify__file__", "filename": "a.png", **MADE}
    for (surface, _), told in (await ask("dify workflow", finished({"pictures": [file]}))).items():
        assert is_whole(told, "![a.png](http://x.test/t/a.png?s=1)" if surface == "/v1" else "")
        assert [made["url"] for made in told.gateway["files"]] == [MADE["url"]]


async def test_a_configured_output_that_is_null_is_an_empty_answer(ask):
    outputs = {"wanted": None, "other": "x"}
    for told in (await ask("dify workflow", finished(outputs), output_variable="wanted")).values():
        assert is_whole(told, "")


@pytest.mark.parametrize("outputs", [{"n": 0}, {"is_good": False}, {"a": "", "n": 0}])
async def test_a_workflow_that_says_zero_says_something(outputs, ask):
    for told in (await ask("dify workflow", finished(outputs))).values():
        assert is_whole(told, orjson.dumps(outputs).decode())


STARTED, END = dify("workflow_started"), dify("message_end")


@pytest.mark.parametrize("said", [[], ["hello"], ["hel", "lo"]])
@pytest.mark.parametrize("is_last", [False, True])
async def test_a_chatflow_whose_text_is_in_its_outputs_says_it_once(said, is_last, ask):
    ends = [finished({"answer": "hello"}), END]
    messages = [dify("message", answer=text) for text in said]
    pieces = [STARTED, *messages, *(reversed(ends) if is_last else ends)]
    for told in (await ask("dify", *pieces)).values():
        assert is_whole(told, "hello")


@pytest.mark.parametrize("said", [[], ["hello"]])
async def test_an_answer_that_is_only_the_last_thought_appears_once(said, ask):
    thoughts = [
        dify("agent_thought", id="1", thought="let me look", tool="search", observation="ok"),
        dify("agent_thought", id="2", thought="hello", tool=""),
    ]
    messages = [dify("agent_message", answer=text) for text in said]
    for told in (await ask("dify", *messages, *thoughts, END)).values():
        assert is_whole(told, "hello")


FORM = {"form_id": "f1", "node_title": "T", "form_content": "please approve", "form_token": "tok"}


@pytest.mark.parametrize("reasons", [[], [{"TYPE": "human_input_required", **FORM}]])
async def test_a_pause_shows_its_form_once_wherever_it_came(reasons, ask):
    paused = dify("workflow_paused", data={"reasons": reasons, "status": "paused"})
    asked = dify("human_input_required", data=FORM)
    for told in (await ask("dify", STARTED, asked, paused)).values():
        assert is_whole(told, "please approve")
        assert [f["text"] for f in told.gateway["interaction"]["forms"]] == ["please approve"]
        assert "tok" not in repr(told.gateway)


QUESTION = {
    "question": "哪座城市？",
    "options": [{"name": "北京"}, {"name": "杭州"}],
}


@pytest.mark.parametrize(
    ("said", "data", "text"),
    [
        ("", "你住在哪里？", "你住在哪里？"),
        ("先说一句。", "你住在哪里？", "先说一句。\n\n你住在哪里？"),
        ("你住在哪里？", "你住在哪里？", "你住在哪里？"),
        ("你住在哪里？", "", "你住在哪里？"),
        ("", json.dumps(QUESTION), "哪座城市？\n1. 北京\n2. 杭州"),
    ],
)
async def test_a_workflow_of_coze_that_asks_something_says_it(said, data, text, ask):
    asked = event({"interrupt_data": {"event_id": "1/2", "type": 2, "data": data}}, "Interrupt")
    before = [event({"content": said, "node_title": "问答"}, "Message")] if said else []
    for told in (await ask("coze workflow", *before, asked)).values():
        assert is_whole(told, text)
        assert told.gateway["interaction"]["data"] == data


# Nothing at all

USAGE = {"prompt_tokens": 9, "completion_tokens": 0, "total_tokens": 9}
NOTHING = {
    "done": b"",
    "comment": b": hi\n\n",
    "role": event(chunk({"role": "assistant", "content": ""})),
    "usage": event({"id": "", "choices": [], "usage": USAGE}),
    "fastchat": event({"object": "error", "message": "NO GPU", "code": 50001}),
    "error_code": event({"text": "NO GPU", "error_code": 50001}),
    "minimax": event({"choices": None, "base_resp": {"status_code": 1, "status_msg": "NO GPU"}}),
    "fastapi": event({"detail": "NO GPU"}),
}


# Events that make the answer a failure, whatever follows them.
FAILURES = {
    "named": event({"message": "NO GPU"}, "error"),
    "named list": event([{"message": "NO GPU"}], "error"),
    "named string": event("NO GPU", "error"),
    "named words": b"event: error\ndata: NO GPU\n\n",
    "member": event({"error": {"message": "NO GPU"}}),
    "members": event({"errors": [{"message": "NO GPU"}]}),
    "code": event({"code": 500, "message": "NO GPU"}),
    "detail": event({"detail": "NO GPU"}),
}
OF_OPENAI = {
    "minimax": NOTHING["minimax"],
    "words": b"data: NO GPU\n\n",
    "brackets": b"data: [ERROR] NO GPU\n\n",
    "choice": event(
        {"choices": [{"delta": {}, "finish_reason": "error", "error": {"message": "NO GPU"}}]}
    ),
}


async def fails_in_the_middle(ask, kind: str, failure: bytes) -> None:
    for told in (await ask(kind, saying(kind, b"Ha"), failure, KINDS[kind][2])).values():
        assert told.error
        assert not told.finish
        assert b"NO GPU" in told.raw


@pytest.mark.parametrize("kind", KINDS, indirect=True)
@pytest.mark.parametrize("name", FAILURES)
async def test_an_error_among_the_events_is_no_good_end(kind, name, ask):
    await fails_in_the_middle(ask, kind, FAILURES[name])


@pytest.mark.parametrize("kind", ["openai", "zhipu"], indirect=True)
@pytest.mark.parametrize("name", OF_OPENAI)
async def test_an_event_that_is_no_chunk_is_read_for_its_error(kind, name, ask):
    await fails_in_the_middle(ask, kind, OF_OPENAI[name])


@pytest.mark.parametrize("is_whole_body", [False, True])
async def test_an_answer_that_ends_with_error_is_a_failure(is_whole_body, ask):
    pieces = [saying("openai", b"Ha"), event(chunk({}, "error")), DONE]
    if is_whole_body:
        message = {"role": "assistant", "content": "Ha"}
        body = {"choices": [{"index": 0, "message": message, "finish_reason": "error"}]}
        pieces = [json.dumps(body).encode()]
    for told in (await ask("openai", *pieces)).values():
        assert told.error


WORDS = {
    "call": {"delta": {"function_call": {"name": "WORD", "arguments": "{}"}}},
    "speech": {"delta": {"audio": {"id": "a", "transcript": "WORD"}}},
    "old": {"text": "WORD"},
    "text": {"delta": {"text": "WORD"}},
    "nested": {"delta": {"content": [[{"type": "text", "text": "WORD"}]]}},
    "object": {"delta": {"content": {"type": "text", "text": "WORD"}}},
    "inline": {"delta": {"content": [{"inline_data": {"mime_type": "image/png", "data": "WORD"}}]}},
    "number": {"delta": {"content": 42}},
}


@pytest.mark.parametrize("kind", ["openai", "zhipu"], indirect=True)
@pytest.mark.parametrize("name", WORDS)
async def test_words_in_another_member_are_not_lost(kind, name, ask):
    said = event({"choices": [{"index": 0, "finish_reason": None, **WORDS[name]}]})
    for told in (await ask(kind, said, OPENAI_END)).values():
        assert told.status == 200
        assert (b"42" if name == "number" else b"WORD") in told.raw
        assert told.finish == ("tool_calls" if name == "call" else "stop") or name == "call"


@pytest.mark.parametrize("empty", [[], [{"type": "text", "text": ""}], {}, ""])
async def test_parts_without_a_word_are_an_empty_answer(empty, ask):
    body = {"choices": [{"index": 0, "message": {"role": "assistant", "content": empty}}]}
    streamed = await ask("openai", event(chunk({"role": "assistant", "content": empty})), DONE)
    whole = await ask("openai", json.dumps(body).encode(), headers=JSON)
    assert {told.status for told in (*streamed.values(), *whole.values())} == {502}


@pytest.mark.parametrize("kind", ["openai", "zhipu"], indirect=True)
@pytest.mark.parametrize("name", NOTHING)
async def test_an_answer_without_a_word_or_a_reason_is_a_failure(kind, name, ask):
    for told in (await ask(kind, NOTHING[name] + DONE)).values():
        assert told.status == 502
        assert not told.finish
        if b"NO GPU" in NOTHING[name]:
            assert b"NO GPU" in told.raw


async def test_a_whole_answer_without_a_word_or_a_reason_is_a_failure(ask):
    body = {"choices": [{"index": 0, "message": {"role": "assistant", "content": ""}}]}
    told = await ask("openai", json.dumps(body).encode(), headers=JSON)
    assert {one.status for one in told.values()} == {502}


async def test_an_application_of_zhipu_that_says_nothing_has_failed(ask):
    assert {t.status for t in (await ask("zhipu application", DONE)).values()} == {502}


@pytest.mark.parametrize("reason", ["stop", "length", "content_filter"])
async def test_an_empty_answer_with_a_reason_stays_what_it_is(reason, ask):
    told = await ask("openai", event(chunk({"content": ""}, reason)) + DONE)
    for one in told.values():
        assert (one.status, one.text, one.finish) == (200, "", reason)


@pytest.mark.parametrize("stream", [True, False])
async def test_after_an_empty_answer_the_next_agent_is_asked(stream, gateway, scripted):
    empty = await scripted(Script([DONE]))
    good = await scripted(Script([saying("openai", b"hi"), OPENAI_END]))
    gw = await gateway(
        agents={
            name: {**AGENTS["openai"], "base_url": one.url}
            for name, one in (("a", empty), ("b", good))
        },
        routes={"both": ["a", "b"]},
    )
    for question in (gw.complete, gw.chat):
        async with question("both", stream=stream) as answer:
            assert answer.headers["x-gateway-agent"] == "b"
            assert is_whole(Told(answer.status, await answer.read()), "hi")
    assert len(empty.requests) == 2


# Callers


@pytest.mark.parametrize("kind", AGENTS, indirect=True)
async def test_a_callers_history_may_hold_halves_of_characters(kind, gateway, scripted):
    upstream = await scripted(Script([saying(kind, b"hi"), KINDS[kind][2]]))
    bot = {**AGENTS[kind], "base_url": upstream.url, **KINDS[kind][0]}
    gw = await gateway(agents={"bot": bot})
    turns = b'[{"role":"user","content":"cut \\ud83d"},{"role":"assistant","content":"\\ude00"},'
    body = b'{"model":"bot","messages":%b{"role":"user","content":"and \\ud83d"}],"n":NaN}' % turns
    async with gw.post("/v1/chat/completions", body) as answer:
        assert answer.status == 200
    assert "and \ufffd" in upstream.requests[-1][2].decode()
    async with gw.post("/api/v1/chat", b'{"query":"\\ud83d"}', headers={"Agent": "bot"}) as answer:
        assert answer.status == 200
    orjson.loads(upstream.requests[-1][2])


# Questions of a bot in the middle of its run


def interrupt(data: Any, **more: Any) -> bytes:
    return event(
        {"interrupt_data": {"event_id": "e", "type": 2, "data": data, **more}}, "Interrupt"
    )


def packed(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


QUESTION = {"question": "Where?", "options": [{"name": "Here"}, "There"]}
FIELD = {"name": "city", "description": "Where to?", "required": True}
WAITS = "机器人在等待你的回答。/ The bot is waiting for your answer."


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (interrupt("Where?"), "Where?"),
        (interrupt("[1] Where? {here}"), "[1] Where? {here}"),
        (interrupt(QUESTION), "Where?\n1. Here\n2. There"),
        (interrupt(packed(QUESTION)), "Where?\n1. Here\n2. There"),
        (interrupt(packed({"content_type": "text", "content": packed(QUESTION)})), "Where?\n1. Here\n2. There"),
        (interrupt(packed({"content": [{"type": "text", "text": "Where?"}]})), "Where?"),
        (interrupt(packed(packed(["Where?"]))), "Where?"),
        (interrupt(packed(["Where?"])), "Where?"),
        (interrupt(packed([FIELD, {"name": "day"}]), type=6), "- city: Where to?\n- day"),
        (interrupt("", required_parameters={"city": {}}), "- city"),
        (interrupt(None, required_parameters=[FIELD]), "- city: Where to?"),
        (interrupt("", required_parameters={}), WAITS),
        (interrupt(packed({"x": {"y": 1}})), WAITS),
        (interrupt(packed([[[[[[[["too deep"]]]]]]]])), WAITS),
        (event({}, "Interrupt"), WAITS),
    ],
)  # fmt: skip
async def test_what_coze_asks_is_read_in_every_form(asked, text, ask):
    for told in (await ask("coze workflow", asked)).values():
        assert is_whole(told, text)


ACTIONS = [{"id": "yes", "title": "Yes, send"}, {"id": "no", "title": "No"}, 7, {"id": "x"}]


def required(**form: Any) -> dict[str, Any]:
    return {"form_id": "f", "node_title": "Approval", "form_content": "", "actions": [], **form}


def paused(*forms: dict[str, Any]) -> bytes:
    reasons = [{"TYPE": "human_input_required", **form} for form in forms]
    return dify("workflow_paused", data={"reasons": reasons, "status": "paused"})


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ([paused(required())], "Approval"),
        ([paused(required(actions=ACTIONS))], "Approval\n- Yes, send\n- No"),
        ([paused(required(form_content="Send?", actions=ACTIONS))], "Send?\n- Yes, send\n- No"),
        ([paused(required(form_content="Read this.", actions=ACTIONS[1:]))], "Read this."),
        ([paused(required(node_title="", actions=ACTIONS[1:]))], "- No"),
        ([paused(required(form_content="One?"), required(form_content="Two?"))], "One?\n\nTwo?"),
        ([dify("message", answer="hi"), paused(required())], "hi\n\nApproval"),
        ([paused()], WAITS),
        ([paused({"node_title": None, "form_content": 7, "actions": {}})], WAITS),
        ([dify("message", answer="hi"), paused()], "hi"),
        ([dify("human_input_required", data=required(form_content="Send?"))], "Send?"),
        ([dify("human_input_required", data=required()), dify("message_end")], "Approval"),
        ([dify("workflow_finished", data={"status": "paused", "reasons": [required()]})], "Approval"),
        ([dify("human_input_required", data=required()), dify("human_input_form_filled", data={}),
          dify("message", answer="sent"), dify("message_end"), finished({"answer": "sent"})], "sent"),
    ],
)  # fmt: skip
async def test_a_pause_of_dify_says_what_may_be_answered(pieces, text, ask):
    for kind in ("dify", "dify workflow"):
        if kind == "dify" or b'"message' not in b"".join(pieces):
            for told in (await ask(kind, STARTED, *pieces)).values():
                assert is_whole(told, text)
                assert text == "sent" or told.gateway["interaction"]["type"] == "human_input"


@pytest.mark.parametrize("kind", ["dify", "dify workflow"], indirect=True)
@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"status": "stopped"}, "was stopped in Dify"),
        ({"status": "stopped", "outputs": {}, "error": "by hand"}, "by hand"),
        ({"status": "exception", "outputs": None, "error": "no disk"}, "no disk"),
    ],
)
async def test_an_unsuccessful_run_without_text_is_a_failure(kind, data, words, ask):
    end = [dify("message_end")] if kind == "dify" else []
    for told in (await ask(kind, STARTED, *end, dify("workflow_finished", data=data))).values():
        assert words in json.dumps(told.error)
        assert told.finish is None


@pytest.mark.parametrize("kind", ["dify", "dify workflow"], indirect=True)
async def test_a_run_that_was_stopped_keeps_what_it_said(kind, ask):
    said = (
        dify("message", answer="hi") if kind == "dify" else dify("text_chunk", data={"text": "hi"})
    )
    for told in (
        await ask(kind, STARTED, said, dify("workflow_finished", data={"status": "stopped"}))
    ).values():
        assert is_whole(told, "hi")


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        ({"text": "hi"}, "hi"), ({"result": "hi", "n": None}, "hi"), ({"answer": "", "x": "y"}, ""),
        ({"answer": "hi", "text": "no"}, "hi"), ({"a": 1, "b": 2}, '{"a":1,"b":2}'), ({}, ""),
    ],
)  # fmt: skip
async def test_a_chatflows_answer_may_have_any_name(outputs, text, ask):
    for ends in (
        [dify("message_end"), finished(outputs)],
        [finished(outputs), dify("message_end")],
    ):
        for told in (await ask("dify", STARTED, *ends)).values():
            assert is_whole(told, text)


async def test_coze_asks_once_if_the_node_has_said_its_question(ask):
    said = event({"content": "Where?", "node_title": "Ask"}, "Message")
    asked = {"interrupt_data": {"event_id": "e", "type": 2, "data": ""}}
    for title, text in (("Ask", "Where?"), ("Other", f"Where?\n\n{WAITS}")):
        last = event({**asked, "node_title": title}, "Interrupt")
        for told in (await ask("coze workflow", said, last)).values():
            assert is_whole(told, text)


# Failures that are reported after a part of the answer


def system_error(words: str, status: str = "finish") -> bytes:
    content = {"type": "system_error", "content": words}
    message = {"content": content, "status": status}
    return event({"conversation_id": "c-1", "message": message, "status": status})


FAILED: list[tuple[str, bytes]] = [
    ("coze workflow", event({"error": {"message": "WORDS"}})),
    ("coze workflow", event({"error": "WORDS"})),
    ("zhipu glms", system_error("WORDS")),
    ("zhipu glms", event({"error": {"message": "WORDS"}})),
    ("zhipu glms", event({"error": "WORDS"})),
    ("zhipu glms", event({"code": 500, "message": "WORDS"})),
    ("zhipu glms", event({"message": "WORDS"})),
    ("zhipu glms", event({"message": "WORDS"}, "error")),
    ("zhipu application", event({"message": "WORDS"}, "error")),
    ("zhipu application", event({"error": "WORDS"})),
    ("zhipu application", event({"error": {"msg": "WORDS"}})),
    ("zhipu application", event({"detail": "WORDS"})),
    ("zhipu application", event({"code": "500", "msg": "WORDS"})),
    ("zhipu application", event({"choices": [{"finish_reason": "error", "error_msg": "WORDS"}]})),
    ("zhipu application", event({"choices": [{"finish_reason": "error", "error_msg": {"code": 7, "msg": "WORDS"}}]})),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "failed"), FAILED)
async def test_a_failure_after_text_is_an_error_with_its_message(kind, failed, ask):
    for told in (await ask(kind, saying(kind, b"hi"), failed, KINDS[kind][2])).values():
        assert told.text in ("hi", "")
        assert told.finish is None
        assert "WORDS" in json.dumps(told.error)


async def test_an_answer_that_goes_on_after_a_tools_failure_is_good(ask):
    pieces = [
        glms("one"),
        system_error("no such file", "init"),
        glms("one two"),
        glms("", "finish"),
    ]
    for told in (await ask("zhipu glms", *pieces)).values():
        assert is_whole(told, "one two")


async def test_a_frame_that_says_that_all_is_well_is_no_failure(ask):
    well = event({"code": 200, "msg": "ok"})
    pieces = [well, saying("zhipu application", b"hi"), well, APP_END]
    for told in (await ask("zhipu application", *pieces)).values():
        assert is_whole(told, "hi")


@pytest.mark.parametrize("said", ["", "Look."])
async def test_fastgpt_waits_without_a_question_and_says_so_once(said, ask):
    asked = event({"interactive": {"type": "new", "params": {}}}, "interactive")
    before = [saying("fastgpt", said.encode())] if said else []
    pieces = [*before, asked, OPENAI_END, event([], "flowResponses")]
    for told in (await ask("fastgpt", *pieces)).values():
        assert is_whole(told, said or WAITS)
