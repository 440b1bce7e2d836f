"""The web page in Chromium, with its server and a gateway: everything as a visitor has it."""

import asyncio

import orjson
import pytest
from conftest import AGENTS, Script
from playwright.async_api import Page, expect
from toolbox import END, KEY, TokenServer, chromium, copied, edit, message, with_an_ended_token

pytestmark = pytest.mark.timeout(300)  # the first run may install Chromium


@pytest.fixture
async def page():
    async with chromium() as page:
        yield page


@pytest.fixture
def visit(page, gateway, tmp_path):
    """`await visit(url of an upstream)`: the page, with a gateway in front of that upstream."""
    running = []

    async def visit(upstream: str, platform: str = "dify", **agent: str) -> Page:
        auth = {"anonymous": False, "keys": [{"name": "web", "key": KEY}]}
        agents = {"dify": {**AGENTS[platform], "base_url": upstream, **agent}}
        gw = await gateway(agents=agents, auth=auth)
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
    return page.locator(f"li.{who}").last


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
    await expect(page.locator("li")).to_have_count(0)
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
    await expect(page.locator("li *")).to_have_count(0)


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
