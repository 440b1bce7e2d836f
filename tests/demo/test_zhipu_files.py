"""智谱清言's uploads in the Zhipu simulator."""

import json

import aiohttp
import demoforms as forms
import pytest

GLMS = "/chatglm/assistant-api/v1"


class Assistant:
    """A simulator and a token for it."""

    def __init__(self, served, token: str) -> None:
        self.demo, self.url, self.token = served.demo, served.url + GLMS, token

    def upload(self, *parts: bytes, **kwargs):
        return forms.send(f"{self.url}/file_upload", *parts, **{"key": self.token, **kwargs})

    async def ask(self, **body) -> str:
        headers = {"Authorization": f"Bearer {self.token}"}
        body = {"assistant_id": "a", "prompt": "看图", **body}
        async with (
            aiohttp.ClientSession() as client,
            client.post(f"{self.url}/stream", json=body, headers=headers) as answer,
        ):
            return await answer.text()


def text(stream: str) -> str:
    return json.loads(stream.strip().rpartition("\ndata:")[2])["message"]["content"]["text"]


@pytest.fixture
async def assistant(demo):
    served = await demo("zhipu", key="id.secret")
    body = {"api_key": "id", "api_secret": "secret"}
    async with (
        aiohttp.ClientSession() as client,
        client.post(f"{served.url}{GLMS}/get_token", json=body) as answer,
    ):
        token = (await answer.json())["result"]["access_token"]
    return Assistant(served, token)


async def test_an_upload_is_answered_with_a_result(assistant):
    status, answer = await assistant.upload(forms.file())
    result = answer.pop("result")
    assert (status, answer) == (200, {"message": "success", "status": 0})
    assert list(result) == ["file_id", "file_name", "file_size", "file_url", "order"]
    assert (result["file_name"], result["file_size"], result["order"]) == ("红色方块.png", 74, 0)
    assert result["file_id"] == assistant.demo.uploads[0].id
    assert len(result["file_id"]) == 24
    assert result["file_url"].endswith(result["file_id"])


async def test_an_upload_needs_the_assistants_token_and_not_the_key(assistant):
    status, answer = await assistant.upload(forms.file(), key="id.secret")
    assert (status, answer["status"]) == (401, 401)
    assert assistant.demo.uploads == []


@pytest.mark.parametrize(
    "parts", [[], [forms.file(content=b"")], [forms.file(field="upload")]],
    ids=["none", "empty", "misnamed"],
)  # fmt: skip
async def test_an_upload_without_a_file_is_an_error(assistant, parts):
    status, answer = await assistant.upload(*parts)
    assert (status, answer["status"], answer["result"]) == (200, 10020, {})


async def test_a_result_goes_into_the_file_list(assistant):
    results = [(await assistant.upload(forms.file(n)))[1]["result"] for n in ("a.png", "b.pdf")]
    stream = await assistant.ask(file_list=results)
    assert "我收到了 2 个文件：a.png、b.pdf。" in text(stream)


async def test_a_file_list_may_be_empty_or_left_out(assistant):
    for more in ({}, {"file_list": []}, {"file_list": None}):
        assert "文件" not in text(await assistant.ask(**more))


@pytest.mark.parametrize("item", [{"file_id": "65a0b1c2d3e4f5060718293a"}, {}, "a.png"])
async def test_an_unknown_file_is_refused(assistant, item):
    known = (await assistant.upload(forms.file()))[1]["result"]
    answer = json.loads(await assistant.ask(file_list=[known, item]))
    assert (answer["status"], answer["result"]) == (10021, {})
