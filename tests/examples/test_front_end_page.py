"""The JavaScript of docs/front-end.md, in both languages, run under Node as the page shows it."""

import json
import re

import pytest
from toolbox import EXAMPLES, node, run

DOCS = EXAMPLES.parent / "docs"
PAGES = [DOCS / "front-end.md", DOCS / "zh/front-end.md"]

pytestmark = [pytest.mark.timeout(300), pytest.mark.parametrize("page", PAGES, ids=["en", "zh"])]

# SENT is the text of the events, PROGRAM the snippet.
BROWSER = """
const text = new TextEncoder().encode(SENT)
globalThis.fetch = async () => new Response(new ReadableStream({start(stream) {
  for (const byte of text) stream.enqueue(Uint8Array.of(byte))
  stream.close()
}}))
PROGRAM
let said = ''
ask('token', 'hi', undefined, (more) => { said += more }).then(
  (conversation) => console.log(JSON.stringify([said, conversation])),
  (error) => console.log(JSON.stringify([said, error.message])))
"""

# The gateway answers SENT in turn.
CALLS = """
const called = [], answers = SENT
globalThis.fetch = async (url, {method}) => {
  called.push(`${method} ${url}`)
  const {status, ...body} = answers[called.length - 1]
  return new Response(JSON.stringify(body), {status})
}
PROGRAM
const shown = []
openLatest('token', (question, answer) => shown.push([question, answer])).then(
  (conversation) => console.log(JSON.stringify([called, shown, conversation])),
  (error) => console.log(JSON.stringify([called, shown, error.message])))
"""

# WeChat's calls, each answered as the gateway and the token server answer.
WECHAT = """
const sent = []
globalThis.wx = {
  login: async () => ({code: 'c'}),
  uploadFile: ({url, success}) => success({statusCode: 200, data: '{"data": {"id": "file-1"}}'}),
  request: ({url, data, success}) => {
    if (url.endsWith('/token')) {
      success({statusCode: 200, data: {data: {token: 't', expires_in: 900}}})
      return {}
    }
    sent.push(data)
    return {abort() {}, onChunkReceived(listener) {
      listener({data: new TextEncoder().encode(SENT).buffer})
      success({statusCode: 200})
    }}
  },
}
PROGRAM
let said = ''
askAbout('photo.png', (more) => { said += more }).then(
  () => console.log(JSON.stringify([said, sent[0].files])),
  (error) => console.log(JSON.stringify([said, error.message])))
"""


def chunk(**members: object) -> str:
    return f"data: {json.dumps(members, ensure_ascii=False)}\n\n"


HALF = ": keep-alive\n\n" + chunk(id="c1", choices=[{"delta": {"content": "你好🚲"}}])
WHOLE = HALF + "data: [DONE]\n\n"
CUT = ["你好🚲", "The connection ended before the answer did."]


def outcome(page, which: int, around: str, sent: object) -> list[object]:
    snippet = re.findall(r"```js\n(.*?)```", page.read_text("utf-8"), re.DOTALL)[which]
    program = around.replace("SENT", json.dumps(sent)).replace("PROGRAM", snippet)
    folder = EXAMPLES / "mini-program"  # where './gateway' is
    return json.loads(run(node(), "--input-type=commonjs", "--eval", program, cwd=folder))


def test_an_answer_is_shown_and_can_be_continued(page):
    assert outcome(page, 0, BROWSER, WHOLE) == ["你好🚲", "c1"]


def test_a_stream_without_its_end_is_an_error(page):
    assert outcome(page, 0, BROWSER, HALF) == CUT


def test_an_error_in_the_stream_is_thrown(page):
    failed = HALF + chunk(error={"message": "Dify failed."})
    assert outcome(page, 0, BROWSER, failed) == ["你好🚲", "Dify failed."]


def test_the_latest_conversation_is_opened(page):
    latest = {"conversations": [{"id": "dify:1/a"}], "next": None}
    turns = {"messages": [{"question": "hi", "answer": "你好"}], "next": None}
    answers = [{"status": 200, "data": latest}, {"status": 200, "data": turns}]
    called, shown, conversation = outcome(page, 1, CALLS, answers)
    address = "https://gw.example.com/api/v1/conversations"
    assert called == [f"GET {address}?agent=dify&limit=1", f"GET {address}/dify%3A1%2Fa/messages"]
    assert shown == [["hi", "你好"]]
    assert conversation == "dify:1/a"


def test_a_call_that_fails_is_thrown(page):
    answers = [{"status": 404, "msg": "This gateway has no database."}]
    assert outcome(page, 1, CALLS, answers)[2] == "This gateway has no database."


def test_a_mini_program_uploads_a_file_and_asks_about_it(page):
    assert outcome(page, 2, WECHAT, WHOLE) == ["你好🚲", [{"id": "file-1"}]]


def test_a_mini_programs_stream_without_its_end_is_an_error(page):
    assert outcome(page, 2, WECHAT, HALF) == CUT
