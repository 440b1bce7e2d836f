"""The JSON examples of docs/api.md have the members that the gateway answers with."""

import json
import re
from pathlib import Path
from typing import Any

import aiohttp
from conftest import AGENTS

from gateway import errors

PAGE = (Path(__file__).parents[2] / "docs/api.md").read_text("utf-8")
EXAMPLES = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)]


def differences(example: Any, real: Any, path: str = "") -> list[str]:
    """Paths of members that only one of both has, or that have another type."""
    if isinstance(example, dict) and isinstance(real, dict):
        found = [f"{path}.{name}" for name in example.keys() ^ real.keys()]
        for name in example.keys() & real.keys():
            found += differences(example[name], real[name], f"{path}.{name}")
        return found
    if isinstance(example, list) and isinstance(real, list):
        return differences(example[0], real[0], f"{path}[]") if example and real else []
    same = example is None or real is None or type(example) is type(real)
    return [] if same else [path]


CITY = {"variable": "city", "label": "城市", "required": False, "max_length": 48, "default": ""}


async def test_json_examples_have_the_members_of_real_answers(with_accounts, demo, tmp_path):
    names = ("fastgpt", "dify", "coze")
    agents = {}
    for name in names:
        inputs = {"form": [{"text-input": CITY}]} if name == "dify" else {}
        simulator = await demo(name, key=AGENTS[name]["api_key"], **inputs)
        agents[name] = {**AGENTS[name], "base_url": simulator.url}
    gateway = await with_accounts(f"sqlite:///{tmp_path}/gateway.db", agents=agents)
    admin = await gateway.login()
    bearer = {"Authorization": f"Bearer {admin}"}

    async def post(path: str, body: Any, **headers: str) -> Any:
        async with gateway.post(path, body, headers={**bearer, **headers}) as answer:
            return await answer.json()

    async def openai(model: str, question: str) -> Any:
        messages = [{"role": "user", "content": question}]
        return await post("/v1/chat/completions", {"model": model, "messages": messages})

    form = aiohttp.FormData({"created_by": "test_user"})
    form.add_field("file", b"hello", filename="n.txt")
    upload_url = f"{gateway.url}/api/v1/upload"
    async with gateway.client.post(upload_url, data=form, headers=bearer) as answer:
        upload = await answer.json()
    async with gateway.get("/v1/models", headers=bearer) as answer:
        models = await answer.json()
    _, login = await gateway.api(
        "POST", "/login", body={"username": "admin", "password": "correct horse battery"}
    )
    settings = {"permissions": ["chat", "upload"], "agents": ["dify"]}
    settings |= {"rate_limits": {"chat": "120/min"}, "max_calls": 10000, "name": "web"}
    key = await post("/api/v1/api-keys", settings)
    _, token = await gateway.api("POST", "/tokens", key["data"]["full_key"], EXAMPLES[8])
    _, profile = await gateway.api("GET", "/agents/dify", admin)
    for name in ("inputs", "files"):  # those of another app
        assert profile["data"][name].keys() == EXAMPLES[12]["data"][name].keys()
        profile["data"][name] = EXAMPLES[12]["data"][name]
    _, health = await gateway.api("GET", "/agents/dify/health", admin)
    real = [
        await post("/api/v1/chat", {"query": "Hi"}, Agent="fastgpt"),
        await post("/api/v1/chat", {"query": "#fail"}, Agent="dify"),
        await openai("coze", "hi"),
        await openai("dify", "#fail"),
        models,
        upload,
        {name: login[name] for name in ("code", "success", "msg", "data")},
        key,
        EXAMPLES[8],  # a request
        token,
        (await gateway.api("GET", "/calls", admin))[1],
        health,
        profile,
        await post("/api/v1/chat", {"query": "Hi", "variables": {"city": 5}}, Agent="dify"),
        await post("/api/v1/chat", {"query": "Hi"}, Agent="dfy"),
    ]
    assert [differences(*pair) for pair in zip(EXAMPLES, real, strict=True)] == [[]] * len(real)


def test_the_page_explains_every_error_code():
    def codes(error: type[errors.GatewayError]) -> set[str]:
        own = {error.code} if error.code else set()
        return own.union(*(codes(kind) for kind in error.__subclasses__()))

    tables = PAGE.partition("\n## Errors")[2]
    assert codes(errors.GatewayError) - set(re.findall(r"`(\w+)`", tables)) == set()
