"""The mini-program under Node, with a stand-in for `wx`, and checked against WeChat's own types."""

import asyncio
import json

import pytest
from aiohttp import web
from conftest import AGENTS, Script
from toolbox import END, EXAMPLES, HERE, KEY, copied, edit, message, modules, node, run

pytestmark = pytest.mark.timeout(300)  # the first run may install npm's packages

PROGRAM = EXAMPLES / "mini-program"
TEXTS = [
    "plain",
    "你好，世界",
    "é ß ñ",
    "🚲👩‍👩‍👧‍👦🇨🇳",
    "a你é🚲z",
    "\u0000\u007f\u0080\u07ff\u0800\uffff\U00010000\U0010ffff",
]


def decode(raw: bytes) -> set[str]:
    """What the decoder makes of these bytes, over all ways to cut them."""
    options = {"gateway": "", "agent": "", "tokens": "", "steps": [["decode", raw.hex()]]}
    (ways,) = json.loads(run(node(), HERE / "wx.cjs", PROGRAM, json.dumps(options)))
    assert len(ways) == len(raw) + 3
    return set(ways)


@pytest.mark.parametrize("text", TEXTS)
def test_characters_are_whole_wherever_they_are_cut(text):
    assert decode(text.encode()) == {text}


@pytest.mark.parametrize(
    "raw", [b"a\x80b", b"\xe4\xbd", b"\xe4\xbdz", b"\xff\xfe", b"\xf7\xbf\xbf\xbf!"]
)
def test_bytes_that_are_no_text_break_nothing_else(raw):
    (text,) = decode(raw)
    plain = [chr(byte) for byte in raw if byte < 0x80]
    assert [character for character in text if character != "\ufffd"] == plain


def test_wx_is_used_as_its_types_say(tmp_path):
    program = copied("mini-program", tmp_path)
    options = {
        "strict": True, "noImplicitAny": False, "noEmit": True, "allowJs": True, "checkJs": True,
        "target": "es2022", "lib": ["es2022"], "module": "node20", "skipLibCheck": True,
        "typeRoots": [str(modules())], "types": ["miniprogram-api-typings"],
    }  # fmt: skip
    config = {"compilerOptions": options, "files": ["gateway.js"]}
    (program / "tsconfig.json").write_text(json.dumps(config))
    run(node(), modules() / "typescript/bin/tsc", "--project", program)
    edit(program / "gateway.js", ("enableChunked", "enableChunks"))
    with pytest.raises(AssertionError, match="enableChunks"):
        run(node(), modules() / "typescript/bin/tsc", "--project", program)


def test_the_pages_that_app_json_names_are_there():
    for page in json.loads((PROGRAM / "app.json").read_text("utf-8"))["pages"]:
        for ending in ("js", "json", "wxml"):
            assert (PROGRAM / f"{page}.{ending}").exists()


@pytest.fixture
async def play(gateway, stack, tmp_path):
    """`await play(url of an upstream, steps…)`: the outcome of each step."""

    async def play(upstream: str, *steps, size=1, errors="chunk", ended=0, page=False, **agent):
        auth = {
            "anonymous": False,
            "keys": [{"name": "wx", "key": KEY, "permissions": ["chat", "upload"]}],
        }
        agents = {"dify": {**AGENTS["dify"], "base_url": upstream, **agent}}
        database, record = f"sqlite:///{tmp_path}/gateway.db", {"spool": str(tmp_path / "spool")}
        gw = await gateway(agents=agents, auth=auth, database=database, record=record)
        play.codes = []

        async def token(request: web.Request) -> web.Response:
            """The operator's server; WeChat tells it whose code this is."""
            play.codes.append((await request.json())["code"])
            wish = {"user": "openid-7", "permissions": ["chat", "upload"]}
            status, body = await gw.api("POST", "/tokens", play.key, wish)
            if len(play.codes) <= ended:
                body["data"]["token"] += "x"  # no longer valid
            return web.json_response(body, status=status)

        app = web.Application()
        app.router.add_post("/token", token)
        runner = web.AppRunner(app)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        tokens = f"http://127.0.0.1:{runner.addresses[0][1]}/token"
        program = copied("mini-program", tmp_path)
        hosts = ("https://gateway.example.com", gw.url), ("https://www.example.com/token", tokens)
        edit(program / "pages/chat/chat.js", *hosts)
        options = {
            "gateway": gw.url,
            "agent": "dify",
            "tokens": tokens,
            "size": size,
            "errors": errors,
        }
        given = json.dumps({**options, "page": page, "steps": steps})
        return json.loads(await asyncio.to_thread(run, node(), HERE / "wx.cjs", program, given))

    play.key = KEY
    return play


@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_answers_stream_in_one_conversation(play, demo, size):
    first, second = await play(
        (await demo("dify")).url, ["ask", "第一个问题 🚲"], ["ask", "第二个"], size=size
    )
    assert first["done"] is second["done"] is True
    assert "你问的是：“第一个问题 🚲”" in first["text"]
    assert first["pieces"] > 5
    assert "你上一个问题是“第一个问题 🚲”" in second["text"]
    assert play.codes == ["code-of-wx-login"]  # one token for both


@pytest.mark.parametrize("errors", ["chunk", "data"])
async def test_errors_are_the_gateways_sentences(play, demo, errors):
    before, amid, after = await play(
        (await demo("dify")).url, ["ask", "#fail"], ["ask", "#break"], ["ask", "hi"], errors=errors
    )
    assert before["text"] == ""
    assert "dify" in before["done"]
    assert amid["text"] != ""
    assert "dify" in amid["done"]
    assert after["done"] is True


async def test_an_error_of_the_token_server_is_shown(play, demo):
    play.key = "sk-of-another-operator"
    (outcome,) = await play((await demo("dify")).url, ["ask", "hi"])
    assert "API key" in outcome["done"]


@pytest.mark.parametrize("errors", ["chunk", "data"])
async def test_a_token_that_has_ended_is_replaced(play, demo, errors):
    first, second = await play(
        (await demo("dify")).url, ["ask", "one"], ["ask", "two"], ended=1, errors=errors
    )
    assert first["done"] is second["done"] is True
    assert '"one"' in first["text"]
    assert 'previous question was "one"' in second["text"]
    assert len(play.codes) == 2


async def test_a_second_refusal_is_an_error(play, demo):
    (outcome,) = await play((await demo("dify")).url, ["ask", "hi"], ended=9)
    assert "token" in outcome["done"]
    assert len(play.codes) == 2


async def test_stop_ends_the_answer_at_the_platform(play, scripted):
    upstream = await scripted(Script([message("Hello")], end="hang"))
    stop = {"stopAt": "text"}
    (outcome,) = await play(upstream.url, ["ask", "hi", stop], mode="chat")
    assert outcome == {"text": "Hello", "pieces": 1, "done": False}
    async with asyncio.timeout(10):
        await upstream.gone.wait()


async def test_stop_before_the_request_asks_nothing(play, scripted):
    upstream = await scripted(Script([message("Hello"), END]))
    (outcome,) = await play(upstream.url, ["ask", "hi", {"stopAt": "start"}], mode="chat")
    assert outcome == {"text": "", "pieces": 0, "done": False}
    assert upstream.requests == []


async def test_an_upload_goes_with_the_question(play, demo, tmp_path):
    file = tmp_path / "照片.png"
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 100)
    uploaded, asked = await play((await demo("dify")).url, ["upload", str(file)], ["ask", "看图"])
    assert uploaded["name"] == file.name
    assert asked["done"] is True
    assert file.name in asked["text"]


async def test_an_upload_that_is_refused_says_why(play, demo, tmp_path):
    file = tmp_path / "program.exe"
    file.write_bytes(b"MZ")
    (outcome,) = await play((await demo("dify")).url, ["upload", str(file)])
    assert "exe" in outcome


async def test_the_page_shows_questions_answers_and_errors(play, demo, tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 100)
    steps = ["send", "看图", {"file": str(file)}], ["send", "#fail"], ["send", "第三个"]
    *_, shown = await play((await demo("dify")).url, *steps, page=True)
    assert [one["role"] for one in shown["messages"]] == [
        "user",
        "assistant",
        "user",
        "error",
        "user",
        "assistant",
    ]
    assert "a.png" in shown["messages"][1]["text"]
    assert "dify" in shown["messages"][3]["text"]
    assert shown["messages"][4]["text"] == "第三个"
    assert shown["busy"] is False
    assert shown["toasts"] == []


async def test_earlier_conversations_are_listed_and_continued(play, demo):
    _, before, turns, _, after = await play(
        (await demo("dify")).url,
        ["ask", "one"],
        ["conversations"],
        ["open", 0],
        ["ask", "two"],
        ["conversations"],
    )
    assert [one["title"] for one in before["conversations"]] == ["one"]
    assert [turn["question"] for turn in turns["messages"]] == ["one"]
    assert len(after["conversations"]) == 1


async def test_an_opinion_is_kept(play, demo):
    served = await demo("dify")
    _, kept, turns = await play(served.url, ["ask", "one"], ["rate", 0, "like"], ["open", 0])
    assert kept["rating"] == "like"
    assert turns["messages"][0]["feedback"]["rating"] == "like"


async def test_calls_that_fail_say_why(play, demo):
    _, refused = await play((await demo("dify")).url, ["ask", "one"], ["open", 0, "nowhere"])
    assert isinstance(refused, str)
    assert "place" in refused


async def test_stop_is_asked_of_the_gateway_first(play, demo):
    stop = {"stopAt": "text"}
    served = await demo("dify", pace_s=0.05)
    outcome, sent = await play(served.url, ["ask", "#long", stop], ["sent"], size=100_000)
    assert (outcome["done"], outcome["pieces"]) == (False, 1)
    assert sent[-1].endswith("/stop")
    assert "abort" not in sent  # the stream has ended as a whole one does


async def test_stop_cuts_the_stream_of_an_answer_without_an_id(play, scripted):
    """Nothing has come of it, so there is no conversation to name."""
    upstream = await scripted(Script([message("Hello")], end="hang", before_headers_s=3600))
    steps = ["ask", "hi", {"stopAt": "sent"}], ["sent"]
    outcome, sent = await play(upstream.url, *steps, mode="chat")
    assert outcome == {"text": "", "pieces": 0, "done": False}
    assert sent[-2:] == ["POST /api/v1/chat", "abort"]


async def test_the_page_opens_rates_and_begins(play, demo):
    sent, opened, rated, back, begun = await play(
        (await demo("dify")).url,
        ["send", "one"],
        ["first", "open"],
        ["tap", "rate", {"index": 1, "value": "like"}],
        ["tap", "rate", {"index": 1, "value": "like"}],
        ["tap", "begin", {}],
        page=True,
    )
    assert [one["title"] for one in sent["conversations"]] == ["one"]
    assert opened["messages"][1]["id"] == sent["messages"][1]["id"]
    assert [each["messages"][1].get("rating") for each in (rated, back)] == ["like", None]
    assert begun["messages"] == []
    assert begun["toasts"] == []
