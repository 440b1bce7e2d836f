import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import UpstreamFailed
from gateway.protocol import sse
from gateway.protocol.sse import Event, Life, Parser


def parse(*chunks: bytes) -> list[Event]:
    parser = Parser()
    return [event for chunk in chunks for event in parser.feed(chunk)] + parser.close()


def test_one_space_after_the_colon_is_optional():
    assert parse(b"data:a\n\ndata: b\n\ndata:  c\n\n") == [("", b"a"), ("", b"b"), ("", b" c")]


def test_name_id_and_comments():
    block = b": hello\nid: 7\nevent: answer\nretry: 3\ndata: {}\n\n"
    assert parse(block) == [("answer", b"{}")]


def test_several_data_lines_are_joined():
    assert parse(b"data: a\ndata: b\n\n") == [("", b"a\nb")]


def test_a_block_without_data_is_no_event():
    assert parse(b"event: ping\n\n: keep-alive\n\n") == []


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_all_three_line_ends(end):
    raw = b"event: a\ndata: 1\n\ndata: 2\n\n".replace(b"\n", end)
    assert parse(raw) == [("a", b"1"), ("", b"2")]
    assert parse(*(raw[i : i + 1] for i in range(len(raw)))) == [("a", b"1"), ("", b"2")]


def test_a_crlf_cut_in_the_middle_is_one_line_end():
    assert parse(b"data: a\r", b"\n", b"\ndata: b\n\n") == [("", b"a"), ("", b"b")]


def test_unicode_line_separators_do_not_end_a_line():
    data = '{"t":"a\u2028b\u0085c"}'.encode()
    assert parse(b"data: " + data + b"\n\n") == [("", data)]


def test_a_character_cut_in_half_is_whole_again():
    raw = "data: 你好😀\n\n".encode()
    for at in range(len(raw)):
        assert parse(raw[:at], raw[at:]) == [("", "你好😀".encode())]


def test_a_byte_order_mark_is_not_part_of_the_first_line():
    assert parse(b"\xef\xbb\xbfdata: 1\n\n") == [("", b"1")]


def test_the_last_event_may_lack_its_blank_line():
    assert parse(b"data: 1\n\ndata: [DONE]") == [("", b"1"), ("", b"[DONE]")]


@pytest.mark.parametrize("line", [b"x", b"event: x", b": x", b"\x00", b"dat"])
def test_non_data_over_the_limit_is_refused_in_any_pieces(line):
    for size in (1, 10, 1000):
        parser = Parser(limit=100)
        raw = line + b"x" * 200 + b"\n\n"
        with pytest.raises(UpstreamFailed, match="more than 100 bytes"):
            for at in range(0, len(raw), size):
                parser.feed(raw[at : at + size])


LINES = st.sampled_from(
    [b"data: x", b"data:", b"event: n", b": c", b"", b"id: 1", b"data: \xe4\xbd\xa0"]
)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


@settings(max_examples=500)
@given(st.lists(st.tuples(LINES, ENDS), max_size=20), st.data())
def test_any_split_of_any_stream_gives_the_same_events(lines, data):
    raw = b"".join(line + end for line, end in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    assert parse(*pieces) == parse(raw)


@given(st.binary(max_size=500), st.integers(1, 20))
def test_any_bytes_are_survived(raw, size):
    assert parse(*(raw[i : i + size] for i in range(0, len(raw), size))) == parse(raw)


def test_json_has_no_unicode_line_ends():
    json = '"a\u2028b\u2029c\u0085d–"'.encode()
    assert sse.one_line(json) == '"a\\u2028b\\u2029c\\u0085d–"'.encode()
    assert len(sse.one_line(json).decode().splitlines()) == 1


def test_nothing_is_read_after_a_too_long_event():
    parser = Parser(limit=100)
    assert parser.feed(b"data: 1\n\nid: " + b"x" * 200 + b"\n\n") == [("", b"1")]
    with pytest.raises(UpstreamFailed):
        parser.feed(b"data: 2\n\n")


@pytest.mark.parametrize(
    ("chunks", "life"),
    [
        ([b": ping\n\n"], Life.NONE),
        ([b": pi", b"ng\n"], Life.NONE),
        ([b"\n\n"], Life.NONE),
        ([b"event: ping\n\n"], Life.SHOWN),
        ([b"data: {"], Life.GROWING),
        ([b"data: {", b'"a": "\n'], Life.GROWING),
        ([b"data: {", b": no comment"], Life.GROWING),
        ([b"data: 1\n\n"], Life.NONE),  # its reader judges the event itself
        ([b"data: 1\n\n: ping\n\ndata: 2"], Life.GROWING),
        ([b": ping\n\n: ping", b"\n\n"], Life.NONE),
    ],
)
def test_bytes_outside_events_show_life_or_not(chunks, life):
    parser = Parser()
    for chunk in chunks:
        parser.feed(chunk)
    assert parser.life is life


def test_an_event_of_many_lines_costs_what_it_is_long():
    """Byte by byte: if the event were searched at each line end, it would take minutes."""
    parser, line = Parser(), b"data: x\n"
    for _ in range(100_000):
        for i in range(0, len(line), 4):
            parser.feed(line[i : i + 4])
    assert parser.feed(b"\n") == [("", b"\n".join([b"x"] * 100_000))]


@pytest.mark.parametrize("size", [1, 10, 1000])
def test_data_over_the_limit_is_read_if_needed(size):
    asked = []

    def skips(name: str, head: bytes) -> bool:
        asked.append((name, b'"tool"' in head))
        return b'"tool"' in head

    tool = b'event: a\ndata: {"tool":"' + b"x" * 200 + b'"}\n\n'
    text = b'event: b\ndata: {"text":"' + b"x" * 200 + b'"}\n\n'
    raw = tool + text + b": " + b"c" * 90 + b"\n\n" + tool + b"data: 1\n\n"
    parser, got = Parser(100, skips), []
    for at in range(0, len(raw), size):
        got += parser.feed(raw[at : at + size])
        assert sum(map(len, parser._pieces)) + sum(map(len, parser._data)) <= 230
    assert got == [("b", text[15:-2]), ("", b"1")]
    assert asked == [("a", True), ("b", False), ("a", True)]


NAMED = b'event: a\ndata: {"n":1}\nevent: b\ndata: {"n":2}\nevent: c\ndata: [DONE]\n'


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("last", [b"", b"\n"])
def test_events_with_one_line_end_between_them_are_events(end, size, last):
    plain = (
        NAMED.replace(b"event: a\n", b"").replace(b"event: b\n", b"").replace(b"event: c\n", b"")
    )
    for raw, names in ((NAMED, "abc"), (plain, ["", "", ""])):
        raw = (raw + last).replace(b"\n", end)
        got = parse(*(raw[at : at + size] for at in range(0, len(raw), size)))
        assert got == list(zip(names, [b'{"n":1}', b'{"n":2}', b"[DONE]"], strict=True))


def test_an_unterminated_event_ends_when_the_next_begins():
    parser = Parser()
    assert parser.feed(b'data: {"n":1}\n') == []
    assert parser.feed(b'data: {"n":2}\n') == [("", b'{"n":1}'), ("", b'{"n":2}')]
    assert parser.feed(b"data: [DONE]\n") == [("", b"[DONE]")]


def test_an_event_of_too_many_lines_is_refused():
    parser = Parser()
    with pytest.raises(UpstreamFailed, match="lines"):
        parser.feed(b"data: xy\n" * (sse.MAX_LINES + 1))


def test_json_over_several_lines_stays_one_event():
    assert parse(b'data: {"a":{}\ndata: ,"b":1}\n\n') == [("", b'{"a":{}\n,"b":1}')]
    assert parse(b'data: [\ndata: {"a":1}\ndata: ]\n\n') == [("", b'[\n{"a":1}\n]')]
