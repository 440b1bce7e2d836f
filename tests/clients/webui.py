"""Open WebUI as its page drives it, over its own HTTP API; and the gateway that it asks."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import servers
import yaml

ROOT = Path(__file__).parents[2]
BIN = ROOT / ".venv" / "clients" / "bin"
PATIENCE_S = 60.0
# Without these it asks its makers for news, and a model hub for models.
OFFLINE = {
    "ANONYMIZED_TELEMETRY": "false", "DO_NOT_TRACK": "true", "SCARF_NO_ANALYTICS": "true",
    "ENABLE_VERSION_UPDATE_CHECK": "false", "HF_HUB_OFFLINE": "1", "OFFLINE_MODE": "true",
}  # fmt: skip


class Process(servers.Server):
    """A server with a log of its own, which a failed start shows."""

    def __init__(self, folder: Path, command: list[str], environ: dict[str, str]) -> None:
        self.port = servers.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder, self._command = folder, command
        self._environ = {"PATH": os.environ["PATH"], "HOME": str(folder), **environ}

    def command(self) -> list[str]:
        return [*self._command, "--host", "127.0.0.1", "--port", str(self.port)]

    def options(self) -> dict[str, object]:
        return {"cwd": self.folder, "env": self._environ}

    async def begin(self) -> None:
        with (self.folder / "log.txt").open("wb") as log:
            self.process = subprocess.Popen(
                self.command(), stdout=log, stderr=subprocess.STDOUT, **self.options()
            )
        async with asyncio.timeout(PATIENCE_S):
            while not self.answers():
                assert self.process.poll() is None, self.log()
                await asyncio.sleep(0.1)

    def log(self) -> str:
        return (self.folder / "log.txt").read_text("utf-8", "replace")


def gateway(folder: Path, config: dict[str, Any]) -> Process:
    """`run.py` with that config.yaml."""
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, str(ROOT / "run.py"), "--config", str(folder / "config.yaml")]
    return Process(folder, command, {})


def open_webui(folder: Path, base_url: str, key: str, **environ: str) -> Process:
    """Open WebUI with one connection, to `base_url`, which also makes its embeddings."""
    folder.mkdir()
    settings = {
        "DATA_DIR": str(folder), "WEBUI_SECRET_KEY": "of-this-test", "ENABLE_OLLAMA_API": "false",
        "OPENAI_API_BASE_URLS": base_url, "OPENAI_API_KEYS": key,
        "RAG_EMBEDDING_ENGINE": "openai", "RAG_OPENAI_API_BASE_URL": base_url,
        "RAG_OPENAI_API_KEY": key, "RAG_EMBEDDING_MODEL": "model/embedder",
        "DEFAULT_USER_ROLE": "user", "BYPASS_MODEL_ACCESS_CONTROL": "true",
    }  # fmt: skip
    return Process(folder, [str(BIN / "open-webui"), "serve"], {**settings, **OFFLINE, **environ})


class Person:
    """Somebody who is logged in."""

    def __init__(self, url: str, http: aiohttp.ClientSession, session: Any = None) -> None:
        self._url, self._http = url, http
        self.id = session["id"] if session else ""
        self._headers = {"Authorization": f"Bearer {session['token']}"} if session else {}

    @classmethod
    async def sign_up(cls, url: str, http: aiohttp.ClientSession, name: str) -> "Person":
        """A new account. The first one is the administrator, and closes the sign-up."""
        body = {"name": name, "email": f"{name}@example.org", "password": "good enough password"}
        answer = await cls(url, http).post("/api/v1/auths/signup", body)
        return cls(url, http, answer)

    async def add(self, name: str) -> "Person":
        """An account that the administrator makes for another one."""
        body = {"name": name, "email": f"{name}@example.org", "password": "good enough password"}
        answer = await self.post("/api/v1/auths/add", {**body, "role": "user"})
        return Person(self._url, self._http, answer)

    async def get(self, path: str) -> Any:
        async with self._http.get(self._url + path, headers=self._headers) as answer:
            assert answer.status == 200, (path, await answer.text())
            return await answer.json()

    async def post(self, path: str, body: Any) -> Any:
        async with self._http.post(self._url + path, json=body, headers=self._headers) as answer:
            assert answer.status == 200, (path, await answer.text())
            return await answer.json()

    async def models(self) -> list[str]:
        return [model["id"] for model in (await self.get("/api/models"))["data"]]

    async def upload(self, name: str, content: bytes, type_: str) -> dict[str, Any]:
        """A file as the page attaches it to a question, once its text has been read."""
        form = aiohttp.FormData()
        form.add_field("file", content, filename=name, content_type=type_)
        url = f"{self._url}/api/v1/files/?process_in_background=false"
        async with self._http.post(url, data=form, headers=self._headers) as answer:
            assert answer.status == 200, await answer.text()
            file = await answer.json()
        return {
            "type": "file", "file": file, "id": file["id"], "url": file["id"], "name": name,
            "collection_name": file.get("meta", {}).get("collection_name") or f"file-{file['id']}",
            "status": "uploaded", "size": len(content), "content_type": type_,
        }  # fmt: skip


class Chat:
    """One chat. Its messages are a tree, of which the page shows one branch."""

    def __init__(self, person: Person, model: str) -> None:
        self._person, self._model = person, model
        self._shown: list[dict[str, Any]] = []
        self._files: list[dict[str, Any]] = []
        self.id = ""

    async def ask(self, question: str, *files: dict[str, Any]) -> str:
        """Ask below the answer shown last; returns the answer."""
        self._files += files
        message = self._question(question)
        return await self._send({**message, "files": list(files)} if files else message)

    def _question(self, text: str) -> dict[str, Any]:
        parent = self._shown[-1]["id"] if self._shown else None
        return {
            "id": str(uuid4()), "parentId": parent, "childrenIds": [], "role": "user",
            "content": text, "models": [self._model],
        }  # fmt: skip

    async def regenerate(self) -> str:
        self._shown.pop()
        return await self._send(self._shown.pop())

    async def edit(self, place: int, question: str) -> str:
        """Ask another question in place of the one at `place`, on a branch of its own."""
        del self._shown[2 * place :]
        return await self.ask(question)

    async def stop(self, question: str, is_time: Callable[[], bool]) -> str:
        """Ask, and press stop once `is_time`; returns what has come until then."""
        id_ = await self._begin(self._question(question))
        async with asyncio.timeout(PATIENCE_S):
            while not is_time():
                await asyncio.sleep(0.01)
        await self._person.post(f"/api/tasks/chat/{self.id}/stop", {})
        return await self._end(id_)

    async def correct(self, answer: str) -> None:
        """Edit the answer shown last, as its pencil does."""
        chat = await self.stored()
        message = chat["history"]["messages"][self._shown[-1]["id"]]
        message["content"] = answer
        for item in message.get("output", []):
            item["content"] = [{"type": "output_text", "text": answer}]
        await self._person.post(f"/api/v1/chats/{self.id}", {"chat": chat})

    async def fork(self) -> "Chat":
        """Another chat that begins like this one."""
        id_ = self._shown[-1]["id"]
        answer = await self._person.post(f"/api/v1/chats/{self.id}/fork", {"message_id": id_})
        other = Chat(self._person, self._model)
        other.id, other._files = answer["id"], list(self._files)
        messages = answer["chat"]["history"]["messages"]
        message = messages[answer["chat"]["history"]["currentId"]]
        while message:
            other._shown.insert(0, message)
            message = messages.get(message["parentId"])
        return other

    async def _send(self, question: dict[str, Any]) -> str:
        return await self._end(await self._begin(question))

    async def _begin(self, question: dict[str, Any]) -> str:
        """Send the question; returns the id of the answer to come."""
        id_ = str(uuid4())
        self._shown.append(question)
        tasks = {"follow_up_generation": True}
        if len(self._shown) == 1:  # also after an edit of the first question
            tasks |= {"title_generation": True, "tags_generation": True}
        body = {
            "stream": True, "model": self._model, "params": {}, "features": {}, "variables": {},
            "messages": [{name: turn[name] for name in ("role", "content")} for turn in self._shown],
            "session_id": "page", "chat_id": self.id or None, "id": id_, "user_message": question,
            "parent_id": question["parentId"], "files": self._files or None,
            "background_tasks": tasks,
        }  # fmt: skip
        self.id = (await self._person.post("/api/chat/completions", body))["chat_id"]
        return id_

    async def _end(self, id_: str) -> str:
        """The answer, or the error shown in place of it."""
        message = await self._finished(id_)
        self._shown.append({"id": id_, "role": "assistant", "content": message["content"]})
        error = message.get("error")
        return f"error: {error['content']}" if error else message["content"]

    async def _finished(self, id_: str) -> dict[str, Any]:
        """The answer, once neither it nor a background call runs any more."""
        async with asyncio.timeout(PATIENCE_S):
            while (await self._person.get(f"/api/tasks/chat/{self.id}"))["task_ids"]:
                await asyncio.sleep(0.05)
        message = (await self.stored())["history"]["messages"][id_]
        assert message.get("done"), message
        return message

    async def stored(self) -> dict[str, Any]:
        """The chat as Open WebUI keeps it: `title`, `history` and more."""
        return (await self._person.get(f"/api/v1/chats/{self.id}"))["chat"]

    async def follow_ups(self) -> list[str]:
        """Those below the answer shown last."""
        messages = (await self.stored())["history"]["messages"]
        return messages[self._shown[-1]["id"]].get("followUps") or []
