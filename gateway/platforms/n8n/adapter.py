"""n8n: the request that starts the workflow, and the meaning of its refusals."""

import base64
import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from gateway.errors import (
    GatewayError,
    UpstreamFailed,
    UpstreamMisconfigured,
    UpstreamTimeout,
    clean,
)
from gateway.language.sentences import say
from gateway.platforms.base import (
    BasePlatform,
    Decoder,
    Delivery,
    Doubt,
    Step,
    as_text,
    dump,
    json_headers,
)
from gateway.platforms.failures import explain_http
from gateway.platforms.n8n.decoder import N8nDecoder
from gateway.platforms.n8n.form import encode
from gateway.platforms.n8n.options import N8nOptions
from gateway.protocol.exchange import UpstreamReply, UpstreamRequest
from gateway.protocol.messages import ChatRequest, Media
from gateway.protocol.prompt import as_prompt, require_question

# With the option "Ignore Bots" a trigger refuses clients whose User-Agent names a library.
_AGENT = {"User-Agent": "Mozilla/5.0 (compatible; AI-Gateway)"}
_TYPE = "content-type"
# The id in a Chat Trigger's address is a UUID; a Webhook node's path ends in /chat by chance only.
_CHAT_TRIGGER = re.compile(r"/[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}/chat$", re.IGNORECASE)


class N8n(BasePlatform):
    kind = "n8n"

    def __init__(self, name: str, agent: N8nOptions, url: str) -> None:
        self._agent = agent
        self._url = url
        self.token = agent.api_key.reveal()
        bearer = "" if agent.username else self.token
        self._headers = {**_AGENT, **json_headers(bearer, agent.headers)}
        if agent.username and "Authorization" not in agent.headers:
            pair = base64.b64encode(f"{agent.username}:{self.token}".encode()).decode()
            self._headers["Authorization"] = f"Basic {pair}"
        self._salt = f"{url}\n{self.token}\n"

    def prepare(self, chat: ChatRequest) -> Step:
        """The request that starts the workflow. The trigger's settings decide whether the workflow
        streams, and no request reveals them. So `stream` is not set: a workflow with a whole answer
        may use all of the time."""
        require_question(chat)
        body: dict[str, Any] = {
            "action": "sendMessage",
            self._agent.session_member: self._session(_conversation(chat)),
            self._agent.input_member: as_prompt(chat),
            "metadata": {**chat.variables, "user": chat.user},
        }
        if not chat.question.media:
            return self._start(self._headers, dump(body))
        content_type, form = encode(body, chat.question.media)
        own = {name: self._headers[name] for name in self._headers if name.lower() != _TYPE}
        return self._start({**own, _TYPE: content_type}, form)

    def _start(self, headers: Mapping[str, str], body: bytes) -> UpstreamRequest:
        """A Respond to Webhook node sends text with the content type of a page."""
        return UpstreamRequest("POST", self._url, headers, body, takes_pages=True)

    def delivery(self, media: Media, chat: ChatRequest) -> Delivery:
        """A form needs the bytes. `accepts` says which kinds the trigger takes; usually none."""
        return "url" if media.is_data else "inline"

    def _session(self, conversation: str) -> str:
        """The session id for n8n. A caller who knows a session id can read the workflow's memory,
        so n8n gets an id that callers of the gateway never see."""
        return sha256((self._salt + conversation).encode()).hexdigest()[:32]

    def decoder(self, chat: ChatRequest) -> Decoder:
        return N8nDecoder(_conversation(chat), frozenset(self._agent.nodes))

    def recover(self, reply: UpstreamReply, chat: ChatRequest) -> Step:
        raise _explain(reply)

    def stop(self, chat: ChatRequest, decoder: Decoder) -> UpstreamRequest | None:
        return None  # n8n continues after a disconnect, and has no stop call

    def probe(self) -> Step:
        """A call that starts no workflow. A Chat Trigger checks the credentials before it reads a
        session; other nodes would run, so they get a GET, and say that they expect POST."""
        if _CHAT_TRIGGER.search(self._url):
            session = {self._agent.session_member: self._session("")}
            body = {"action": "loadPreviousSession", **session}
            return UpstreamRequest("POST", self._url, self._headers, dump(body))
        return UpstreamRequest("GET", self._url, self._headers)

    def describe(self, reply: UpstreamReply) -> str:
        message = as_text(reply.object().get("message"))
        if reply.status == 200 and isinstance(reply.object().get("data"), list):
            return say("the chat is active, and accepts the credentials")
        if reply.status == 404 and "POST request" in message:
            return Doubt(
                say("the workflow is active; a question will show whether the key is right")
            )
        if reply.status < 300:
            return Doubt(
                say("something answers there; a question will show whether it is the workflow")
            )
        raise _explain(reply)


def _conversation(chat: ChatRequest) -> str:
    return chat.conversation_id or f"n8n-{chat.call_id}"


def _explain(reply: UpstreamReply) -> GatewayError:
    body = reply.object()
    message = as_text(body.get("message"))
    if reply.status in (401, 403):
        reason = clean(reply.text[:200].strip()) or say("status {status}", status=reply.status)
        return UpstreamMisconfigured(
            say(
                "n8n refuses the credentials: {reason}. Send them as the node wants them: "
                "api_key as a bearer, username and api_key for Basic auth, or a header of "
                "its own in headers.",
                reason=reason,
            )
        )
    if reply.status == 404:
        hint = as_text(body.get("hint")) or say("Is the workflow active, and the chat public?")
        return UpstreamMisconfigured(say("n8n has no workflow at this address. {hint}", hint=hint))
    if reply.status == 428 or body.get("status") == "credential_readiness_check_failed":
        return UpstreamMisconfigured("n8n wants its user to connect credentials first.")
    error = explain_http("n8n", reply, message)
    if isinstance(error, UpstreamFailed | UpstreamTimeout):
        return error.replace(retryable=False)  # the workflow may have acted
    return error
