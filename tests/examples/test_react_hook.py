"""The React hook: checked by TypeScript, then used by a component in Chromium."""

import asyncio
import json
from pathlib import Path

import pytest
from conftest import AGENTS, Script
from playwright.async_api import Page, expect
from toolbox import (
    END,
    EXAMPLES,
    KEY,
    TokenServer,
    chromium,
    copied,
    message,
    modules,
    node,
    run,
    with_an_ended_token,
)

pytestmark = pytest.mark.timeout(300)  # the first run may install Chromium and npm's packages

APP = """
import { StrictMode } from 'react'
import { createRoot } from 'react-dom/client'
import { useChat, type Message, type Status } from './useChat'

const shown: Status[] = []
const of = ({ role }: Message) => role
const about = ({ id, rating }: Message) => JSON.stringify([Boolean(id), rating])

function App({ gateway }: { gateway: string }) {
  const chat = useChat({ gateway, agent: 'dify', tokens: '/token' })
  if (shown[shown.length - 1] !== chat.status) shown.push(chat.status)
  Object.assign(window, { chat, shown })
  return (
    <main>
      <output>{chat.status}</output>
      <p>{chat.error}</p>
      {chat.messages.map((one, i) => <div key={i} className={of(one)} title={about(one)}>{one.text}</div>)}
      <pre>{JSON.stringify(chat.waitsFor)}</pre>
    </main>
  )
}

const root = createRoot(document.body)
Object.assign(window, { unmount: () => root.unmount() })
root.render(<StrictMode><App gateway={GATEWAY} /></StrictMode>)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the hook, a component that uses it, and React."""
    folder = copied("react", tmp_path)
    (folder / "node_modules").symlink_to(modules())
    (folder / "app.tsx").write_text(f"declare const GATEWAY: string\n{APP}")
    return folder


def test_the_hook_and_what_it_gives_are_typed(project):
    options = {
        "strict": True, "noEmit": True, "noUnusedLocals": True, "noUncheckedIndexedAccess": False,
        "target": "es2022", "lib": ["es2022", "dom", "dom.iterable"], "module": "esnext",
        "moduleResolution": "bundler", "jsx": "react-jsx",
    }  # fmt: skip
    (project / "tsconfig.json").write_text(json.dumps({"compilerOptions": options}))
    tsc = modules() / "typescript/bin/tsc"
    run(node(), tsc, "--project", project)
    (project / "wrong.ts").write_text(
        "import { useChat } from './useChat'\nuseChat({ agent: 1 })\n"
    )
    with pytest.raises(AssertionError, match=r"wrong\.ts"):
        run(node(), tsc, "--project", project)


@pytest.fixture
async def page():
    async with chromium() as page:
        yield page


@pytest.fixture
def visit(page, gateway, project, tmp_path):
    """`await visit(url of an upstream)`: a page with the component."""
    running = []

    async def visit(upstream: str, **agent: str) -> Page:
        auth = {"anonymous": False, "keys": [{"name": "web", "key": KEY}]}
        agents = {"dify": {**AGENTS["dify"], "base_url": upstream, **agent}}
        database, record = f"sqlite:///{tmp_path}/gateway.db", {"spool": str(tmp_path / "spool")}
        gw = await gateway(agents=agents, auth=auth, database=database, record=record)
        copied("token-server", tmp_path)
        site = tmp_path / "web-page"
        site.mkdir()
        (site / "index.html").write_text('<!doctype html><body><script src="app.js"></script>')
        esbuild = [node(), modules() / "esbuild/bin/esbuild", project / "app.tsx", "--bundle"]
        define = f"--define:GATEWAY={json.dumps(gw.url)}"
        run(*esbuild, define, "--jsx=automatic", f"--outfile={site / 'app.js'}", cwd=project)
        server = TokenServer("server.py", gw.url, examples=tmp_path)
        running.append(server)
        await asyncio.to_thread(server.start)
        await page.goto(server.url)
        return page

    yield visit
    for server in running:
        server.stop()


async def ask(page: Page, query: str) -> None:
    await page.evaluate("query => { chat.ask(query) }", query)


def status(page: Page):
    return page.locator("output")


async def test_states_of_answers_and_one_conversation(visit, demo):
    page = await visit((await demo("dify")).url)
    await expect(status(page)).to_have_text("idle")
    for query in ("第一个问题 🚲", "第二个"):
        await ask(page, query)
        await expect(page.locator(".user").last).to_have_text(query)
        await expect(page.locator(".assistant").last).to_contain_text(f"你问的是：“{query}”")
        await expect(status(page)).to_have_text("idle")
    await expect(page.locator(".assistant").last).to_contain_text("你上一个问题是“第一个问题 🚲”")
    assert await page.evaluate("shown") == ["idle", "streaming", "idle", "streaming", "idle"]
    await page.evaluate("chat.reset()")
    await expect(page.locator("main div")).to_have_count(0)
    await ask(page, "第三个")
    await expect(page.locator(".assistant")).to_contain_text("第三个")
    await expect(page.locator(".assistant")).not_to_contain_text("上一个问题")


async def test_an_error_ends_with_the_next_question(visit, demo):
    page = await visit((await demo("dify")).url)
    for query in ("#fail", "#break"):
        await ask(page, query)
        await expect(status(page)).to_have_text("error")
        await expect(page.locator("p")).to_contain_text("dify")
    await ask(page, "hi")
    await expect(status(page)).to_have_text("idle")
    await expect(page.locator("p")).to_be_empty()


async def test_stop_keeps_what_has_arrived(visit, scripted):
    upstream = await scripted(Script([message("Hello")], end="hang"))
    page = await visit(upstream.url, mode="chat")
    await ask(page, "hi")
    await expect(page.locator(".assistant")).to_have_text("Hello")
    await expect(status(page)).to_have_text("streaming")
    await ask(page, "too early")
    await expect(page.locator(".user")).to_have_count(1)
    await page.evaluate("chat.stop()")
    await expect(status(page)).to_have_text("aborted")
    await expect(page.locator(".assistant")).to_have_text("Hello")
    await expect(page.locator("p")).to_be_empty()
    async with asyncio.timeout(10):
        await upstream.gone.wait()  # the gateway has ended the answer at the platform


@pytest.mark.parametrize("leave", ["chat.reset()", "unmount()"])
async def test_reset_and_unmount_end_an_answer(visit, scripted, leave):
    upstream = await scripted(Script([message("Hello")], end="hang"))
    page = await visit(upstream.url, mode="chat")
    await ask(page, "hi")
    await expect(page.locator(".assistant")).to_have_text("Hello")
    await page.evaluate(leave)
    async with asyncio.timeout(10):
        await upstream.gone.wait()
    await expect(page.locator("main div")).to_have_count(0)


async def test_markup_in_an_answer_stays_text(visit, scripted):
    markup = "<img src=x onerror=\"document.title='no'\"><b>bold</b>"
    page = await visit((await scripted(Script([message(markup), END]))).url, mode="chat")
    await ask(page, "hi")
    await expect(page.locator(".assistant")).to_have_text(markup)


async def test_a_token_that_has_ended_is_replaced(visit, demo, page):
    tokens = await with_an_ended_token(page)
    page = await visit((await demo("dify")).url)
    for query in ("hi", "again"):
        await ask(page, query)
        await expect(page.locator(".assistant").last).to_contain_text(f'"{query}"')
        await expect(status(page)).to_have_text("idle")
    assert len(tokens) == 2  # and kept while it is valid


async def listed(page: Page) -> list[str]:
    return await page.evaluate(
        "chat.list().then((page) => page.conversations.map((one) => one.title))"
    )


async def opened(page: Page, index: int) -> None:
    await page.evaluate(
        "at => chat.list().then((page) => chat.open(page.conversations[at].id))", index
    )


async def begin(page: Page, query: str) -> None:
    """A new conversation with a whole answer."""
    await page.evaluate("chat.reset()")
    await ask(page, query)
    await expect(page.locator(".assistant")).to_contain_text(query)
    await expect(status(page)).to_have_text("idle")


async def test_earlier_conversations_are_listed_and_opened(visit, demo):
    page = await visit((await demo("dify")).url)
    for query in ("one", "two"):
        await begin(page, query)
    assert await listed(page) == ["two", "one"]
    await opened(page, 1)
    await expect(page.locator(".user")).to_have_text(["one"])
    await ask(page, "three")
    await expect(page.locator(".assistant").last).to_contain_text('previous question was "one"')
    assert await listed(page) == ["one", "two"]


async def test_older_turns_and_further_conversations_have_pages(visit, demo):
    page = await visit((await demo("dify")).url)
    await page.route(
        "**/messages", lambda route: route.continue_(url=f"{route.request.url}?limit=1")
    )
    await begin(page, "one")
    await ask(page, "two")
    await expect(page.locator(".assistant").last).to_contain_text('"two"')
    await opened(page, 0)
    await expect(page.locator(".user")).to_have_text(["two"])
    await page.evaluate("Promise.all([chat.showOlder(), chat.showOlder()])")
    await expect(page.locator(".user")).to_have_text(["one", "two"])
    assert await page.evaluate("chat.showOlder") is None
    first = await page.evaluate("chat.list().then((page) => page.next)")
    assert first is None


async def test_a_conversation_is_renamed_and_removed(visit, demo):
    page = await visit((await demo("dify")).url)
    await begin(page, "one")
    first = "chat.list().then((page) => page.conversations[0].id)"
    await page.evaluate(f"{first}.then((id) => chat.rename(id, '标题'))")
    assert await listed(page) == ["标题"]
    await page.evaluate(f"{first}.then((id) => chat.remove(id))")
    assert await listed(page) == []


async def test_an_opinion_is_kept_and_taken_back(visit, demo):
    page = await visit((await demo("dify")).url)
    await begin(page, "one")
    for rating, shown in (("like", '[true,"like"]'), (None, "[true,null]")):
        await page.evaluate("rating => chat.rate(chat.messages[1].id, rating)", rating)
        await expect(page.locator(".assistant")).to_have_attribute("title", shown)
        await opened(page, 0)
        await expect(page.locator(".assistant")).to_have_attribute("title", shown)


async def test_stop_is_asked_of_the_gateway(visit, demo):
    page = await visit((await demo("dify", pace_s=0.05)).url)
    await ask(page, "#long")
    await expect(page.locator(".assistant")).not_to_be_empty()
    async with page.expect_response("**/stop") as asked:
        await page.evaluate("chat.stop()")
    assert (await (await asked.value).json())["data"]["stopped"] is True
    await expect(status(page)).to_have_text("aborted")
    await expect(page.locator("p")).to_be_empty()


@pytest.mark.parametrize("again", [False, True])
async def test_a_bot_that_waits_gets_its_reply(visit, demo, again):
    page = await visit((await demo("dify")).url)
    await ask(page, "a refund #form")
    await expect(page.locator("pre")).to_contain_text("approve")
    if again:
        await opened(page, 0)
        await expect(page.locator("pre")).to_contain_text("approve")
    await page.evaluate("chat.reply({ action: 'reject', inputs: { comment: 'no' } })")
    await expect(page.locator(".assistant").last).to_have_text("“驳回”已收到 🎊。no")
    await expect(page.locator("pre")).to_have_text("null")


def test_the_hook_writes_no_markup():
    assert "dangerouslySetInnerHTML" not in (EXAMPLES / "react/useChat.ts").read_text("utf-8")
