"""Error events and bodies of every platform give a reason, and their class is known, in
any shape."""

import orjson
import pytest

from gateway.errors import EmptyAnswer, QuotaExhausted
from gateway.platforms.fastgpt import failures as fastgpterrors
from gateway.protocol import sse
from gateway.protocol.exchange import UpstreamReply
from gateway.protocol.messages import Failed
from tests.platforms.decoding import decoder_for, feed

WORDS = "WORDS insufficient balance"
REASONS = [
    {"message": WORDS}, {"message": {"detail": WORDS}}, {"message": [WORDS]}, {"msg": WORDS},
    {"detail": WORDS}, {"detail": [{"msg": WORDS}]},
    {"error": WORDS}, {"error": {"message": WORDS}}, {"error": {"error": {"msg": WORDS}}},
    {"errors": [{"message": WORDS}]}, {"errors": [WORDS]}, {"code": 500, "msg": WORDS},
    {"code": "x", "message": WORDS}, {"message": f'{{"error":{{"message":"{WORDS}"}}}}'},
    {"error_code": 7, "error_msg": WORDS}, {"success": False, "msg": WORDS},
]  # fmt: skip


def failure(platform, name, event, before=b""):
    decoder = decoder_for(platform, name)
    (failed,) = [d for d in feed(decoder, before + event) if isinstance(d, Failed)]
    return failed.error


def check(error):
    assert "WORDS" in error.message
    assert type(error) is QuotaExhausted


@pytest.mark.parametrize("reason", REASONS, ids=str)
@pytest.mark.parametrize("platform", ["fastgpt", "dify", "coze", "openai", "zhipu"])
@pytest.mark.parametrize("name", ["", "error"])
def test_an_event_that_is_an_error_says_why(platform, name, reason):
    check(failure(platform, "", sse.event(orjson.dumps(reason), name)))


@pytest.mark.parametrize("platform", ["fastgpt", "dify", "coze", "openai", "zhipu"])
def test_an_event_named_error_says_why_further_inside(platform):
    event = orjson.dumps({"message": "", "data": {"message": WORDS}})
    check(failure(platform, "", sse.event(event, "error")))


@pytest.mark.parametrize("reason", REASONS, ids=str)
def test_a_dify_event_says_why(reason):
    event = {"error": None, "event": "error", "code": None, "status": 400, **reason}
    check(failure("dify", "", sse.event(orjson.dumps(event))))


@pytest.mark.parametrize("platform", ["fastgpt", "dify", "coze", "openai", "zhipu"])
@pytest.mark.parametrize("reason", [WORDS, [{"message": WORDS}], [WORDS]], ids=str)
def test_an_error_event_that_is_no_object_says_why(platform, reason):
    check(failure(platform, "", sse.event(orjson.dumps(reason), "error")))


@pytest.mark.parametrize("reason", [WORDS, {"message": WORDS}, [{"msg": WORDS}]], ids=str)
def test_a_failed_dify_run_says_why(reason):
    event = {"event": "workflow_finished", "data": {"status": "failed", "error": reason}}
    check(failure("dify", "workflow", sse.event(orjson.dumps(event))))


@pytest.mark.parametrize("last", [
    WORDS, {"code": 0, "msg": WORDS}, {"code": 5000, "msg": WORDS}, {"message": [WORDS]},
], ids=str)  # fmt: skip
def test_a_failed_coze_chat_says_why(last):
    event = {"id": "1", "status": "failed", "last_error": last}
    check(failure("coze", "", sse.event(orjson.dumps(event), "conversation.chat.failed")))


def test_a_code_is_better_than_no_word():
    event = {"event": "error", "code": WORDS, "message": None}
    check(failure("dify", "", sse.event(orjson.dumps(event))))


@pytest.mark.parametrize("reason", [WORDS, {"message": WORDS}, {"error": {"msg": WORDS}}], ids=str)
@pytest.mark.parametrize("member", ["errorText", "error"])
def test_a_failed_node_of_fastgpt_says_why(member, reason):
    said = {"choices": [{"delta": {"content": "Ha"}, "finish_reason": "stop"}]}
    node = {"id": "1", "moduleName": "AI", "moduleType": "chatNode", member: reason}
    stream = sse.event(orjson.dumps(said), "answer") + sse.event(b"[DONE]", "answer")
    check(failure("fastgpt", "", sse.event(orjson.dumps([node]), "flowResponses"), stream))


@pytest.mark.parametrize("reason", REASONS, ids=str)
def test_a_refusal_of_fastgpt_says_why(reason):
    reply = UpstreamReply(500, {}, orjson.dumps({"code": 500, "message": "", **reason}))
    check(fastgpterrors.explain(reply))


def test_a_choice_says_why_it_ended_in_an_error():
    choice = {"delta": {}, "finish_reason": "error", "error": {"message": WORDS}}
    check(failure("openai", "", sse.event(orjson.dumps({"choices": [choice]}))))


@pytest.mark.parametrize("event", [
    {"id": "1", "choices": [], "usage": {}}, {"code": 0, "msg": "success"}, {"object": "x"}, {},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("platform", ["openai", "zhipu"])
def test_an_event_that_says_nothing_is_no_failure(platform, event):
    error = failure(platform, "", sse.event(orjson.dumps(event)) + sse.DONE)
    assert type(error) is EmptyAnswer
