import orjson
from conftest import streamed

from gateway.errors import UpstreamCut
from gateway.protocol.messages import (
    Begin,
    ChatRequest,
    Failed,
    Finish,
    Message,
    Note,
    Reasoning,
    Replace,
    Text,
    ToolCall,
    Usage,
)
from gateway.protocol.render import MAX_NOTES, StreamRenderer, WholeRenderer, error_frame

CHAT = ChatRequest("模型", (Message("user", "hi"),), "u", include_usage=True)


class Rendered(StreamRenderer):
    raw = b""


def stream(*deltas, conversational=False) -> Rendered:
    renderer = Rendered(CHAT, "agent", 1, conversational)
    renderer.raw = renderer.feed(list(deltas))
    return renderer


def test_nothing_comes_out_before_the_first_content():
    assert stream(Begin("c", "m"), Note("progress", [{"node": "x"}])).raw == b""


def test_text_is_written_so_that_no_client_breaks_the_line():
    raw = stream(Text('a\u2028b\u2029c\u0085d\n"e\\ 你😀\x0b\x1c')).raw
    assert len(raw.decode().split("\n\n")[1].splitlines()) == 1
    assert streamed(raw)["text"] == 'a\u2028b\u2029c\u0085d\n"e\\ 你😀\x0b\x1c'


def test_a_replacement_sends_what_is_missing_or_breaks_the_line():
    assert streamed(stream(Text("ab"), Replace("abc", "c")).raw)["text"] == "abc"
    assert streamed(stream(Text("ab"), Replace("x", None)).raw)["text"] == "ab\n\nx"


def test_tool_calls_have_id_and_name_in_the_first_piece_only():
    raw = stream(ToolCall(0, "", "id1", "f"), ToolCall(0, '{"a":'), ToolCall(0, "1}")).raw
    chunks = [orjson.loads(block[6:]) for block in raw.split(b"\n\n")[1:-1]]
    pieces = [chunk["choices"][0]["delta"]["tool_calls"][0] for chunk in chunks]
    assert pieces[0] == {
        "index": 0, "id": "id1", "type": "function", "function": {"name": "f", "arguments": ""},
    }  # fmt: skip
    assert pieces[1:] == [
        {"index": 0, "function": {"arguments": '{"a":'}},
        {"index": 0, "function": {"arguments": "1}"}},
    ]


def test_an_unknown_usage_is_left_out_rather_than_invented():
    raw = stream(Text("a"), Finish("stop", None)).raw
    assert b'"usage":{' not in raw
    assert streamed(raw)["gateway"]["usage"] == "unknown"


def test_a_failure_is_the_last_thing_and_has_no_finish():
    error = UpstreamCut("gone")
    raw = stream(Text("a"), Failed(error)).raw + error_frame(error, conversational=False)
    got = streamed(raw)
    assert got["error"] == {
        "message": "gone", "type": "upstream_error", "param": None, "code": "upstream_cut",
    }  # fmt: skip
    assert got["finish"] == []


def test_notes_are_joined_bounded_and_in_the_final_chunk():
    many = [{"node": str(i)} for i in range(150)]
    notes = [Note("progress", many), Note("progress", many), Note("title", "a"), Note("title", "b")]
    got = streamed(stream(Begin("c", "m"), *notes, Text("x"), Finish("stop", Usage(1, 2, 3))).raw)
    assert len(got["gateway"]["progress"]) == MAX_NOTES
    assert got["gateway"]["title"] == "b"
    assert got["gateway"]["conversation_id"] == "c"


def test_a_whole_answer_joins_everything():
    renderer = WholeRenderer(CHAT, "agent", 5, conversational=True)
    renderer.feed([Begin("c", "m"), Reasoning("th"), Reasoning("ink"), Text("old"),
                   Replace("new", None), Text("!"), Finish("stop", None)])  # fmt: skip
    body = orjson.loads(renderer.body())
    assert body["id"] == "c"
    assert body["choices"] == [
        {"index": 0, "finish_reason": "stop",
         "message": {"role": "assistant", "content": "new!", "reasoning_content": "think"}},
    ]  # fmt: skip
    assert body["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def test_an_answer_without_text_is_empty_or_null_with_tools():
    renderer = WholeRenderer(CHAT, "agent", 5, conversational=False)
    renderer.feed([Finish("stop", None)])
    body = orjson.loads(renderer.body())
    assert body["choices"][0]["message"]["content"] == ""
    assert "usage" not in body
    renderer = WholeRenderer(CHAT, "agent", 5, conversational=False)
    renderer.feed([ToolCall(0, "{", "i", "f"), ToolCall(0, "}"), Finish("tool_calls", None)])
    message = orjson.loads(renderer.body())["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"] == [
        {"id": "i", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    ]
