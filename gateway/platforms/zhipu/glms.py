"""The assistants of 智谱清言, which repeat the whole text in every frame."""

import re
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Callable
from typing import Any

from gateway.errors import (
    ContentRefused,
    GatewayError,
    InvalidRequest,
    RateLimited,
    UpstreamCut,
    UpstreamMisconfigured,
    clean,
)
from gateway.language.sentences import say
from gateway.platforms.base import (
    BadEvent,
    Decoder,
    Delivery,
    EventDecoder,
    Preliminary,
    Step,
    Token,
    UploadStep,
    as_id,
    as_list,
    as_object,
    as_text,
    base_url,
    dump,
    form_headers,
    json_headers,
    parse_object,
)
from gateway.platforms.failures import (
    explain_message,
    read,
)
from gateway.platforms.zhipu.failures import explain_glms, explain_reported
from gateway.platforms.zhipu.options import ZhipuOptions
from gateway.platforms.zhipu.product import Product
from gateway.protocol import sse
from gateway.protocol.content import files_note
from gateway.protocol.exchange import UploadRequest, UpstreamReply, UpstreamRequest
from gateway.protocol.messages import Begin, ChatRequest, Delta, Finish, Media, Note, Text
from gateway.protocol.prompt import as_prompt, require_question
from gateway.protocol.reported_errors import reported_error
from gateway.protocol.usage import as_count

_TOKEN_MARGIN_S = 600


class Glms(Product):
    """The assistants of 智谱清言: the key is exchanged for a token that is valid for ten days."""

    keeps_files = True
    kinds = frozenset(("image", "file"))

    def __init__(self, agent: ZhipuOptions, url: str, clock: Callable[[], float]) -> None:
        super().__init__(agent)
        self._key = self.token
        self._token = Token(self._key, 0.0, _TOKEN_MARGIN_S, clock)
        self.token = self._key
        self._api = base_url(
            url, "/stream", "/assistant-api/v1", "/chatglm", then="/chatglm/assistant-api/v1"
        )

    @property
    def remembers(self) -> bool:
        return True

    def prepare(self, chat: ChatRequest) -> Step:
        require_question(chat)
        if self._token.is_over:
            return Preliminary(
                self._token_request(), lambda r: self._learn_token(r, chat), shared=True
            )
        body: dict[str, Any] = {
            "assistant_id": self._agent.assistant_id or "demo",
            "prompt": as_prompt(chat),
        }
        if chat.conversation_id:
            body["conversation_id"] = chat.conversation_id
        if chat.variables:
            body["meta_data"] = chat.variables
        if chat.question.media:
            body["prompt"] = body["prompt"] or "请看附件。"
            body["file_list"] = [_read_file_id(media.uploaded) for media in chat.question.media]
        headers = json_headers(self.token, self._agent.headers)
        return UpstreamRequest("POST", f"{self._api}/stream", headers, dump(body), stream=True)

    def delivery(self, media: Media, chat: ChatRequest) -> Delivery:
        return "upload"

    def upload(self) -> UploadStep:
        if self._token.is_over:
            return Preliminary(self._token_request(), self._learn_token_to_upload, shared=True)
        headers = form_headers(self.token, self._agent.headers)
        return UploadRequest(f"{self._api}/file_upload", headers)

    def _learn_token_to_upload(self, reply: UpstreamReply) -> UploadStep:
        self._keep_token(reply)
        return self.upload()

    def uploaded(self, reply: UpstreamReply) -> str:
        """The file's id, which encodes the whole result, since a question needs all of it."""
        result = as_object(reply.object().get("result"))
        if reply.status != 200 or as_count(reply.object().get("status")) or not result:
            raise explain_glms(reply)
        return _FILE_ID + urlsafe_b64encode(dump(result)).decode().rstrip("=")

    def _token_request(self) -> UpstreamRequest:
        id_, _, secret = self._key.partition(".")
        body = dump({"api_key": id_, "api_secret": secret})
        headers = json_headers("", self._agent.headers)
        return UpstreamRequest("POST", f"{self._api}/get_token", headers, body)

    def _learn_token(self, reply: UpstreamReply, chat: ChatRequest) -> Step:
        self._keep_token(reply)
        return self.prepare(chat)

    def _keep_token(self, reply: UpstreamReply) -> None:
        result = as_object(reply.object().get("result"))
        token = as_text(result.get("access_token"))
        if not token:
            error = explain_glms(reply)
            if isinstance(error, RateLimited) or reply.status >= 500:
                raise error
            raise UpstreamMisconfigured(
                say(
                    "智谱清言 gave no token for the gateway's key: check api_key (id.secret). "
                    "({message})",
                    message=clean(read(reply).message) or reply.status,
                )
            )
        now = self._token.now()
        life = as_count(result.get("expires_in")) or 3600
        ends = float(as_count(result.get("token_expires")) or now + life)
        if ends < now + 2 * _TOKEN_MARGIN_S:  # a very short life, or clock skew
            ends = now + _TOKEN_MARGIN_S + life / 2
        self._token.value, self._token.until = token, ends
        self.token = token

    def decoder(self, chat: ChatRequest) -> Decoder:
        return GlmsDecoder()

    def recover(self, reply: UpstreamReply, chat: ChatRequest) -> Step:
        error = explain_glms(reply)
        if isinstance(error, UpstreamMisconfigured) and self._token.renew_for(chat.call_id):
            return self.prepare(chat)
        raise error

    def as_stream(self, reply: UpstreamReply) -> bytes:
        result = as_object(reply.object().get("result"))
        frames = [
            {**result, "message": message, "status": ""}
            for message in map(as_object, as_list(result.get("output")))
        ]
        if not frames:
            return b""
        frames[-1]["status"] = result.get("status") or "finish"
        return b"".join(sse.event(dump(frame)) for frame in frames)

    def probe(self) -> Step:
        return self._token_request()

    def describe(self, reply: UpstreamReply) -> str:
        self._keep_token(reply)
        return say("the key is accepted")


_FILE_ID = "glms-"


def _read_file_id(id_: str) -> dict[str, Any]:
    """The result that `uploaded` encoded in an id. Raises InvalidRequest for any other id."""
    text = id_.removeprefix(_FILE_ID)
    try:
        token = parse_object(b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True))
    except (ValueError, BadEvent):
        token = {}
    if not token:
        raise InvalidRequest(
            say("{id!r} is no id of a file that was uploaded for this agent.", id=id_[:40]),
            param="files",
        )
    return token


_SOURCE = re.compile(r"【\d{0,4}†[^【】]{0,50}】")


class GlmsDecoder(EventDecoder):
    """Every frame repeats the text so far. The text continues after tool parts."""

    platform = "Zhipu"
    repeats = True

    def __init__(self) -> None:
        super().__init__()
        self._begun = False
        self._seen = ""
        self._held = ""  # the latest text, including an end held back
        self._images: set[str] = set()
        self._failure = ""
        self._has_text = False

    def event(self, name: str, data: bytes, out: list[Delta]) -> None:
        if not data.strip() or data.strip() == b"[DONE]":
            return
        frame = parse_object(data)
        is_frame = isinstance(frame.get("message"), dict)
        if not is_frame and as_count(frame.get("status")):
            raise explain_glms(UpstreamReply(200, {}, data))
        error = frame.get("error") if is_frame else reported_error(frame)
        if error:
            raise self.explain(error)
        if not self._begun:
            self._begun = True
            self.conversation_id = as_id(frame.get("conversation_id"))
            out.append(Begin(self.conversation_id, as_id(frame.get("history_id"))))
        message = as_object(frame.get("message"))
        is_last = frame.get("status") in ("finish", "intervene")
        parts = message.get("content")
        for part in parts if isinstance(parts, list) else [parts]:
            self._part(as_object(part), message, is_last, out)
        if is_last:
            self._end(frame, out)

    def explain(self, error: Any) -> GatewayError:
        return explain_reported(error) if isinstance(error, dict) else super().explain(error)

    def _part(
        self, part: dict[str, Any], message: dict[str, Any], is_last: bool, out: list[Delta]
    ) -> None:
        kind = part.get("type")
        if kind == "text":
            before = self._seen
            self._grow(as_text(part.get("text")), is_last, out)
            if self._seen != before:  # the answer continued after a tool's failure
                self._failure = ""
        elif kind == "image" and message.get("status") == "finish":
            images = {as_text(as_object(i).get("image_url")) for i in as_list(part.get("image"))}
            new = sorted(images - self._images - {""})
            self._images |= images
            out.append(files_note([{"type": "image", "url": url, "name": ""} for url in new]))
        elif kind == "quote_result":
            sources = as_list(as_object(message.get("meta_data")).get("metadata_list"))
            cited = [
                {"title": as_text(s.get("title")), "url": as_text(s.get("url"))}
                for s in map(as_object, sources)
            ]
            out.append(Note("citations", cited))
        elif kind == "system_error":
            self._failure = as_text(part.get("content")) or "system_error"
        elif kind:
            out.append(Note("tools", []))  # code, its output, a browser: a sign of life

    def _grow(self, text: str, is_last: bool, out: list[Delta]) -> None:
        """Emit the new text without marks of sources; an incomplete mark is held back."""
        text = _SOURCE.sub("", text)
        self._held = text
        start = text.rfind("【")
        if not is_last and start >= 0 and "】" not in text[start:] and len(text) - start < 64:
            text = text[:start]
        if self._seen.startswith(text):
            return
        new = text[len(self._seen) :] if text.startswith(self._seen) else f"\n{text}"
        self._seen, self._has_text = text, True
        out.append(Text(new))

    def _end(self, frame: dict[str, Any], out: list[Delta]) -> None:
        self._grow(self._held, True, out)
        if frame.get("status") == "intervene":
            message = as_text(as_object(frame.get("last_error")).get("intervene_text"))
            if not self._has_text:
                raise ContentRefused(
                    clean(message) or say("Zhipu's moderation refused the question.")
                )
            out.append(Finish("content_filter"))
        elif self._failure:
            raise explain_message("Zhipu", self._failure)
        else:
            out.append(Finish("stop"))
        self.done = True

    def finish(self, out: list[Delta]) -> None:
        raise UpstreamCut("Zhipu's answer ended before it was complete.")
