"""Upstreams' refusals, and the gateway's errors for them."""

import re

import orjson
import pytest

from gateway.errors import (
    BodyTooLarge,
    ContentRefused,
    ContextTooLong,
    InvalidRequest,
    QuotaExhausted,
    RateLimited,
    UpstreamFailed,
    UpstreamMisconfigured,
    UpstreamUnavailable,
)
from gateway.platforms.failure_table import ROWS
from gateway.platforms.failures import explain_http, explain_member, explain_message, read
from gateway.protocol.exchange import UpstreamReply

ERRORS = {
    "request_over_limit": RateLimited,
    "rate": RateLimited,
    "credit": QuotaExhausted,
    "context": ContextTooLong,
    "moderated": ContentRefused,
    "model": UpstreamMisconfigured,
    "key": UpstreamMisconfigured,
    "overloaded": UpstreamUnavailable,
    "body": BodyTooLarge,
}


def reply(body, status=400, **headers):
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return UpstreamReply(status, names, data)


def explained(body, status=400, **headers):
    return explain_http("X", reply(body, status, **headers), own_request=True)


# Every row.


def examples(phrase):
    """Texts that match a phrase: every alternative once, with the first ones of other groups."""
    phrase = (
        phrase.replace("…", " so")
        .replace("<id>", "m-1 ")
        .replace("[ -]?", "-")
        .replace("[ -]", " ")
    )
    phrase = phrase.replace(" ?", " ").replace(r"\+", "+").replace("s?", "s")
    parts = re.split(r"\(([^()]*)\)", phrase)  # odd ones are alternatives
    first = [part.split("|")[0] for part in parts]
    for at, part in enumerate(parts):
        for way in part.split("|"):
            text = "".join([*first[:at], way, *first[at + 1 :]])
            yield re.sub(" +", " ", text).strip()


PHRASES = list(dict.fromkeys(
    (row, text) for row in ROWS for phrase in row.phrases for text in examples(phrase)
))  # fmt: skip
NAMES = [(row, name) for row in ROWS for name in row.names]
CODES = [(row, code) for row in ROWS for code in row.codes]


@pytest.mark.parametrize(("row", "phrase"), PHRASES, ids=[phrase for _, phrase in PHRASES])
def test_a_phrase_decides_before_the_status(row, phrase):
    for status in (400, 403, 429, 500):
        error = explained({"error": {"message": f"Sorry: {phrase.upper()} ..."}}, status)
        assert type(error) is ERRORS[row.kind]
        assert phrase in error.message.lower()


@pytest.mark.parametrize(("row", "name"), NAMES, ids=[name for _, name in NAMES])
@pytest.mark.parametrize("member", ["code", "type", "status", "reason"])
def test_a_name_decides_where_codes_stand(row, name, member):
    for written in (name, f"New{name.title()}Error", name.upper()):
        error = explained({"error": {"message": "Sorry", member: written}})
        assert type(error) is ERRORS[row.kind]


@pytest.mark.parametrize(("row", "name"), NAMES, ids=[name for _, name in NAMES])
def test_a_name_is_no_class_as_a_part_of_the_callers_names(row, name):
    for words in (
        f"Unknown parameter: '{name}'.", f"Invalid schema for function 'list_{name}_all'",
        f"Unrecognized request argument supplied: my_{name}", f"KeyError: '{name}'",
        f"Tool {name} check invoke error: no route", f"Unable to get https://x.test/{name}.png",
    ):  # fmt: skip
        assert type(explained({"error": {"message": words}})) is InvalidRequest


@pytest.mark.parametrize(("row", "code"), CODES, ids=[code for _, code in CODES])
def test_a_code_decides_in_the_member_where_its_provider_puts_it(row, code):
    member, _, number = code.partition(":")
    names = {"errorcode": "error_code", "statuscode": "status_code"}
    body = {"base_resp": {names.get(member, member): int(number), "status_msg": "Sorry"}}
    assert type(explained(body, 200)) is ERRORS[row.kind]
    assert type(explained({"error": {"code": "9" + number, "message": "Sorry"}})) is InvalidRequest


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.kind}-{row.who}" for row in ROWS])
def test_rows_are_written_as_they_are_compared(row):
    assert all(phrase == phrase.lower() for phrase in row.phrases)
    assert all(" " in text or not text.isascii() for _, text in PHRASES)
    assert all(re.fullmatch("[a-z]{5,}", name) for name in row.names)
    assert all(code.partition(":")[2] for code in row.codes)
    assert row.phrases or row.names or row.codes


EVERYDAY = [
    "Invalid schema for function 'list_overdue_invoices': In context=('properties', 'x'), 'type' is missing",
    "Invalid 'tools[0].function.name': '充值查询' does not match '^[a-zA-Z0-9_-]+$'",
    "Invalid schema for function 'plan_meals': In context=('properties', 'caloriesPerDay'), array schema missing items",
    "Unrecognized request argument supplied: rate_limit", "Unknown parameter: 'context_length'.",
    "Failed to download image from https://img.example.com/monthly-overdue-report.png",
    "Invalid schema for function 'pay': property 'payment_required' must be of type boolean",
    "overdue_days is required in input form", "Run failed: Variable #1732.充值金额# not found",
    "KeyError: 'overdue'", "代码执行失败：字段「并发数」不能为空", "Tool 内容审核 invoke error: connection refused",
    "database query returned 429 records", "Error in node Overloaded Check: name 'x' is not defined",
    "内部错误，请稍后重试", "unsafe legacy renegotiation disabled", "Unsupported method: POST",
    "the tool took too long for this run", "429 rows were returned", "429 条记录", "took 4290 ms",
    "字段“余额不足”不能为空", "变量 敏感词列表 未定义", "「限流」节点执行失败", "工具 并发测试 执行失败",
    "额度用途不能为空", "敏感度必须是数字", "充值金额必须大于 0", "请输入充值金额", "配额字段缺失", "上下文变量不存在",
    "余额字段不能为空", "并发数必须是整数", "审核人不能为空", "欠费金额格式错误", "频率必须是整数", "限流配置不能为空",
    "Property quota must be a number", "field daily quota is required", "usage_limit must be an integer",
    "context length must be an integer", "context window must be positive", "usage limit must be a number",
    "maximum value of calories per minute is 100", "rate limit must be a number", "budget is required",
    "SyntaxError: invalid token at line 3", "Missing required parameter: 'messages[1].content'.",
    "'high demand' is not one of ['low', 'medium']", "No tool named check_rate_limit_error in this app",
    "Tool top up failed: connection refused", "Column insufficient_balance does not exist",
    "Error in node 余额不足提醒: name 'x' is not defined", "Cannot open 余额不足.pdf", "data:image/png;base64,overdue",
    "Unknown tool `too many requests`", "Template {{ insufficient balance }} not rendered",
    "'insufficient_quota' is not of type 'integer'", "Additional properties are not allowed ('rate_limit_exceeded' was unexpected)",
    "Tool 余额查询 invoke error: timeout", "The file credit-limit-exceeded.pdf could not be read",
    "Plugin 敏感词过滤 not installed", "Workflow 充值流程 failed: timeout", "ValueError: '余额不足'",
    "您的订单已过期", "订单超过预算", "令牌桶大小必须为正", "exit status 429", "error 404 lines parsed",
    "401k plan data missing", "TypeError: overloaded function not matched",
    "country code 429 is unknown", "HTTP request to node 429 failed",
]  # fmt: skip


@pytest.mark.parametrize("words", EVERYDAY)
def test_ordinary_text_decides_no_class(words):
    assert type(explained({"error": {"message": words}}, 500)) is UpstreamFailed
    assert type(explained({"error": {"message": words}}, 400)) is InvalidRequest
    assert type(explain_message("X", words)) is UpstreamFailed


INSIDE = {
    "Error code: 429 - {'error': {'message': 'Too bad', 'type': 'insufficient_quota', 'code': 'insufficient_quota'}}": "credit",
    "Error code: 400 - {'error': {'message': \"You can't: your balance is insufficient\"}}": "credit",
    'req_id: 1 PluginInvokeError: {"error_type":"InvokeRateLimitError","message":"no"}': "rate",
    'Upstream said {"error":"{\\"error\\":{\\"code\\":\\"context_length_exceeded\\"}}"}': "context",
    "openai.RateLimitError: no": "rate", "insufficient_quota": "credit", "Overloaded": "overloaded",
    "ThrottlingException: no": "rate", "[m] Error: insufficient_quota, sorry": "credit",
    "AppIdQpsOverFlow: 该令牌额度已用尽 TokenStatusExhausted": "credit", '"Insufficient Balance"': "credit",
    "您的QPS超限": "rate", "API密钥无效": "key", "status code 429": "rate", "Client error '429 Too Many Requests' for url 'x'": "rate",
}  # fmt: skip


@pytest.mark.parametrize("words", INSIDE)
def test_an_error_inside_a_message_is_of_its_class(words):
    assert type(explain_message("X", words)) is ERRORS[INSIDE[words]]


# Whole bodies, as providers send them.

BODIES = {
    "openai": (429, {"error": {"message": "You exceeded your current quota", "type": "insufficient_quota", "param": None, "code": "insufficient_quota"}}, "credit"),
    "deepseek": (402, {"error": {"message": "Insufficient Balance", "type": "unknown_error", "param": None, "code": "invalid_request_error"}}, "credit"),
    "deepseek risk": (400, {"error": {"message": "Content Exists Risk", "type": "invalid_request_error", "code": "invalid_request_error"}}, "moderated"),
    "deepseek model": (400, {"error": {"message": "Model Not Exist", "type": "invalid_request_error", "code": "invalid_request_error"}}, "model"),
    "deepseek key": (401, {"error": {"message": "Authentication Fails, Your api key: ****abcd is invalid", "type": "authentication_error", "code": "invalid_request_error"}}, "key"),
    "openrouter": (402, {"error": {"message": "This request requires more credits, or fewer max_tokens.", "code": 402}}, "credit"),
    "openrouter inside": (502, {"error": {"message": "Provider returned error", "code": 502, "metadata": {"raw": '{"error":{"message":"Overloaded","type":"overloaded_error"}}', "provider_name": "X"}}}, "overloaded"),
    "moonshot": (429, {"error": {"message": "Your account is suspended, please check your plan", "type": "exceeded_current_quota_error"}}, "credit"),
    "moonshot busy": (429, {"error": {"message": "The engine is currently overloaded, please try again later", "type": "engine_overloaded_error"}}, "overloaded"),
    "moonshot rate": (429, {"error": {"message": "Your account max RPM: 3, please try again after 1 seconds", "type": "rate_limit_reached_error"}}, "rate"),
    "moonshot long": (400, {"error": {"message": "Invalid request: Your request exceeded model token limit: 8192", "type": "invalid_request_error"}}, "context"),
    "moonshot risk": (400, {"error": {"message": "The request was rejected because it was considered high risk", "type": "content_filter"}}, "moderated"),
    "siliconflow": (403, {"code": 30001, "message": "Sorry, your account balance is insufficient", "data": None}, "credit"),
    "siliconflow model": (400, {"code": 20012, "message": "Model does not exist. Please check it carefully.", "data": None}, "model"),
    "siliconflow long": (400, {"code": 20015, "message": "length of prompt_tokens (40000) must be less than max_seq_len (32768).", "data": None}, "context"),
    "siliconflow tpm": (429, {"message": "Request was rejected due to rate limiting. Details: TPM limit reached.", "data": None}, "rate"),
    "siliconflow busy": (503, {"code": 50505, "message": "Model service overloaded. Please try again later.", "data": None}, "overloaded"),
    "one-api": (403, {"error": {"message": "user quota is not enough", "type": "one_api_error", "param": "", "code": "insufficient_user_quota"}}, "credit"),
    "one-api token": (401, {"error": {"message": "该令牌额度已用尽 TokenStatusExhausted", "type": "one_api_error"}}, "credit"),
    "new-api channel": (503, {"error": {"message": "当前分组 default 下对于模型 m 无可用渠道", "type": "new_api_error", "code": "model_not_found"}}, "model"),
    "one-api busy": (429, {"error": {"message": "当前分组上游负载已饱和，请稍后再试", "type": "one_api_error"}}, "overloaded"),
    "dashscope": (400, {"error": {"code": "Arrearage", "message": "Access denied, please make sure your account is in good standing.", "type": "Arrearage"}}, "credit"),
    "dashscope free": (403, {"error": {"code": "AllocationQuota.FreeTierOnly", "message": "The free tier of the model has been exhausted."}}, "credit"),
    "dashscope risk": (400, {"code": "DataInspectionFailed", "message": "Input data may contain inappropriate content.", "request_id": "r"}, "moderated"),
    "dashscope rate": (429, {"code": "Throttling.RateQuota", "message": "Requests rate limit exceeded", "request_id": "r"}, "rate"),
    "dashscope tokens": (429, {"code": "Throttling.AllocationQuota", "message": "Allocated quota exceeded, please increase your quota limit."}, "rate"),
    "dashscope long": (400, {"error": {"code": "invalid_parameter_error", "message": "Range of input length should be [1, 30720]", "type": "invalid_request_error"}}, "context"),
    "dashscope key": (401, {"code": "InvalidApiKey", "message": "Invalid API-key provided.", "request_id": "r"}, "key"),
    "ark": (403, {"error": {"code": "AccountOverdueError", "message": "your account has an overdue balance.", "type": "Forbidden"}}, "credit"),
    "ark paused": (429, {"error": {"code": "SetLimitExceeded", "message": "Your account has reached the set inference limit", "type": "TooManyRequests"}}, "credit"),
    "ark rate": (429, {"error": {"code": "ModelAccountTpmRateLimitExceeded", "message": "Tpm exceeded", "type": "TooManyRequests"}}, "rate"),
    "ark busy": (429, {"error": {"code": "ServerOverloaded", "message": "The service is currently unable to serve", "type": "TooManyRequests"}}, "overloaded"),
    "ark risk": (400, {"error": {"code": "InputTextSensitiveContentDetected", "message": "The request failed", "type": "BadRequest"}}, "moderated"),
    "ark model": (404, {"error": {"code": "InvalidEndpointOrModel.NotFound", "message": "The model or endpoint m is not there", "type": "NotFound"}}, "model"),
    "ark closed": (404, {"error": {"code": "ModelNotOpen", "message": "Your account has not activated the model", "type": "NotFound"}}, "model"),
    "minimax": (200, {"id": "x", "choices": None, "base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}, "credit"),
    "minimax rate": (200, {"choices": None, "base_resp": {"status_code": 1039, "status_msg": "token limit"}}, "rate"),
    "minimax risk": (200, {"choices": None, "base_resp": {"status_code": 1026, "status_msg": "input new_sensitive"}}, "moderated"),
    "minimax key": (200, {"choices": None, "base_resp": {"status_code": 1004, "status_msg": "login fail"}}, "key"),
    "minimax long": (200, {"choices": None, "base_resp": {"status_code": 2013, "status_msg": "invalid params, context window exceeds limit"}}, "context"),
    "google": (429, [{"error": {"code": 429, "message": "You exceeded your current quota, please check your plan and billing details.", "status": "RESOURCE_EXHAUSTED"}}], "credit"),
    "google minute": (429, [{"error": {"code": 429, "message": "You exceeded your current quota, please check your plan and billing details. Please retry in 36.2s.", "status": "RESOURCE_EXHAUSTED"}}], "rate"),
    "google day": (429, {"error": {"code": 429, "message": "You exceeded your current quota. Please retry in 6s.", "status": "RESOURCE_EXHAUSTED", "details": [{"@type": "QuotaFailure", "violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}]}]}}, "credit"),
    "google key": (400, [{"error": {"code": 400, "message": "Please pass a valid API key.", "status": "INVALID_ARGUMENT", "details": [{"reason": "API_KEY_INVALID"}]}}], "key"),
    "google busy": (503, [{"error": {"code": 503, "message": "The model is overloaded. Please try again later.", "status": "UNAVAILABLE"}}], "overloaded"),
    "glm 1308": (429, {"error": {"code": "1308", "message": "Usage limit reached for 5 hour."}}, "credit"),
    "glm 1113": (429, {"error": {"code": "1113", "message": "余额不足或无可用资源包,请充值。"}}, "credit"),
    "glm 1302": (429, {"error": {"code": "1302", "message": "您的账户已达到速率限制"}}, "rate"),
    "glm 1301": (400, {"error": {"code": "1301", "message": "系统检测到输入或生成内容可能包含不安全或敏感内容"}}, "moderated"),
    "xai": (403, {"code": "permission", "error": "Your newly created team doesn't have any credits yet."}, "credit"),
    "xai key": (400, {"code": "invalid-argument", "error": "Incorrect API key provided: xa***yz."}, "key"),
    "xai risk": (403, {"code": "permission", "error": "Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_BIO"}, "moderated"),
    "claude": (400, {"type": "error", "error": {"type": "invalid_request_error", "message": "Your credit balance is too low to access the Anthropic API."}}, "credit"),
    "claude long": (400, {"type": "error", "error": {"type": "invalid_request_error", "message": "prompt is too long: 208310 tokens > 200000 maximum"}}, "context"),
    "claude busy": (529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, "overloaded"),
    "claude rate": (429, {"type": "error", "error": {"type": "rate_limit_error", "message": "This request would exceed your organization's rate limit of 30,000 input tokens per minute."}}, "rate"),
    "claude body": (413, {"type": "error", "error": {"type": "request_too_large", "message": "Request exceeds the maximum size"}}, "body"),
    "groq minute": (413, {"error": {"message": "Request too large for model `m` on tokens per minute (TPM): Limit 8000, Requested 9120", "type": "tokens", "code": "rate_limit_exceeded"}}, "request_over_limit"),
    "groq day": (429, {"error": {"message": "Rate limit reached for model `m` on tokens per day (TPD). Please try again in 8m3.5s.", "type": "tokens", "code": "rate_limit_exceeded"}}, "rate"),
    "cerebras": (400, {"message": "Please reduce the length of the messages or completion. Current length is 8193 while limit is 8192", "type": "invalid_request_error", "param": "messages", "code": "context_length_exceeded"}, "context"),
    "azure": (400, {"error": {"message": "The response was filtered due to the prompt triggering a policy.", "param": "prompt", "code": "content_filter", "status": 400}}, "moderated"),
    "azure deployment": (404, {"error": {"code": "DeploymentNotFound", "message": "The API deployment for this resource does not exist."}}, "model"),
    "baidu": (200, {"error_code": 336103, "error_msg": "the prompt tokens too long"}, "context"),
    "baidu token": (200, {"error_code": 110, "error_msg": "Access token invalid or no longer valid"}, "key"),
    "baidu v2": (429, {"error": {"code": "rpm_rate_limit_exceeded", "message": "Rate limit reached for RPM", "type": "rate_limit_exceeded"}}, "rate"),
    "hunyuan": (200, {"Response": {"Error": {"Code": "ResourceUnavailable.InArrears", "Message": "账号已欠费"}, "RequestId": "r"}}, "credit"),
    "hunyuan key": (200, {"Response": {"Error": {"Code": "AuthFailure.SignatureFailure", "Message": "The provided credentials could not be validated."}}}, "key"),
    "stepfun": (451, {"error": {"message": "blocked", "type": "censorship_blocked"}}, "moderated"),
    "stepfun credit": (402, {"error": {"message": "no money", "type": "quota_exceeded"}}, "credit"),
    "spark": (200, {"code": 11202, "message": "AppIdQpsOverFlowError", "sid": "s"}, "rate"),
    "llama.cpp": (400, {"error": {"code": 400, "message": "the request exceeds the available context size", "type": "exceed_context_size_error"}}, "context"),
    "ollama": (404, {"error": "model 'm' not found, try pulling it first"}, "model"),
    "vllm": (404, {"object": "error", "message": "The model `m` does not exist.", "type": "NotFoundError", "code": 404}, "model"),
    "openai model": (404, {"error": {"message": "Sorry", "type": "invalid_request_error", "code": None}}, "model"),
    "github tokens": (413, {"error": {"code": "tokens_limit_reached", "message": "Request body too large for m model. Max size: 8000 tokens."}}, "context"),
    "tgi": (429, {"error": "Model is overloaded", "error_type": "overloaded"}, "overloaded"),
    "novita": (403, {"code": 403, "reason": "NOT_ENOUGH_BALANCE", "message": "no"}, "credit"),
    "cloudflare": (429, {"errors": [{"message": "you have used up your daily free allocation of 10,000 neurons", "code": 3036}], "success": False}, "credit"),
    "bedrock": (429, {"__type": "ThrottlingException", "Message": "Too many tokens, please wait"}, "rate"),
    "azure rate": (429, {"error": {"code": "429", "message": "Requests have exceeded call rate limit. Please retry after 20 seconds."}}, "rate"),
    "nginx": (413, b"<html><head><title>413 Request Entity Too Large</title></head></html>", "body"),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_a_providers_body_is_of_its_class(name):
    status, body, kind = BODIES[name]
    assert type(explained(body, status)) is ERRORS[kind]


@pytest.mark.parametrize("name", [n for n, (status, _, _) in BODIES.items() if status == 200])
def test_the_same_under_200_inside_an_answer(name):
    _, body, kind = BODIES[name]
    assert type(explain_member("X", body, own_request=True)) is ERRORS[kind]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, InvalidRequest), (401, UpstreamMisconfigured), (402, QuotaExhausted),
        (403, UpstreamMisconfigured), (413, BodyTooLarge), (422, InvalidRequest),
        (429, RateLimited), (451, ContentRefused), (500, UpstreamFailed),
        (529, UpstreamUnavailable),
    ],
)  # fmt: skip
def test_without_a_known_phrase_the_status_decides(status, error):
    assert type(explained({"error": {"message": "Sorry"}}, status)) is error


# What it means for the caller.


def test_a_request_over_a_minute_limit_is_only_for_another_agent():
    status, body, _ = BODIES["groq minute"]
    error = explained(body, status)
    assert (error.status, error.retryable, error.elsewhere) == (429, False, True)
    assert error.should_retry is False


@pytest.mark.parametrize(
    ("words", "wait_s"),
    [
        ("Rate limit: please try again in 8m3.5s", 483.5), ("rate limit, retry in 36.2s.", 36.2),
        ("rate limit: try again after 1 seconds", 1), ("rate limit: try again in 20ms", 0.02),
        ("rate limit: try again in 1h2m3s", 3723), ("rate limit: try again later", 5),
        ("rate limit: try again in a while, request 77s8", 5),
    ],
)  # fmt: skip
def test_the_wait_is_read_from_the_message(words, wait_s):
    assert explained({"error": {"message": words}}, 429).retry_after_s == wait_s


def test_the_wait_in_the_header_wins_over_the_message():
    body = {"error": {"message": "rate limit: try again in 7s"}}
    assert explained(body, 429, Retry_After="3").retry_after_s == 3


@pytest.mark.parametrize(
    "body",
    [
        {"detail": "Not Found"},
        {"error": {"message": "There is nothing at POST '/foo/v1/chat/completions'.",
                   "type": "invalid_request_error", "code": "not_found"}},
        {"error": {"message": "Invalid URL (POST /models/v1/chat/completions)"}},
    ],
)  # fmt: skip
def test_a_path_that_is_not_there_is_not_taken_for_a_model(body):
    error = explained(body, 404)
    assert "check base_url" in error.message
    assert "model to this account" not in error.message


@pytest.mark.parametrize(
    "error",
    [
        {"message": "The model `m` is gone."}, {"message": "模型 m 没有找到"},
        {"message": "'m' is not here", "param": "model"},
    ],
)  # fmt: skip
def test_404_that_speaks_of_a_model_blames_the_model(error):
    message = explained({"error": error}, 404).message
    assert "does not offer the configured model" in message


def test_a_model_that_the_caller_chose_is_the_callers_to_change():
    body = {"error": {"message": "Model Not Exist"}}
    error = explain_http("X", reply(body), own_request=True, own_model=True)
    assert (error.status, error.param) == (400, "model")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("Error code: 402 - {'error': {'message': 'no'}}", QuotaExhausted),
        ("[models] Error: status code 401", UpstreamMisconfigured),
        ("402 no", QuotaExhausted), ("status code 403", UpstreamFailed), ("401 no", UpstreamMisconfigured), ("HTTP 429", RateLimited), ("status code: 529", UpstreamUnavailable),
        ("Content Exists Risk", ContentRefused), ("用户额度不足", QuotaExhausted),
        ("took 4290 ms", UpstreamFailed), ("node 402 failed", UpstreamFailed),
    ],
)  # fmt: skip
def test_words_alone_are_enough(words, error):
    got = explain_message("Dify", words)
    assert type(got) is error
    assert not got.retryable
    assert words.split(" - ")[0] in got.message


def test_a_request_over_a_minutes_limit_is_known_by_its_status():
    body = {"message": "Tokens per minute limit exceeded", "code": "token_quota_exceeded"}
    assert explained(body, 413).should_retry is False
    assert explained(body, 429).retryable


@pytest.mark.parametrize("charset", ["gbk", "GB2312", '"gb18030"', "big5", "utf-16", "utf-8"])
def test_words_in_another_charset_are_read(charset):
    name = charset.strip('"')
    words = "帳號餘額不足" if name == "big5" else "账户余额不足"
    told = orjson.dumps({"message": words}).decode().encode(name)
    error = explained(told, 403, Content_Type=f"application/json; charset={charset}")
    assert words in error.message
    assert name == "big5" or type(error) is QuotaExhausted
    error = explained(words.encode(name), 403, Content_Type=f"text/plain; charset={charset}")
    assert words in error.message


# The messages.

SHAPES = [
    {"error": {"message": "WORDS"}}, {"error": "WORDS"}, {"message": "WORDS"}, {"msg": "WORDS"},
    {"detail": "WORDS"}, {"detail": [{"loc": ["body", "model"], "msg": "WORDS", "type": "missing"}]},
    {"errors": [{"message": "WORDS"}]}, {"errors": ["WORDS"]}, {"error": {"message": {"detail": "WORDS"}}},
    {"error_code": 1, "error_msg": "WORDS"}, {"errno": 1, "errmsg": "WORDS"}, {"Message": "WORDS"},
    {"errorMessage": "WORDS"}, {"title": "WORDS", "status": 400}, {"error_description": "WORDS", "error": "x"},
    [{"error": {"message": "WORDS"}}], {"error": '{"error":{"message":"WORDS"}}'}, {"Response": {"Error": {"Message": "WORDS"}}},
    {"error": {"message": "outer", "metadata": {"raw": '{"message":"WORDS"}'}}},
    {"fault": {"faultstring": "WORDS"}}, {"odd": "WORDS"}, "WORDS",
    b"WORDS", b"<html><body><script>var x</script><p>WORDS</p></body></html>",
    b"<!DOCTYPE html><title>WORDS</title><body>x</body>", b'{"message":"WORDS', b"\xff\xfe WORDS",
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=[str(shape)[:50] for shape in SHAPES])
@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 502])
def test_the_upstreams_message_is_repeated(shape, status):
    assert "WORDS" in explained(shape, status).message


def test_a_complaint_about_a_member_names_it():
    body = {"detail": [{"loc": ["body", "messages", 0], "msg": "field required"}]}
    assert "body.messages.0: field required" in explained(body, 422).message


def test_a_refused_body_is_not_repeated_in_the_message():
    body = {"detail": [{"loc": ["body"], "msg": "bad", "input": {"message": "my secret"}}]}
    assert "secret" not in explained(body, 422).message


def test_keys_in_a_message_are_not_forwarded():
    error = explained({"error": {"message": "Bad key sk-abcdefghijklmnop"}}, 401)
    assert "abcdefgh" not in error.message


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 60_000, b'{"error":' * 9000, orjson.dumps({"error": [[[[[["x"]]]]]]}),
        orjson.dumps({str(i): {"error": "x" * 50} for i in range(900)}), b"<" * 65_000,
        b"<script>" * 8000, b"\x00" * 9000, b"", b"null", b"0", orjson.dumps("x" * 100_000),
    ],
    ids=range(11),
)  # fmt: skip
def test_no_body_is_too_odd_to_be_read(body):
    assert len(explained(body, 500).message) < 3000
    read(reply(body))
