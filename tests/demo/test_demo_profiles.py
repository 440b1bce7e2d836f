"""The simulators describe their bots with the members of real servers, in their order."""

import aiohttp
import orjson
import pytest
from test_dify_captures import FOLDER, read_capture
from test_fastgpt_captures import capture


async def told(url: str) -> dict:
    async with aiohttp.ClientSession() as client, client.get(url) as answer:
        assert answer.status == 200
        return orjson.loads(await answer.read())


@pytest.mark.parametrize("call", ["info", "site"])
async def test_dify_describes_an_app_as_1_16_does(demo, call):
    served = await demo("dify")
    _, _, body = read_capture(FOLDER / "1.16.0" / f"chat_get_{call}.http")
    real = orjson.loads(body)
    mine = await told(f"{served.url}/v1/{call}")
    assert list(mine) == list(real)
    assert [type(value) for value in mine.values()] == [type(value) for value in real.values()]


async def test_fastgpt_describes_an_app_as_4_12_2_does(demo):
    served = await demo("fastgpt")
    real = capture("4.12.2", "init_no_chatid").json
    mine = await told(f"{served.url}/api/core/chat/init?appId=66f0")
    for path in ((), ("data",), ("data", "app"), ("data", "app", "chatConfig")):
        ours, theirs = mine, real
        for name in path:
            ours, theirs = ours[name], theirs[name]
        assert list(ours) == list(theirs), path


async def test_coze_describes_a_workflow_as_its_contract_says(demo):
    served = await demo("coze")
    url = f"{served.url}/v1/workflows/75"
    assert set((await told(url))["data"]) == {"workflow_detail"}
    full = (await told(f"{url}?include_input_output=true"))["data"]
    assert set(full) == {"workflow_detail", "input", "output"}
    assert full["workflow_detail"]["workflow_id"] == "75"
