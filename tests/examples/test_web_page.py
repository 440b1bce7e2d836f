"""The web page in Chromium, with its server and a gateway: everything as a visitor has it."""

import asyncio
import re

import orjson
import pytest
from conftest import AGENTS, Script
from playwright.async_api import Page, Route, expect
from toolbox import (
    END,
    EXAMPLES,
    KEY,
    TokenServer,
    chromium,
    copied,
    edit,
    message,
    with_an_ended_token,
)

SAMPLES = EXAMPLES.parent / "tests/platforms/samples/fastgpt"
DONE = b"event: answer\ndata: [DONE]\n\n"

pytestmark = pytest.mark.timeout(300)  # the first run may install Chromium


@pytest.fixture
async def page():
    async with chromium() as page:
        yield page


@pytest.fixture
def visit(page, gateway, tmp_path):
    """`await visit(url of an upstream)`: the page, with a gateway in front of that upstream, which
    `keeps` conversations if it has a database."""
    running = []

    async def visit(
        upstream: str, platform: str = "dify", *, keeps: bool = False, **agent: str
    ) -> Page:
        auth = {"anonymous": False, "keys": [{"name": "web", "key": KEY}]}
        agents = {"dify": {**AGENTS[platform], "base_url": upstream, **agent}}
        database = f"sqlite:///{tmp_path}/gateway.db" if keeps else "none"
        record = {"spool": str(tmp_path / "spool")}
        gw = await gateway(agents=agents, auth=auth, database=database, record=record)
        copied("token-server", tmp_path)
        edit(copied("web-page", tmp_path) / "index.html", ("http://localhost:3000", gw.url))
        server = TokenServer("server.py", gw.url, examples=tmp_path)
        running.append(server)
        await asyncio.to_thread(server.start)
        await page.goto(server.url)
        return page

    yield visit
    for server in running:
        server.stop()


async def ask(page: Page, query: str) -> None:
    await page.fill("[name=query]", query)
    await page.click("[name=send]")


def said(page: Page, who: str):
    return page.locator(f"li.{who} > p:first-child").last


async def answered(page: Page) -> str:
    await expect(page.locator("[name=send]")).to_be_enabled()
    return await said(page, "assistant").text_content()


async def test_an_answer_and_the_next_one_in_the_same_conversation(visit, demo):
    page = await visit((await demo("dify")).url)
    await ask(page, "第一个问题 🚲")
    assert "你问的是：“第一个问题 🚲”" in await answered(page)
    await ask(page, "第二个")
    assert "你上一个问题是“第一个问题 🚲”" in await answered(page)
    await page.click("[name=again]")
    await expect(page.locator(".chat li")).to_have_count(0)
    await ask(page, "第三个")
    assert "上一个问题" not in await answered(page)
    await expect(page.locator("li.error")).to_have_count(0)


async def test_a_stateless_agent_answers_every_question(visit, demo):
    page = await visit((await demo("openai", key=AGENTS["openai"]["api_key"])).url, "openai")
    for query in ("one", "two"):
        await ask(page, query)
        assert f'"{query}"' in await answered(page)
    await expect(page.locator("li.error")).to_have_count(0)


async def test_text_is_shown_as_it_arrives_and_stop_ends_it(visit, scripted):
    upstream = await scripted(Script([message("Hello")], end="hang"))
    page = await visit(upstream.url, mode="chat")
    await ask(page, "hi")
    await expect(said(page, "assistant")).to_have_text("Hello")
    await expect(page.locator("[name=send]")).to_be_disabled()
    await page.click("[name=stop]")
    assert await answered(page) == "Hello"
    await expect(page.locator("li.error")).to_have_count(0)
    async with asyncio.timeout(10):
        await upstream.gone.wait()  # the gateway has ended the answer at the platform


async def test_markup_in_an_answer_stays_text(visit, scripted):
    markup = "<img src=x onerror=\"document.title='no'\"><b>bold</b>"
    page = await visit((await scripted(Script([message(markup), END]))).url, mode="chat")
    await ask(page, "<i>hi</i>")
    assert await answered(page) == markup
    await expect(page.locator(".chat p *, .chat img")).to_have_count(0)


async def test_errors_are_the_gateways_sentences(visit, demo):
    page = await visit((await demo("dify")).url)
    await ask(page, "#fail")  # before the first word
    await expect(said(page, "error")).to_contain_text("dify")
    await ask(page, "#break")  # in the middle
    await expect(page.locator("li.error")).to_have_count(2)
    assert await said(page, "assistant").text_content() != ""
    await expect(said(page, "error")).to_contain_text("dify")
    await ask(page, "hi")  # and the page goes on
    assert '"hi"' in await answered(page)


async def test_a_token_that_has_ended_is_replaced(visit, demo, page):
    tokens = await with_an_ended_token(page)
    page = await visit((await demo("dify")).url)
    await ask(page, "hi")
    assert '"hi"' in await answered(page)
    await ask(page, "again")
    assert '"again"' in await answered(page)
    assert len(tokens) == 2  # and kept while it is valid


async def test_a_stream_that_is_cut_is_no_answer(visit, demo, page):
    """As a proxy cuts it; the gateway itself says what went wrong."""
    page = await visit((await demo("dify")).url)
    chunk = orjson.dumps({"id": "c", "choices": [{"delta": {"content": "Half"}}]}).decode()
    cut = {"body": f"data: {chunk}\n\n", "headers": {"Access-Control-Allow-Origin": "*"}}
    await page.route("**/api/v1/chat", lambda route: route.fulfill(**cut))
    await ask(page, "hi")
    await expect(said(page, "error")).to_have_text("The connection ended before the answer did.")
    assert await said(page, "assistant").text_content() == "Half"


async def test_an_error_of_something_in_between_is_told_by_its_status(visit, demo, page):
    page = await visit((await demo("dify")).url)
    page_of_a_proxy = {"status": 502, "body": "<h1>Bad</h1>"}
    headers = {"Access-Control-Allow-Origin": "*"}
    await page.route("**/api/v1/chat", lambda r: r.fulfill(**page_of_a_proxy, headers=headers))
    await ask(page, "hi")
    await expect(said(page, "error")).to_contain_text("502")


# Conversations, where the gateway has a database.


def titles(page: Page):
    return page.locator(".list .title")


async def renamed(page: Page, title: str) -> None:
    page.once("dialog", lambda dialog: dialog.accept(title))
    await page.click(".list [title=Rename]")


async def test_without_a_database_there_is_no_list(visit, demo):
    page = await visit((await demo("dify")).url)
    await ask(page, "hi")
    await answered(page)
    await expect(page.locator(".list")).to_be_hidden()
    await expect(page.locator(".thumbs")).to_have_count(0)


@pytest.mark.parametrize("platform", ["dify", "openai"])
async def test_earlier_conversations_are_listed_and_opened(visit, demo, platform):
    served = await demo(platform, key=AGENTS[platform]["api_key"])
    page = await visit(served.url, platform, keeps=True)
    await ask(page, "the first one")
    await expect(titles(page)).to_have_text(["the first one"])
    await page.click("[name=again]")
    await ask(page, "the second one")
    await expect(titles(page)).to_have_text(["the second one", "the first one"])
    await page.reload()
    await expect(page.locator(".chat li")).to_have_count(0)
    await titles(page).last.click()
    await expect(said(page, "user")).to_have_text("the first one")
    await expect(said(page, "assistant")).to_contain_text('"the first one"')
    await expect(titles(page).last).to_have_attribute("aria-current", "true")
    await ask(page, "and then?")
    await expect(page.locator("li.user")).to_have_count(2)
    await expect(titles(page)).to_have_text(["the first one", "the second one"])


async def test_long_lists_and_long_conversations_have_pages(visit, demo, page):
    page = await visit((await demo("dify")).url, keeps=True)
    for route in ("**/api/v1/conversations?*", "**/messages*"):
        await page.route(route, one_at_a_time)
    for query in ("a", "b"):
        await page.click("[name=again]")
        await ask(page, query)
        await answered(page)
    await ask(page, "c")
    await answered(page)
    await expect(titles(page)).to_have_text(["b"])
    await page.click("[name=more]")
    await expect(titles(page)).to_have_text(["b", "a"])
    await titles(page).first.click()
    await expect(page.locator("li.user")).to_have_text(["c"])
    await page.locator("[name=older]").evaluate("older => { older.click(); older.click() }")
    await expect(page.locator("li.user")).to_have_text(["b", "c"])
    await expect(page.locator("[name=older]")).to_be_hidden()


async def one_at_a_time(route: Route) -> None:
    url = route.request.url
    await route.continue_(url=f"{url}{'&' if '?' in url else '?'}limit=1")


async def test_a_conversation_is_renamed_and_deleted(visit, demo):
    served = await demo("dify", key=AGENTS["dify"]["api_key"])
    page = await visit(served.url, keeps=True)
    await ask(page, "hi")
    await answered(page)
    await renamed(page, "<b>自行车</b>")
    await expect(titles(page)).to_have_text(["<b>自行车</b>"])
    assert [talk.title for _, talk in served.demo.talks.items()] == ["<b>自行车</b>"]
    await page.click(".list [title=Delete]")  # Playwright dismisses a dialog that nobody handles
    await expect(titles(page)).to_have_count(1)
    page.once("dialog", lambda dialog: dialog.accept())
    await page.click(".list [title=Delete]")
    await expect(titles(page)).to_have_count(0)
    await expect(page.locator(".chat li")).to_have_count(0)  # it was open
    assert list(served.demo.talks.items()) == []


async def test_a_title_that_is_refused_says_why(visit, demo):
    page = await visit((await demo("dify")).url, keeps=True)
    await ask(page, "hi")
    await answered(page)
    await renamed(page, "x" * 200)
    await expect(said(page, "error")).to_contain_text("title")
    await expect(titles(page)).to_have_text(["hi"])


@pytest.mark.parametrize("platform", ["dify", "openai", "coze"])
async def test_thumbs_are_kept_changed_and_taken_back(visit, demo, platform):
    served = await demo(platform, key=AGENTS[platform]["api_key"])
    page = await visit(served.url, platform, keeps=True)
    await ask(page, "hi")
    good, bad = page.get_by_role("button", name="Good answer"), page.get_by_title("Bad answer")
    for click, pressed in ((good, ("true", "false")), (bad, ("false", "true"))):
        await click.click()
        await expect(good).to_have_attribute("aria-pressed", pressed[0])
        await expect(bad).to_have_attribute("aria-pressed", pressed[1])
    await titles(page).click()
    await expect(bad).to_have_attribute("aria-pressed", "true")
    await bad.click()
    await expect(bad).to_have_attribute("aria-pressed", "false")
    await titles(page).click()
    await expect(bad).to_have_attribute("aria-pressed", "false")


async def test_suggested_questions_are_buttons(visit, demo):
    page = await visit((await demo("dify", suggests=True)).url, keeps=True)
    await ask(page, "hi")
    await page.get_by_role("button", name="还能做什么？").press("Enter")
    await expect(said(page, "user")).to_have_text("还能做什么？")
    await expect(said(page, "assistant")).to_contain_text("你问的是：“还能做什么？”")


async def test_stop_is_asked_of_the_gateway_and_keeps_the_turn(visit, demo):
    page = await visit((await demo("dify", pace_s=0.05)).url, keeps=True)
    await ask(page, "#long")
    await expect(said(page, "assistant")).not_to_be_empty()
    async with page.expect_response("**/stop") as asked:
        await page.click("[name=stop]")
    assert (await (await asked.value).json())["data"]["stopped"] is True
    assert (await answered(page)).count("demo") < 20
    await expect(page.locator("li.error")).to_have_count(0)
    await expect(titles(page)).to_have_text(["#long"])


async def test_stop_cuts_the_stream_if_the_call_fails(visit, scripted, page):
    upstream = await scripted(Script([message("Hello")], end="hang"))
    page = await visit(upstream.url, mode="chat")
    await page.route("**/stop", lambda route: route.abort())
    await ask(page, "hi")
    await expect(said(page, "assistant")).to_have_text("Hello")
    await page.click("[name=stop]")
    assert await answered(page) == "Hello"
    async with asyncio.timeout(10):
        await upstream.gone.wait()


async def test_another_conversation_ends_the_answer(visit, scripted):
    upstream = await scripted(Script([message("Hello")], end="hang"))
    page = await visit(upstream.url, mode="chat")
    await ask(page, "hi")
    await expect(said(page, "assistant")).to_have_text("Hello")
    await page.click("[name=again]")
    async with asyncio.timeout(10):
        await upstream.gone.wait()
    await expect(page.locator(".chat li")).to_have_count(0)
    await expect(page.locator("[name=send]")).to_be_enabled()


@pytest.mark.parametrize("again", [False, True])
async def test_a_form_of_the_bot_is_filled_and_sent(visit, demo, again):
    page = await visit((await demo("dify")).url, keeps=True)
    await ask(page, "a refund #form")
    await expect(page.get_by_label("comment")).to_be_visible()
    if again:  # another day
        await page.reload()
        await titles(page).click()
    await page.get_by_label("comment").fill("too <late>")
    await page.get_by_role("button", name="驳回").press("Enter")
    await expect(said(page, "assistant")).to_have_text("“驳回”已收到 🎊。too <late>")
    await expect(page.locator("fieldset")).to_have_count(0)


async def test_a_choice_of_the_bot_has_buttons(visit, scripted):
    asks = Script([(SAMPLES / "interactive.sse").read_bytes()])
    goes_on = Script([b'event: answer\ndata: {"choices":[{"delta":{"content":"OK"}}]}\n\n', DONE])
    upstream = await scripted(asks, goes_on)
    page = await visit(upstream.url, "fastgpt", keeps=True)
    await ask(page, "我要请假")
    await page.get_by_role("button", name="病假").click()
    await expect(said(page, "assistant")).to_have_text("OK")
    sent = upstream.bodies("/chat/completions")[1]["messages"]
    assert sent[-1]["content"] == "病假"


async def test_sources_and_files_are_texts_and_links_of_the_web(visit, scripted):
    sources = [
        {"document_name": "<b>Manual</b>", "content": "<i>Oil</i> it.", "segment_id": "1"},
    ]
    end = {"event": "message_end", "conversation_id": "c", "id": "m",
           "metadata": {"retriever_resources": sources}}  # fmt: skip
    files = [b"data: " + orjson.dumps({"event": "message_file", "conversation_id": "c", "id": "f",
             "type": "image", "belongs_to": "assistant", "url": url}) + b"\n\n"
             for url in ("https://files.example.com/a.png", "javascript:alert(1)")]  # fmt: skip
    ending = b"data: " + orjson.dumps(end) + b"\n\n"
    page = await visit((await scripted(Script([message("See"), *files, ending]))).url, mode="chat")
    await ask(page, "hi")
    await page.get_by_text("Sources (1)").click()
    await expect(page.locator(".chat details li")).to_contain_text(["<b>Manual</b><i>Oil</i> it."])
    await expect(page.locator(".files")).to_contain_text("a.png")
    await expect(page.locator(".chat b, .chat i, .chat img")).to_have_count(0)
    addresses = await page.locator(".chat a").evaluate_all("links => links.map((a) => a.href)")
    assert addresses == ["https://files.example.com/a.png"]


async def test_it_fits_a_narrow_screen(visit, demo, page):
    await page.set_viewport_size({"width": 360, "height": 640})
    page = await visit((await demo("dify")).url, keeps=True)
    await ask(page, "Longwordwithoutanyspace" * 10 + " #form")
    await expect(page.get_by_label("comment")).to_be_visible()
    await expect(page.locator(".list")).to_be_visible()
    await page.locator("summary").press("Enter")
    await expect(titles(page)).to_be_visible()
    assert await page.evaluate("document.documentElement.scrollWidth") <= 360


def test_the_page_writes_no_markup():
    for file in (EXAMPLES / "web-page").glob("*.js"):
        assert not re.search("innerHTML|outerHTML|insertAdjacent", file.read_text("utf-8"))
