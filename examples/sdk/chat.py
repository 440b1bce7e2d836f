"""Chats by OpenAI's SDK, conversations by plain HTTP: GATEWAY_KEY=sk-gw-… python chat.py

Needs the package openai, which brings httpx. It runs on your server: a key is not for a page.
"""

import os
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
from openai import OpenAI

GATEWAY = os.environ.get("GATEWAY", "http://localhost:3000")
AGENT = os.environ.get("AGENT", "dify")
KEY = os.environ.get("GATEWAY_KEY") or sys.exit("Set GATEWAY_KEY to a key of the gateway.")
USER = os.environ.get("END_USER", "visitor-7")  # the id of your own user

sdk = OpenAI(base_url=f"{GATEWAY}/v1", api_key=KEY)
http = httpx.Client(
    base_url=f"{GATEWAY}/api/v1", headers={"Authorization": f"Bearer {KEY}"}, timeout=60
)


def ask(question: str, conversation: str | None = None) -> dict[str, Any]:
    """Print the answer as it arrives; what the gateway says of it, such as its `message_id`."""
    stream = sdk.chat.completions.create(
        model=AGENT,
        messages=[{"role": "user", "content": question}],
        user=USER,
        stream=True,
        extra_body={"conversation_id": conversation} if conversation else None,
    )
    notes: dict[str, Any] = {}
    for chunk in stream:
        notes = getattr(chunk, "gateway", None) or notes
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
    print()
    return notes


def call(method: str, path: str, body: Any = None, **query: str) -> Any:
    """The `data` of a call under /api/v1."""
    answer = http.request(method, path, params=query or None, json=body)
    if answer.is_error:
        sys.exit(answer.json()["msg"])
    return answer.json()["data"]


def pages(path: str, member: str) -> Iterator[dict[str, Any]]:
    """The entries of all pages, the first page first."""
    place: dict[str, str] = {}
    while True:
        page = call("GET", path, user=USER, **place)
        yield from page[member]
        if not page["next"]:
            return
        place = {"before": page["next"]}


def main() -> None:
    first = ask("My bicycle squeaks. Why?")
    conversation = first["conversation_id"]
    ask("And how do I mend it?", conversation)

    for one in pages("/conversations", "conversations"):
        print(f"{one['updated_at']}  {one['title']}")
    path = f"/conversations/{quote(conversation, safe='')}"
    for turn in pages(f"{path}/messages", "messages"):
        print(f"Q: {turn['question']}\nA: {turn['answer'][:60]}…")

    rated = f"{path}/messages/{quote(first['message_id'], safe='')}/feedback"
    call("POST", rated, {"rating": "like"}, user=USER)

    report = call("DELETE", f"/users/{quote(USER, safe='')}/data")
    print(f"Deleted: {len(report['conversations'])} conversation(s)")


if __name__ == "__main__":
    main()
