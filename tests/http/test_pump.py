"""The hot path: the fast path and the full path give the same answers, however reads are split."""

import asyncio
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from conftest import AGENTS, Script, leave_all_to_aiohttp, streamed
from decoding import decoder_for
from hypothesis import given, settings
from hypothesis import strategies as st
from test_connection import HEAD, Line
from test_connection import connected as connected_link
from test_fastgpt_captures import ANSWERS

from gateway.chat.attempt import State
from gateway.chat.run import Run
from gateway.http.fastwrite import ClientConnection
from gateway.http.pump import FastPath, Pump
from gateway.platforms.openai_compatible import explain_error
from gateway.protocol.messages import ChatRequest, Failed, Message
from gateway.protocol.passthrough import PassThrough
from gateway.protocol.render import StreamRenderer, error_frame
from gateway.protocol.sse import KEEP_ALIVE
from gateway.protocol.template import find_template
from gateway.server.aiohttp_internals import BoundedConnection
from gateway.server.connections import Server
from gateway.upstream.client import Exchange
from gateway.upstream.timers import Timers

PLATFORMS = Path(__file__).parent.parent / "platforms"
SAMPLES = sorted((PLATFORMS / "samples").glob("*/*.sse"))
CAPTURES = sorted((PLATFORMS / "captures" / "dify").glob("*/*stream*.http"))
FASTGPT = [capture for capture in ANSWERS if capture.is_stream]


class Carried:
    """A stream of one platform that a pump forwards; `learns` False: without the fast path."""

    def __init__(
        self, decoder: Any, learns: bool, max_answer: int = 1 << 30, total_s: float = 60.0
    ) -> None:
        chat = ChatRequest("m", (Message("user", "hi"),), "u", stream=True, call_id="c" * 32)
        timeouts = SimpleNamespace(total=600.0, idle=60.0, first_delta=60.0)
        target = SimpleNamespace(
            name="m",
            platform=None,
            agent=SimpleNamespace(timeouts=timeouts, max_answer=max_answer),
            redacted=lambda error: error,
        )
        self.connection, self.upstream, _ = connected_link()
        self.connection.data_received(HEAD)
        upstream = SimpleNamespace(timers=Timers(asyncio.get_running_loop()))
        run = Run(upstream, None, chat, [target])  # type: ignore[arg-type, list-item]
        attempt = self.attempt = run.attempt
        attempt._exchange, attempt.decoder = Exchange(self.connection), decoder
        attempt.state = State.ANSWERING
        attempt.read_at = asyncio.get_running_loop().time()
        ends_at = attempt.read_at + total_s
        self.caller, self.client = ClientConnection(), Line()
        renderer = StreamRenderer(chat, "m", 1, conversational=False)
        self.last = b""
        self.pump = Pump(
            self.caller, self.client, attempt, ends_at, renderer, 60.0, KEEP_ALIVE, None, self.end
        )  # type: ignore[arg-type]
        self.pump._left = 1000 if learns else 0
        self.shortcuts = 0
        self.work = asyncio.ensure_future(self.carry())

    async def carry(self) -> None:
        try:
            await self.pump.carry()
        finally:
            self.pump.stop()

    def end(self, deltas: list[Any], frames: bytes) -> None:
        failed = deltas[-1] if deltas else None
        is_failure = isinstance(failed, Failed)
        self.last = frames + error_frame(failed.error, False) if is_failure else frames

    async def read(self, reads: list[bytes]) -> bytes:
        """The caller's bytes for these network reads, without framing."""
        await asyncio.sleep(0)
        for data in reads:
            before = self.attempt.received
            self.connection.data_received(data)
            fast_path = self.connection.fast_path
            self.shortcuts += isinstance(fast_path, FastPath) and self.attempt.received == before
        self.connection.connection_lost(None)
        await self.work
        return unframed(self.client.written) + self.last


def unframed(raw: bytes) -> bytes:
    out = b""
    while raw:
        line, _, rest = raw.partition(b"\r\n")
        size = int(line, 16)
        assert rest[size : size + 2] == b"\r\n"
        out, raw = out + rest[:size], rest[size + 2 :]
    return out


def framed(event: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(event), event)


def events_of(raw: bytes) -> list[bytes]:
    return [block + b"\n\n" for block in raw.replace(b"\r\n", b"\n").split(b"\n\n") if block]


async def both(make: Any, reads: list[bytes], **settings: Any) -> tuple[bytes, bytes, int]:
    """(with the fast path, by the full path, how often the fast path was taken)."""
    short = Carried(make(), True, **settings)
    long = Carried(make(), False, **settings)
    got, want = await short.read(list(reads)), await long.read(list(reads))
    assert long.shortcuts == 0
    return got, want, short.shortcuts


def said(raw: bytes) -> Any:
    """What a client collects from it, and how the events are split."""
    events = [line for line in raw.split(b"\n\n") if line.startswith(b"data: ")]
    parsed = [e if e.endswith(b"[DONE]") else json.loads(e[6:]) for e in events]
    return parsed, streamed(raw)


def makers(path: Path) -> list[Any]:
    """A new decoder each time: the platform's, and for OpenAI also the pass-through one."""
    kind = path.parent.name
    out = [lambda: decoder_for(kind, path.stem)]
    if kind == "openai":
        out.append(lambda: PassThrough(lambda error: explain_error("x", error or {})))
    return out


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: f"{path.parent.name}/{path.stem}")
@pytest.mark.parametrize("seed", range(4))
async def test_both_ways_agree_on_every_sample(path, seed):
    events = events_of(path.read_bytes())
    reads = [framed(event) for event in events]
    if seed:
        raw, choose = b"".join(reads), random.Random(seed)
        cuts = sorted(choose.sample(range(1, len(raw)), min(len(raw) - 1, 3 * len(reads))))
        reads = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    for make in makers(path):
        got, want, _ = await both(make, reads)
        assert said(got) == said(want)


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: f"{path.parent.name}/{path.stem}")
async def test_both_ways_agree_on_every_capture(path):
    head, _, body = path.read_bytes().partition(b"\r\n\r\n")
    if b"chunked" not in head or b"event-stream" not in head:
        return
    reads = []
    while body:
        line, _, rest = body.partition(b"\r\n")
        if not line or not (size := int(line, 16)):
            break
        reads.append(body[: len(line) + size + 4])
        body = body[len(line) + size + 4 :]
    name = "workflow" if path.stem.startswith("workflow") else "chat"
    got, want, taken = await both(lambda: decoder_for("dify", name), reads)
    assert said(got) == said(want)
    if "400_deltas" in path.stem:
        assert taken > 300


@pytest.mark.parametrize("version", ["4.8.11", "4.8.20", "4.9.7", "4.12.2"])
async def test_both_ways_agree_on_fastgpts_captures(version):
    """As a proxy frames them; FastGPT itself sends an event in two chunks, which takes the full
    path."""
    for capture in FASTGPT:
        if capture.version == version and len(capture.body) < 100_000:
            reads = [framed(event) for event in events_of(capture.body)]
            got, want, _ = await both(lambda: decoder_for("fastgpt", ""), reads)
            assert said(got) == said(want)


async def test_a_mark_takes_the_long_way_and_the_rest_does_not():
    mark = ["[", "6881f0a1b2c3d4e5f6071829", "](", "QUOTE", ")"]
    texts = [*["天 "] * 50, *mark, "。", *["a[0] "] * 5, *["b "] * 50, "[", "[", "c", "["]
    reads = [framed((EVENTS["fastgpt"] % json.dumps(text)).encode()) for text in texts]
    got, want, taken = await both(lambda: decoder_for("fastgpt", ""), reads)
    assert said(got) == said(want)
    assert said(got)[1]["text"] == "天 " * 50 + "。" + "a[0] " * 5 + "b " * 50 + "[[c["
    assert taken > 90


EVENTS = {
    "dify": 'data: {"event": "message", "task_id": "t", "answer": %s, "created_at": 1}\n\n',
    "dify workflow": 'data: {"event":"text_chunk","task_id":"t","data":{"text":%s}}\n\n',
    "fastgpt": 'event: answer\ndata: {"choices":[{"delta":{"role":"assistant","content":%s}}]}\n\n',
    "coze": 'event:conversation.message.delta\ndata:{"id":"1","type":"answer","content":%s}\n\n',
    "zhipu": 'data: {"id":"1","choices":[{"index":0,"delta":{"content":%s}}]}\n\n',
    "zhipu app": 'data: {"choices":[{"delta":{"content":{"type":"text","msg":%s}}}]}\n\n',
    "openai": 'data: {"id":"1","choices":[{"index":0,"delta":{"content":%s},"finish_reason":null}]}\n\n',
}


def make_for(name: str) -> Any:
    kind, _, variant = name.partition(" ")
    if kind == "openai":
        return lambda: PassThrough(lambda error: explain_error("x", error or {}))
    return lambda: decoder_for(kind, variant)


@pytest.mark.parametrize("name", EVENTS)
async def test_nearly_all_of_a_plain_answer_takes_the_shortcut(name):
    reads = [framed((EVENTS[name] % json.dumps(f"word {i} ")).encode()) for i in range(50)]
    got, want, taken = await both(make_for(name), reads)
    assert said(got) == said(want)
    assert said(got)[1]["text"] == "".join(f"word {i} " for i in range(50))
    assert taken >= 45


TEXTS = st.lists(
    st.text(min_size=1, max_size=20)
    | st.sampled_from(["\u2028", '"', "\\", "\\u0041", "你好", "😀", "[", "【", "[6881"]),
    max_size=12,
)


@pytest.mark.parametrize("name", EVENTS)
@given(texts=TEXTS, is_ascii=st.booleans(), data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_text_arrives_as_it_was_said(name, texts, is_ascii, data):
    texts = ["opening"] + [t.encode("utf-8", "replace").decode() for t in texts]
    events = [EVENTS[name] % json.dumps(text, ensure_ascii=is_ascii) for text in texts]
    raw = b"".join(framed(event.encode()) for event in events)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(raw) - 1), max_size=8)))
    reads = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    got, want, _ = asyncio.run(both(make_for(name), reads))
    assert said(got) == said(want)
    assert said(got)[1]["text"] == "".join(texts)
    if not name.startswith("openai"):
        assert not {"\u2028", "\u2029", "\x85"} & set(got.decode())


@pytest.mark.parametrize("name", EVENTS)
@pytest.mark.parametrize(
    "literal",
    ["null", "12", "[]", '""', '"a", "b": "c"', '"a" ', '"\\x"', '"\x01"', '"\\ud83d"', '"', "{}"],
)
async def test_what_is_no_plain_string_is_left_to_the_decoder(name, literal):
    texts = ['"one"', '"two"', '"three"', literal, '"four"', '"five"']
    reads = [framed((EVENTS[name] % text).encode()) for text in texts]
    got, want, taken = await both(make_for(name), reads)
    assert said(got)[1] == said(want)[1] if name != "openai" else got == want
    assert taken


@pytest.mark.parametrize("line", [b"%X", b"0%x", b"%x ", b"%x;a=b", b" %x", b"+%x", b"0x%x"])
async def test_odd_framing_is_read_as_the_parser_reads_it(line):
    events = [(EVENTS["dify"] % json.dumps(f"word {i} ")).encode() for i in range(4)]
    reads = [framed(events[0]), framed(events[1])]
    reads += [line % len(event) + b"\r\n" + event + b"\r\n" for event in events[2:]]
    got, want, _ = await both(make_for("dify"), reads)
    if "error" in streamed(want):
        assert "error" in streamed(got) or line in (b" %x", b"+%x", b"0x%x")
    else:
        assert said(got) == said(want)


async def test_a_wrong_size_is_no_shortcut():
    event = (EVENTS["dify"] % '"word"').encode()
    wrong = b"%x\r\n%b\r\n" % (len(event) + 1, event)
    got, want, _ = await both(make_for("dify"), [framed(event), framed(event), wrong, b"0\r\n\r\n"])
    assert said(got)[1] == said(want)[1]


async def test_the_longest_answer_is_as_long_by_the_shortcut():
    reads = [framed((EVENTS["dify"] % json.dumps(f"word {i} ")).encode()) for i in range(100)]
    got, want, taken = await both(make_for("dify"), reads, max_answer=3000)
    assert taken > 10
    assert "longer than 3000 bytes" in streamed(got)["error"]["message"]
    assert abs(len(streamed(got)["text"]) - len(streamed(want)["text"])) < 30  # framing counts


async def test_a_caller_who_does_not_read_makes_the_upstream_wait():
    carried = Carried(make_for("dify")(), True)
    await asyncio.sleep(0)
    carried.caller.become(is_full=True)
    assert carried.upstream.is_paused
    carried.caller.become(is_full=False)
    assert not carried.upstream.is_paused
    carried.work.cancel()
    await asyncio.wait({carried.work})
    assert carried.caller.on_full is None


async def test_a_caller_that_does_not_read_from_the_start_is_awaited():
    carried = Carried(make_for("dify")(), True)
    carried.connection.data_received(
        framed((EVENTS["dify"] % '"word"').encode())
    )  # waits for the pump
    carried.caller.become(is_full=True)
    await asyncio.sleep(0)
    assert b"word" in carried.client.written
    assert carried.upstream.is_paused
    carried.work.cancel()
    await asyncio.wait({carried.work})
    assert not carried.upstream.is_paused  # draining the answer resumes reading


async def test_a_connection_of_ours_that_is_lost_is_written_to_no_more():
    served: Any = web.Server(lambda request: None)  # type: ignore[return-value]
    connection: Any = Server(served, BoundedConnection)()
    connection.connection_made(Line())
    told: list[bool] = []
    connection.on_full = told.append
    connection.connection_lost(None)
    assert told == [True]
    await asyncio.sleep(0)


async def test_the_fast_path_adds_no_repeated_answer():
    said_again = 'data: {"event": "message", "task_id": "t", "answer": %s}\n\n'
    piece = 'data: {"event": "agent_message", "task_id": "t", "answer": %s}\n\n'
    events = [piece % '""', said_again % '"hi"', said_again % '"hi"', said_again % '"hi there"']
    reads = [framed(event.encode()) for event in events]
    got, want, _ = await both(make_for("dify"), reads)
    assert said(got)[1]["text"] == said(want)[1]["text"] == "hi there"


async def test_a_comment_that_fills_the_buffer_leaves_one_timer(monkeypatch):
    carried = Carried(make_for("dify")(), True)
    await asyncio.sleep(0)
    clock, timers = carried.attempt.timers, []
    carried.pump.written_at -= 60  # a comment is due
    set_timer = clock.set
    monkeypatch.setattr(clock, "set", lambda *given: timers.append(set_timer(*given)) or timers[-1])
    carried.client.write = lambda data: carried.caller.become(is_full=True)
    carried.pump._check_deadlines()
    assert [timer.act is None for timer in timers] == [True, False]
    carried.work.cancel()
    await asyncio.wait({carried.work})
    assert all(timer.act is None for timer in timers)


@pytest.mark.parametrize("is_full", [False, True])
async def test_total_ends_the_pump_even_if_the_caller_does_not_read(is_full):
    carried = Carried(make_for("dify")(), True, total_s=0.05)
    await asyncio.sleep(0)
    carried.caller.become(is_full)
    with pytest.raises(TimeoutError):
        await carried.work


async def test_the_last_frames_are_left_to_be_sent_with_the_end():
    carried = Carried(make_for("dify")(), True)
    await asyncio.sleep(0)
    carried.connection.data_received(framed((EVENTS["dify"] % '"word"').encode()))
    carried.connection.data_received(framed(b'data: {"event": "message_end"}\n\n') + b"0\r\n\r\n")
    await carried.work
    assert carried.last.endswith(b"data: [DONE]\n\n")
    assert b"[DONE]" not in carried.client.written


async def test_a_disconnect_ends_the_pump_immediately():
    carried = Carried(make_for("dify")(), True)
    await asyncio.sleep(0)
    event = framed((EVENTS["dify"] % '"word"').encode())
    carried.connection.data_received(event)
    written = carried.client.written
    carried.work.cancel()
    await asyncio.wait({carried.work})
    carried.connection.data_received(event)
    assert carried.client.written == written
    assert await carried.connection.read()  # for a drain of the answer


@pytest.mark.parametrize(
    ("event", "found"),
    [
        (b'data: {"answer": "hi"}\n\n', (b'data: {"answer": ', b"}\n\n")),
        (b'data: {"a":"answer","answer":"hi","z":1}\n\n', (b'data: {"a":"answer","answer":', b',"z":1}\n\n')),
        (b'data: {"answer":"hi","b":{"answer":"hi"}}\n\n', None),
        (b'data: {"x\\"answer":"hi"}\n\n', None),
        (b'data: {"text":"\\"answer\\":\\"hi\\""}\n\n', None),
        (b'data: {"answer":"other"}\n\n', None),
        (b'data: {"answer":"hi"}\n\ndata: {"answer":"hi"}\n\n', None),
        (b'data: {"answer":"hi"}', None),
    ],
)  # fmt: skip
def test_a_pattern_is_found_where_there_is_just_one(event, found):
    pattern = find_template(event, (b"answer",), None, "hi")
    assert (pattern and pattern[:2]) == found


@pytest.mark.parametrize("kind", ["dify", "coze", "fastgpt", "zhipu", "openai"])
async def test_with_an_aiohttp_unknown_to_us_the_answer_is_the_same(
    kind, gateway, scripted, monkeypatch
):
    files = {"fastgpt": "detail", "openai": "stream-usage"}
    sample = PLATFORMS / "samples" / kind / f"{files.get(kind, 'chat')}.sse"
    upstream = await scripted(Script(list(events_of(sample.read_bytes()))))
    mode = {"mode": "chat"} if kind == "dify" else {}
    agents = {"bot": {**AGENTS[kind], "base_url": upstream.url, **mode}}
    carried: list[Any] = []
    carry = Pump.carry
    monkeypatch.setattr(Pump, "carry", lambda self: carried.append(self) or carry(self))
    got = []
    for way in ("direct", "aiohttp"):
        if way == "aiohttp":
            leave_all_to_aiohttp(monkeypatch)
        gw = await gateway(agents=agents)
        async with gw.complete("bot", stream=True) as answer:
            got.append(streamed(await answer.read()))
    assert len(carried) == 1
    for one in got:
        one["ids"] = len(one["ids"])
        if one["gateway"]:
            for name in ("conversation_id", "message_id"):  # FastGPT's are made by the gateway
                one["gateway"].pop(name, None)
    assert got[0] == got[1]
    assert got[0]["done"]


def utf16_pieces(text: str, cuts: list[int]) -> list[bytes]:
    """JavaScript's JSON for a text that is split between any two UTF-16 units."""
    whole = text.encode("utf-16-le")
    at = [2 * cut for cut in sorted(cuts)]
    pieces = [whole[a:b] for a, b in zip([0, *at], [*at, len(whole)], strict=True)]
    return [json.dumps(p.decode("utf-16-le", "surrogatepass")).encode() for p in pieces]


@pytest.mark.parametrize("name", EVENTS)
@given(text=st.text(st.sampled_from('ab😀👍"\\你'), min_size=1, max_size=8), data=st.data())
@settings(max_examples=40, deadline=None)
def test_text_cut_in_the_middle_of_characters_arrives_whole(name, text, data):
    size = len(text.encode("utf-16-le")) // 2
    literals = utf16_pieces(text, data.draw(st.lists(st.integers(0, size), max_size=5)))
    head, tail = (part.encode() for part in EVENTS[name].split("%s"))
    end = [head + b'"!"' + tail]
    raw = b"".join(framed(head + literal + tail) for literal in literals)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(raw) - 1), max_size=8)))
    reads = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    reads += map(framed, end)
    got, want, _ = asyncio.run(both(make_for(name), reads))
    assert said(got) == said(want)
    assert said(got)[1]["text"] == text + "!"
