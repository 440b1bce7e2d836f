"""An n8n workflow of one agent behind a Chat Trigger that streams, at any path.

A workflow that answers whole is one whose `streams` is False. n8n sends the head of its answer
before the workflow runs, so a failure is a line.
"""

from typing import Any

from aiohttp import web

from gateway.demo.base import Broken, Demo, Stream, dumps, json, new_id
from gateway.demo.script import Speech, speak

_JSON = "application/json; charset=utf-8"
_NODE = {"nodeId": "a1b2c3d4-0001-4000-8000-000000000001", "nodeName": "AI Agent"}
_BOTS = ("aiohttp", "python-requests", "node", "ai-gateway/")  # as "Ignore Bots" knows them


class N8nDemo(Demo):
    platform = "n8n"
    streams = True

    def routes(self) -> list[tuple[str, str, Any]]:
        return [("POST", "/{path:.*}", self.run), ("GET", "/{path:.*}", self.get)]

    async def get(self, request: web.Request) -> web.Response:
        message = (
            "This webhook is not registered for GET requests. Did you mean to make a POST request?"
        )
        return json({"code": 404, "message": message, "hint": ""}, 404)

    async def run(self, request: web.Request) -> web.StreamResponse:
        body, files = await self._read(request)
        if not self.knows_key(request) or _is_bot(request.headers.get("User-Agent", "")):
            headers = {"WWW-Authenticate": 'Basic realm="Webhook"'}
            return web.Response(status=403, text="Authorization data is wrong!", headers=headers)
        if body.get("action") == "loadPreviousSession":
            return json({"data": []})
        session, question = str(body.get("sessionId")), str(body.get("chatInput"))
        earlier = self.remember(session, question)
        speech = speak("n8n", question, earlier, files)
        if speech.fault == "limit":
            return json({"message": "Too many requests, try again later"}, 429)
        if self.streams:
            return await self._stream(request, speech)
        if speech.fault:
            return json({"message": "Error in workflow"}, 500)
        return json({"output": speech.text})

    async def _read(self, request: web.Request) -> tuple[dict[str, Any], list[str]]:
        """The members of the JSON or the form, and the names of the form's files."""
        if request.content_type != "multipart/form-data":
            return await self.body(request), []
        form = await self.form(request, new_id)
        self.requests.append((request.path_qs, form.fields))
        return dict(form.fields), [self.take(file).name for name, file in form.files]

    async def _stream(self, request: web.Request, speech: Speech) -> web.StreamResponse:
        stream = await Stream.open(request, _JSON, {"Cache-Control": "no-cache, no-transform"})

        async def send(kind: str, **more: Any) -> None:
            about = {**_NODE, "itemIndex": 0, "runIndex": 0}
            await stream.write(dumps({"type": kind, **more, "metadata": about}) + b"\n")

        await send("begin")
        try:
            if speech.fault == "fail":
                raise Broken
            async for kind, piece in self.pieces(speech, stream):
                if kind == "say":
                    await send("item", content=piece)
            await send("end")
        except Broken:
            if not stream.is_cut:
                await send("error", content="The failure you asked for.")
        return await stream.close()


def _is_bot(agent: str) -> bool:
    return not agent or any(name in agent.lower() for name in _BOTS) or agent.startswith("Python/")
