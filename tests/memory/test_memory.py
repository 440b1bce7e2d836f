"""The memory from outside: a client that sends its whole history talks in one conversation."""

from typing import Any

import pytest

Turns = list[dict[str, str]]


class Client:
    """A client without memory of its own ids: it sends everything it shows."""

    def __init__(self, gw: Any, model: str, **members: Any) -> None:
        self.gw, self.model, self.members = gw, model, members
        self.shown: Turns = []
        self.verdicts: list[str] = []

    async def ask(self, question: str, **headers: str) -> str:
        self.shown.append({"role": "user", "content": question})
        body = {"model": self.model, "messages": self.shown, **self.members}
        answer = await self.gw.post("/v1/chat/completions", body, headers=headers)
        assert answer.status == 200, await answer.text()
        self.verdicts.append(answer.headers["x-gateway-memory"])
        text = (await answer.json())["choices"][0]["message"]["content"]
        self.shown.append({"role": "assistant", "content": text})
        return text


@pytest.mark.parametrize("model", ["dify", "fastgpt", "coze"])
async def test_a_resent_history_stays_in_one_conversation(all_five, model):
    gw, demos = all_five
    client = Client(gw, model)
    for question in ("第一个问题", "second question", "third"):
        await client.ask(question)
    assert client.verdicts == ["new; depth=0", "continue; depth=1", "continue; depth=2"]
