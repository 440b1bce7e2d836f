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


async def test_zhipu_lists_variables_as_its_contract_says(demo):
    served = await demo("zhipu")
    answer = await told(f"{served.url}/api/llm-application/open/v2/application/18/variables")
    assert list(answer) == ["data", "code", "message", "timestamp"]
    members = {"id", "name", "type", "tips", "allowed_values"}
    assert all(members <= set(each) <= members | {"input_template"} for each in answer["data"])


@pytest.mark.parametrize(
    ("version", "path", "members"),
    [
        ("delta", "chats/1", {"icon", "prompt_config", "dataset_ids", "llm_setting"}),
        ("cumulative", "chats?id=1", {"avatar", "prompt", "datasets", "llm"}),
        ("delta", "agents/1", {"avatar", "title", "description", "dsl"}),
        ("cumulative", "agents?id=1", {"avatar", "title", "description", "dsl"}),
    ],
)
async def test_ragflow_describes_bots_as_its_versions_do(demo, version, path, members):
    served = await demo("ragflow", version=version)
    answer = await told(f"{served.url}/api/v1/{path}")
    assert (answer["code"], answer["message"]) == (0, "")
    bot = answer["data"][0] if "?" in path else answer["data"]
    assert members | {"id", "description"} <= set(bot)
