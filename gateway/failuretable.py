"""What upstreams say when they refuse, as data: known codes and phrases, and what each means.

`gateway.failures` searches the rows in order, and the first that fits decides. So sharp rows stand
above vague ones: OpenAI says `rate_limit_exceeded` of a request that can never fit as well, and
Google one sentence of a minute's limit and of a plan that is used up.

A code is `member:value`, since numbers mean different things in different members. Member names are
lower case without `_` and `-`; values and phrases are lower case. A phrase is looked for in the
words and in the codes that are names.

Sources: the providers' own lists of error codes, and bodies quoted in public reports.
"""

from typing import Literal, NamedTuple

Kind = Literal[
    "request_over_limit",  # it alone is more than the account may send in a minute
    "rate",
    "credit",
    "context",
    "moderated",
    "model",
    "key",
    "overloaded",
    "body",  # the request is too large as a body
]


class Row(NamedTuple):
    """One provider's ways to say one thing."""

    kind: Kind
    who: str
    phrases: tuple[str, ...]
    codes: tuple[str, ...] = ()


ROWS = (
    Row("request_over_limit", "OpenAI, Groq", (
        "request too large for", "please reduce your message size",
        "input or output tokens must be reduced",
    )),
    Row("credit", "Google", (
        "perday", "prepayment credits", "spending cap", "spend cap",
    )),
    Row("rate", "Google", ("please retry in", "perminute")),
    Row("rate", "OpenAI, Groq, Anthropic, SiliconFlow", (
        "per minute", "per min (", "tokens per day", "requests per day", "tokens per hour",
        "rate limit reached for", "tpm limit", "rpm limit", "(tpm)", "(rpm)", "qps limit",
        "concurrent request",
    )),
    Row("rate", "DashScope", (
        "throttling", "limit_burst_rate", "limit_requests", "requests rate limit",
    )),
    Row("rate", "Moonshot", ("rate_limit_reached_error", "max rpm", "max tpm", "max organization")),

    Row("credit", "OpenAI, Azure", (
        "insufficient_quota", "insufficient quota", "exceeded your current quota",
        "billing_hard_limit_reached", "billing hard limit", "billing_not_active",
        "account is not active",
    )),
    Row("credit", "DeepSeek, SiliconFlow, MiniMax", (
        "insufficient balance", "balance is insufficient", "insufficient_balance",
        "usage limit exceeded", "balance not enough",
    ), ("code:30001", "statuscode:1008", "statuscode:2056")),
    Row("credit", "OpenRouter", (
        "insufficient credits", "requires more credits", "can only afford", "key limit exceeded",
    )),
    Row("credit", "Moonshot", ("exceeded_current_quota_error", "account is suspended")),
    Row("credit", "one-api, new-api", (
        "insufficient_user_quota", "quota is not enough", "pre_consume_token_quota_failed",
        "额度不足", "额度已用尽", "额度已耗尽", "预扣费额度失败", "quota exhausted",
        "quota has been exhausted",
    )),
    Row("credit", "DashScope", (
        "arrearage", "account is in good standing", "freetieronly",
        "free tier of the model has been exhausted", "free allocated quota exceeded",
        "billoverdue", "commoditynotpurchased",
    )),
    Row("credit", "Volcengine ark", (
        "accountoverdueerror", "overdue balance", "setlimitexceeded", "quotaexceeded",
    )),
    Row("credit", "Zhipu", (
        "余额不足", "无可用资源包", "请充值", "usage limit reached for",
    ), ("code:1113", "code:1304", "code:1308", "code:1309", "code:1310")),
    Row("credit", "xAI", (
        "have any credits", "used all available credits", "monthly spending limit",
        "run out of credits", "out of credits", "purchase more credits",
    )),
    Row("credit", "Anthropic", ("credit balance is too low", "billing_error")),
    Row("credit", "Tencent hunyuan", (
        "inarrears", "resourcepackexhausted", "servicestoparrears", "servicestop", "欠费",
    )),
    Row("credit", "Baidu qianfan", (
        "daily request limit reached", "total request limit reached", "overdue",
    ), ("errorcode:17", "errorcode:19")),
    Row("credit", "StepFun, Dify", ("quota_exceeded", "your quota for dify hosted")),
    Row("credit", "Groq, Cerebras, Together, Cohere, Hugging Face", (
        "spend limit", "payment_required", "payment required", "credit limit exceeded",
        "calls / month", "monthly included credits", "insufficient funds", "insufficient credit",
    )),
    Row("credit", "iFlytek Spark", ("授权量不足",), ("code:11201",)),
    Row("credit", "FastGPT, Coze", ("积分不足", "积分已用完", "点数不足", "资源点不足")),
    Row("credit", "Novita, PPIO, ModelScope, Cloudflare, Kimi's and other plans", (
        "not enough balance", "not_enough_balance", "daily free allocation", "today's quota",
        "daily quota", "usage limit", "usage cap",
    )),
    Row("credit", "in English", (
        "not enough credits", "no credits", "credits exhausted", "credit exhausted",
        "please recharge", "recharge your account", "top up",
    )),
    Row("credit", "in Chinese", (
        "额度已用", "额度用尽", "配额不足", "配额已用", "用量上限", "免费额度", "充值",
    )),

    Row("context", "OpenAI, Azure, DeepSeek, Groq, Cerebras, vLLM", (
        "context_length", "context length", "maximum context", "context window",
        "maximum prompt length", "string_above_max_length",
        "reduce the length of the messages", "maximum model length",
    ), ("code:40303",)),
    Row("context", "Anthropic, Bedrock", (
        "prompt is too long", "input is too long", "exceed context limit", "inputs are too long",
        "context is too long", "conversation is too long", "message is too long",
        "too long for model", "messages are too long", "text is too long", "question is too long",
        "query is too long", "request is too long",
    )),
    Row("context", "Google", ("exceeds the maximum number of tokens", "input token count")),
    Row("context", "DashScope", ("range of input length",)),
    Row("context", "Moonshot", ("exceeded model token limit",)),
    Row("context", "SiliconFlow", ("max_seq_len", "maximum sequence length")),
    Row("context", "Volcengine ark", ("exceed max message tokens", "max input tokens")),
    Row("context", "Zhipu", ("prompt exceeds max length",), ("code:1261",)),
    Row("context", "Baidu qianfan", (
        "prompt tokens too long", "tokens_too_long", "max length of current question",
    ), ("errorcode:336007", "errorcode:336103")),
    Row("context", "llama.cpp, Ollama, Mistral", (
        "exceed_context_size_error", "available context size", "context size",
        "too large for model", "`max_new_tokens` must be",
    )),
    Row("context", "GitHub Models", ("tokens_limit_reached",)),
    Row("context", "iFlytek Spark", ("token数量超过上限",), ("code:10907",)),
    Row("context", "in Chinese", (
        "超出最大长度", "超过最大长度", "上下文长度", "上下文过长", "上下文超",
        "输入过长", "内容过长",
        "超过模型最大",
    )),

    Row("moderated", "OpenAI, Azure, Moonshot", (
        "content_filter", "content filter", "content_policy", "content management policy",
        "responsibleaipolicyviolation",
        "considered high risk", "moderation_blocked", "safety system", "cyber_policy",
        "usage policy", "usage policies", "flagged as potentially",
    )),
    Row("moderated", "DeepSeek", ("content exists risk",)),
    Row("moderated", "DashScope", (
        "datainspectionfailed", "data_inspection_failed", "data inspection",
        "inappropriate content",
    )),
    Row("moderated", "Volcengine ark, Coze", (
        "sensitivecontentdetected", "contentsecuritydetection", "sensitive information",
        "sensitive content", "riskdetection",
    )),
    Row("moderated", "MiniMax", ("new_sensitive",), ("statuscode:1026", "statuscode:1027")),
    Row("moderated", "Zhipu", ("contentfilter",), ("code:1300", "code:1301")),
    Row("moderated", "Baidu qianfan", ("unsafe content", "prohibited_content"), (
        "errorcode:336104",
    )),
    Row("moderated", "StepFun", ("censorship_blocked", "content you provided or machine output")),
    Row("moderated", "Anthropic", ("content filtering policy",)),
    Row("moderated", "xAI", ("usage guidelines", "safety_check")),
    Row("moderated", "OpenRouter", ("input was flagged", "requires moderation")),
    Row("moderated", "iFlytek Spark", (), ("code:10013", "code:10014", "code:10019")),
    Row("moderated", "in Chinese", (
        "敏感内容", "敏感信息", "不安全或敏感", "涉嫌违规", "内容安全", "违规内容",
        "审核未通过", "审核不通过", "内容审核", "不合规",
    )),

    Row("model", "OpenAI, new-api", (
        "model_not_found", "does not exist or you do not have access", "model not found",
        "model_not_supported", "unknown model", "unsupported model", "no such model",
        "model_not_available",
    )),
    Row("model", "DeepSeek, DashScope", (
        "model not exist", "modelnotfound", "model.accessdenied", "access to model denied",
        "unpurchased",
    )),
    Row("model", "SiliconFlow, xAI, Cerebras", (
        "model does not exist", "does not exist or your team", "model disabled",
        "model is disabled",
    ), ("code:20012", "code:30003")),
    Row("model", "MiniMax", ("plan not support model",), ("statuscode:2061",)),
    Row("model", "Tencent hunyuan", ("servicenotactivated",)),
    Row("model", "Moonshot", ("not found the model", "resource_not_found_error")),
    Row("model", "Volcengine ark", ("invalidendpointormodel", "modelnotopen", "servicenotopen")),
    Row("model", "Zhipu", ("模型不存在",), (
        "code:1211", "code:1212", "code:1220", "code:1221", "code:1222", "code:1311",
    )),
    Row("model", "OpenRouter", ("not a valid model", "no endpoints found", "no allowed providers")),
    Row("model", "Azure", ("deploymentnotfound", "api deployment for this resource")),
    Row("model", "Google", ("is not found for api version",)),
    Row("model", "Groq", ("model_decommissioned", "has been decommissioned")),
    Row("model", "one-api, new-api", ("无可用渠道", "没有可用渠道", "no available channel")),
    Row("model", "Ollama, LM Studio", ("try pulling it first", "no models loaded")),
    Row("model", "in Chinese", (
        "模型未开通", "模型已下线", "未找到模型", "不支持该模型", "无权访问模型",
    )),
    Row("model", "Baidu qianfan", ("invalid_model",), ("errorcode:3",)),

    Row("key", "OpenAI, xAI, Groq", (
        "incorrect api key", "invalid api key", "invalid_api_key", "invalid api-key",
        "invalid_authorization", "incorrect_api_key", "wrong_api_key", "wrong api key",
    )),
    Row("key", "DeepSeek, Moonshot", (
        "authentication fails", "invalid_authentication_error", "invalid authentication",
    )),
    Row("key", "DashScope", ("invalidapikey", "apikey is invalid")),
    Row("key", "Anthropic, ark", (
        "authentication_error", "authenticationerror", "invalid x-api-key",
        "api key format is incorrect", "invalidaccountstatus",
    )),
    Row("key", "Google", ("api key not valid", "api_key_invalid", "api key expired")),
    Row("key", "OpenRouter", ("no auth credentials", "no cookie auth credentials")),
    Row("key", "one-api, new-api", (
        "无效的令牌", "令牌已过期", "令牌状态不可用", "令牌验证失败", "invalid token",
    )),
    Row("key", "MiniMax", ("login fail",), ("statuscode:1004", "statuscode:2049")),
    Row("key", "Zhipu", ("身份验证失败",), (
        "code:1000", "code:1001", "code:1002", "code:1003", "code:1004",
    )),
    Row("key", "Baidu qianfan", (
        "access token invalid", "access token expired", "invalid_iam_token", "no permission to",
    ), (
        "errorcode:6", "errorcode:13", "errorcode:14", "errorcode:15", "errorcode:100",
        "errorcode:110", "errorcode:111",
    )),
    Row("key", "Tencent hunyuan", ("authfailure",)),
    Row("key", "in Chinese", (
        "密钥无效", "密钥错误", "令牌无效", "鉴权失败", "认证失败", "授权失败", "api key 错误",
    )),
    Row("key", "iFlytek Spark", (), ("code:11200",)),

    Row("overloaded", "Anthropic, Moonshot, ark", (
        "overloaded", "engine_overloaded", "inflightbatchsizeexceeded",
    )),
    Row("overloaded", "SiliconFlow", ("is really busy", "system is busy"), ("code:50505",)),
    Row("overloaded", "Baidu qianfan", ("server high load", "server_high_load"), (
        "errorcode:336100",
    )),
    Row("overloaded", "DeepSeek, xAI, Groq, Cerebras", (
        "server busy", "server is busy", "service is too busy", "at capacity", "over capacity",
        "high demand", "too_many_requests_queue", "queue_exceeded", "high traffic",
    )),
    Row("overloaded", "in Chinese", (
        "负载已饱和", "服务繁忙", "服务器繁忙", "系统繁忙", "访问量过大", "模型过载",
        "模型繁忙", "算力不足", "服务过载", "负载过高", "负载较高",
    )),

    Row("rate", "MiniMax", (), (
        "statuscode:1002", "statuscode:1039", "statuscode:1041", "statuscode:2045",
    )),
    Row("rate", "Zhipu", (), (
        "code:1302", "code:1303", "code:1305", "code:1312", "code:1313",
    )),
    Row("rate", "Baidu qianfan", ("request limit reached",), (
        "errorcode:4", "errorcode:18", "errorcode:336501", "errorcode:336502",
    )),
    Row("rate", "iFlytek Spark", (), ("code:11202", "code:11203", "code:11210")),
    Row("rate", "Google", ("resource_exhausted", "resource has been exhausted")),
    Row("rate", "Tencent hunyuan", ("requestlimitexceeded", "limitexceeded")),
    Row("rate", "everybody", (
        "rate limit", "rate_limit", "ratelimit", "too many requests", "too_many_requests",
        "throttled", "concurrency limit",
    )),
    Row("rate", "in Chinese", (
        "过于频繁", "请求频繁", "请求频率", "速率限制", "并发", "限流",
        "请求过快", "请求过多", "太频繁", "调用频率", "访问频率",
    )),

    Row("body", "Anthropic, nginx", (
        "request_too_large", "request entity too large", "payload too large",
        "request body too large", "content too large",
    )),
)  # fmt: skip
