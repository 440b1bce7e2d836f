"""Lists of messages as clients send them, including the forms of other APIs."""

import pytest

from gateway.errors import InvalidRequest
from gateway.protocol.messages import Media, Message
from gateway.protocol.openai_messages import MAX_MEDIA, put_back, read_turns, require_few, tidy

ASK = {"role": "user", "content": "go on"}
PNG = "data:image/png;base64,QUJD"
PDF = "data:application/pdf;base64,QUJD"
FILE = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "QUJD"}, "title": "a.pdf"}  # fmt: skip


def turns(*messages):
    return [(turn.role, turn.text) for turn in read_turns(list(messages))]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "b"}], "b"),
        ([{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "b"}], "b"),
        ([{"type": "reasoning", "text": "hm"}, {"type": "text", "text": "b"}], "b"),
        ([{"type": "text", "text": None}, {"type": "text", "text": "b"}], "b"),
        ([{"type": "tool_use", "id": "t", "input": {}}, {"type": "text", "text": "b"}], "b"),
        ([{"type": "step-start"}, {"text": "b"}], "b"), ({"type": "text", "text": "b"}, "b"),
        ([{"type": "of tomorrow"}], ""), ([7, None, "b"], "b"), (7, ""), ([], ""),
        ([{"type": "text", "text": 7}], ""), ([{"type": "image_url", "image_url": "no url"}], ""),
    ],
)  # fmt: skip
def test_non_text_of_an_earlier_turn_is_left_out(content, text):
    earlier = {"role": "assistant", "content": content}
    assert turns({"role": "user", "content": "a"}, earlier, ASK) == [
        ("user", "a"), ("assistant", text), ("user", "go on"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("role", "read"),
    [("User", "user"), ("ASSISTANT", "assistant"), ("model", "assistant"), ("Developer", "system"),
     (" human ", "user"), ("bot", "assistant"), ("function", "tool")],
)  # fmt: skip
def test_roles_are_read_as_other_apis_write_them(role, read):
    assert turns({"role": role, "content": "a"}, ASK)[0] == (read, "a")


@pytest.mark.parametrize(
    "odd", [7, None, "text", [], {}, {"role": 7}, {"role": "critic", "content": "x"}]
)
def test_an_earlier_item_that_is_no_turn_is_left_out(odd):
    assert turns(odd, ASK) == [("user", "go on")]
    with pytest.raises(InvalidRequest, match=r"messages\[1\]"):
        read_turns([ASK, odd])


@pytest.mark.parametrize(
    "content",
    [[{"type": "of tomorrow"}], [{"type": "text", "text": 7}], 7, [7],
     [{"type": "image_url", "image_url": {"url": "ftp://x"}}], [{"type": "tool_result"}]],
)  # fmt: skip
def test_the_question_itself_is_refused_for_what_cannot_be_read(content):
    with pytest.raises(InvalidRequest, match=r"messages\[1\]\.content"):
        read_turns([ASK, {"role": "user", "content": content}])


def test_empty_parts_of_the_question_are_left_out():
    content = [{"type": "text", "text": None}, {"type": "text", "text": "go on"}]
    assert turns({"role": "user", "content": content}) == [("user", "go on")]


@pytest.mark.parametrize(
    ("part", "media"),
    [
        ({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"}}, Media("image", PNG)),
        ({"type": "image", "source": {"type": "url", "url": "https://x.example/a.png"}}, Media("image", "https://x.example/a.png")),
        ({"type": "image", "image": PNG}, Media("image", PNG)),
        ({"type": "file", "data": "QUJD", "mediaType": "image/png"}, Media("image", PNG)),
        ({"inline_data": {"mime_type": "image/png", "data": "QUJD"}}, Media("image", PNG)),
        ({"fileData": {"mimeType": "image/png", "fileUri": "https://x.example/a.png"}}, Media("image", "https://x.example/a.png")),
        ({"file_data": {"mime_type": "application/pdf", "file_uri": "https://x.example/a"}}, Media("file", "https://x.example/a")),
        ({"type": "input_file", "filename": "a.pdf", "file_data": PDF}, Media("file", PDF, "a.pdf")),
        ({"type": "input_file", "file_id": "f1"}, Media("file", "", uploaded="f1")),
        (FILE, Media("file", PDF, "a.pdf")),
    ],
)  # fmt: skip
def test_files_are_read_as_other_apis_write_them(part, media):
    (turn,) = read_turns([{"role": "user", "content": [part, {"type": "text", "text": "a"}]}])
    assert (turn.text, turn.media) == ("a", (media,))


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ({"type": "text", "text": {"value": "a", "annotations": []}}, "a"),
        ({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "a"}}, "a"),
        ({"type": "document", "title": "T", "source": {"type": "text", "data": "a"}}, "T\na"),
        ({"type": "document", "source": {"type": "content", "content": "a"}}, "a"),
        ({"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}}, "a\nb"),
    ],
)  # fmt: skip
def test_text_is_read_as_other_apis_write_it(part, text):
    assert turns({"role": "user", "content": [part]}) == [("user", text)]
    assert tidy([{"role": "user", "content": [part]}]) == [
        {"role": "user", "content": [{"type": "text", "text": text}]}
    ]


def test_parts_count_where_the_content_is_empty():
    message = {"id": "1", "role": "user", "content": "", "parts": [{"type": "text", "text": "a"}]}
    assert turns(message) == turns(message, {"role": "assistant", "content": ""}) == [("user", "a")]
    assert turns({**message, "content": "b"}) == [("user", "b")]
    assert tidy([message]) == [
        {"id": "1", "role": "user", "content": [{"type": "text", "text": "a"}]}
    ]


@pytest.mark.parametrize(
    "empty",
    [{"content": ""}, {"content": " \n"}, {"content": None, "tool_calls": []}, {"content": []}, {},
     {"content": [{"type": "text", "text": ""}]}, {"content": [{"type": "thinking", "thinking": "x"}]}],
)  # fmt: skip
def test_an_empty_answer_after_the_question_is_no_turn(empty):
    assert turns(ASK, {"role": "assistant", **empty}) == [("user", "go on")]
    assert turns(ASK, *[{"role": "assistant", **empty}] * 2) == [("user", "go on")]
    with pytest.raises(InvalidRequest, match="no message"):
        read_turns([{"role": "assistant", **empty}])


@pytest.mark.parametrize(
    "more",
    [{"content": "x"}, {"content": None, "tool_calls": [{"id": "t"}]}, {"function_call": {}, "content": [FILE]},
     {"content": None, "function_call": {"name": "f", "arguments": "{}"}}],
)  # fmt: skip
def test_an_answer_that_holds_something_stays_the_last_turn(more):
    assert read_turns([ASK, {"role": "assistant", **more}])[-1].role == "assistant"


# Lists that end in a system turn.

USER, SYSTEM, BOT = ({"role": role, "content": role} for role in ("user", "system", "assistant"))


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ([SYSTEM], [("user", "system")]),
        ([SYSTEM, SYSTEM], [("system", "system"), ("user", "system")]),
        ([USER, SYSTEM], [("system", "system"), ("user", "user")]),
        ([USER, BOT, USER, SYSTEM, SYSTEM],
         [("user", "user"), ("assistant", "assistant"), ("system", "system"), ("system", "system"), ("user", "user")]),
        ([SYSTEM, USER, BOT, SYSTEM],
         [("system", "system"), ("user", "user"), ("assistant", "assistant"), ("user", "system")]),
        ([SYSTEM, USER], [("system", "system"), ("user", "user")]),
    ],
)  # fmt: skip
def test_a_list_that_ends_in_a_system_turn_has_a_question(given, read):
    assert turns(*given) == read
    assert [(turn["role"], turn["content"]) for turn in tidy(given)] == read


# Back to the caller's own messages.


def test_a_changed_file_goes_back_into_its_place():
    image = {"type": "image_url", "image_url": {"url": "https://x.example/a.png", "detail": "low"}}
    messages = [{"role": "critic"}, {"role": "user", "content": [image]}, SYSTEM]
    changed = (Message("system", "system"), Message("user", "", (Media("image", PNG),)))
    back = put_back(messages, changed)
    assert back[1]["content"][0]["image_url"] == {"url": PNG, "detail": "low"}
    assert (back[0], back[2]) == (messages[0], messages[2])


def test_tidy_messages_are_what_openais_clients_write():
    thought = {"type": "thinking", "thinking": "hm"}
    image = {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"},
    }
    call = {"id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    text = {"type": "text", "text": "b", "cache_control": {}}
    messages = [
        {"role": "User", "content": [image, {"type": "text", "text": "a"}]},
        {"role": "model", "content": [thought, text], "tool_calls": [call]},
        {"role": "assistant", "content": [thought]},
        {"role": "user", "parts": [{"text": "go on"}]},
    ]  # fmt: skip
    assert tidy(messages) == [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": PNG}}, {"type": "text", "text": "a"}]},
        {"role": "assistant", "content": [text], "tool_calls": [call]},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": [{"type": "text", "text": "go on"}]},
    ]  # fmt: skip


def test_calls_of_functions_become_calls_of_tools():
    function = {"name": "f", "arguments": "{}"}
    call = {"id": "call_0", "type": "function", "function": function}
    given = [
        {"role": "assistant", "content": None, "function_call": function},
        {"role": "function", "name": "f", "content": "result"},
        {"role": "function", "name": "g", "content": "without a call"},
        ASK,
    ]
    assert tidy(given) == [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "name": "f", "content": "result", "tool_call_id": "call_0"},
        {"role": "user", "name": "g", "content": "without a call"},
        ASK,
    ]


def test_a_result_without_an_id_is_of_the_open_call():
    calls = [{"id": id_, "type": "function", "function": {"name": "f"}} for id_ in "ab"]
    given = [
        {"role": "assistant", "content": None, "tool_calls": [*calls, 7, {"id": 7}]},
        {"role": "tool", "content": "1", "tool_call_id": "a"},
        {"role": "tool", "content": "2", "tool_call_id": None},
    ]
    assert [turn.get("tool_call_id") for turn in tidy(given)[1:]] == ["a", "b"]


@pytest.mark.parametrize(
    "odd", [{"role": []}, {"role": {}, "content": "x"}, {"content": "x"}, {"role": None}]
)
def test_a_role_of_any_type_is_none(odd):
    assert turns(odd, ASK) == [("user", "go on")]


def test_plain_turns_and_others_are_read_alike():
    plain = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user")]
    parts = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in plain]
    assert read_turns(plain) == read_turns(parts)


@pytest.mark.parametrize(
    "part",
    [{"type": "image_url", "image_url": PNG}, {"type": "image", "source": {}}, FILE,
     {"inline_data": {"mime_type": "image/png", "data": ""}}, {"fileData": {}}, {"type": "input_file"}],
)  # fmt: skip
@pytest.mark.parametrize("member", ["content", "parts"])
def test_files_are_counted_before_they_are_looked_at(part, member):
    require_few([{"role": "user", member: [part] * MAX_MEDIA}])
    with pytest.raises(InvalidRequest, match="files"):
        require_few([{"role": "user", member: [part]} for _ in range(MAX_MEDIA + 1)])
