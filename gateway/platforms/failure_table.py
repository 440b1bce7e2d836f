"""Refusals of upstreams as data: known codes and phrases, and the meaning of each.

`failures` searches the rows in order, and the first match decides. So specific rows precede vague
ones: OpenAI also sends `rate_limit_exceeded` for a request that can never fit, and Google sends the
same sentence for a limit per minute and for an exhausted plan.

A row has three kinds of marks, all in lower case:

- `codes` are `member:value`, since numbers mean different things in different members. Member
  names omit `_` and `-`.
- `names` are textual codes, or parts of them, without `_`, `-`, `.` and spaces. They match in
  codes; in messages they match only whole tokens that look like the name of a failure, since the
  name of a caller's tool or field is not a failure.
- `phrases` match in messages, from the start of a term to the end of a term, and have two terms at
  least. `(a|b|)` matches one of its parts, `…` a short part of one sentence, `<id>` a model's name
  or nothing.

Sources: the providers' own lists of error codes, and bodies quoted in public reports.
"""

import re
from functools import cache
from typing import Literal, NamedTuple

Kind = Literal[
    "request_over_limit",  # one request exceeds the account's limit per minute
    "rate",
    "credit",
    "context",
    "moderated",
    "model",
    "key",
    "overloaded",
    "body",  # the body is too large
]


class Row(NamedTuple):
    """The marks of one provider for one kind of failure."""

    kind: Kind
    who: str
    phrases: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()


ROWS = (
    Row("request_over_limit", "OpenAI, Groq", (
        "request too large for", "please reduce your message size",
        "input or output tokens must be reduced",
    )),
    Row("credit", "Google", (
        "prepayment credits", "(exceeded|reached|hit|over)… (spending|spend) cap",
    ), ("perday",)),
    Row("rate", "Google", (
        "please retry in", "quota exceeded for (quota metric|metric)",
    ), ("perminute",)),
    Row("rate", "OpenAI, Groq, Anthropic, SiliconFlow", (
        "(tokens|requests|calls|queries) per (minute|min|day|hour|second)",
        "rate limit reached for", "(tpm|rpm|tpd|rpd|qps) limit", "limit… (tpm|rpm|tpd|rpd)",
        "(too many|maximum|max|limit|exceeded)… concurrent requests",
        "concurrent request (limit|count|quota)",
    )),
    Row("rate", "Cerebras", (), ("tokenquotaexceeded", "requestquotaexceeded")),
    Row("rate", "DashScope", ("requests rate limit",), (
        "throttling", "limitburstrate", "limitrequests",
    )),
    Row("rate", "Moonshot", ("max (rpm|tpm)", "max organization (concurrency|rpm|tpm)"), (
        "ratelimitreached",
    )),

    Row("credit", "OpenAI, Azure", (
        "exceeded your current quota", "billing hard limit", "account is not active",
        "(insufficient|not enough|no|out of)( account| remaining| available| user|) "
        "(balance|credits|credit|funds|quota|points)",
    ), ("insufficientquota", "billinghardlimit", "billingnotactive")),
    Row("credit", "LiteLLM", (
        "budget (has been |was |is |)exceeded", "(is|user=<id>|key=<id>|team=<id>) over budget",
        "exceeded (its|your|the) budget",
    ), ("budgetexceeded", "exceededbudget")),
    Row("credit", "DeepSeek, SiliconFlow, MiniMax", (
        "balance (is |)(insufficient|not enough|not sufficient|exhausted|used up|too low)",
        "usage limits? (has been |was |is |)(reached|exceeded|hit)",
        "(reached|exceeded|hit|over)… usage (limit|cap|quota)",
    ), ("insufficientbalance",), ("code:30001", "statuscode:1008", "statuscode:2056")),
    Row("credit", "OpenRouter", (
        "requires more credits", "can only afford", "key limit exceeded",
    ), ("insufficientcredit",)),
    Row("credit", "Moonshot", ("account is suspended",), ("exceededcurrentquota",)),
    Row("credit", "one-api, new-api", (
        "quota (is not enough|not enough|is insufficient|exhausted|used up|has been exhausted)",
        "quota (limit |)(has been |was |)exceeded", "预扣费额度失败",
    ), ("insufficientuserquota", "preconsumetokenquotafailed", "tokenstatusexhausted")),
    Row("credit", "DashScope", (
        "account is in good standing", "free tier of the model has been exhausted",
        "free allocated quota exceeded",
    ), ("arrearage", "freetieronly", "billoverdue", "commoditynotpurchased")),
    Row("credit", "Volcengine ark", (
        "(has|have) an overdue balance", "account (is |)(overdue|in arrears)",
    ), (
        "accountoverdue", "setlimitexceeded", "quotaexceeded",
    )),
    Row("credit", "Zhipu", ("无可用资源包",), (), (
        "code:1113", "code:1304", "code:1308", "code:1309", "code:1310",
    )),
    Row("credit", "xAI", (
        "have any credits", "used all (available|your) credits", "monthly spending limit",
        "(run|ran|is|are) out of (credits|credit|funds)", "purchase more credits",
    )),
    Row("credit", "Anthropic", ("credit balance is too low",), ("billingerror",)),
    Row("credit", "Tencent hunyuan", (), (
        "inarrears", "resourcepackexhausted", "servicestoparrears", "servicestop",
    )),
    Row("credit", "Baidu qianfan", ("(daily|total) request limit reached",), (), (
        "errorcode:17", "errorcode:19",
    )),
    Row("credit", "Dify", ("your quota for dify hosted",)),
    Row("credit", "Groq, Cerebras, Together, Cohere, Hugging Face", (
        "(exceeded|reached|hit|over|set)… (spend|spending|credit) limit",
        "(spend|spending|credit) limit (has been |was |is |)(exceeded|reached|hit)",
        "calls / month", "monthly included credits", "402 payment required",
    ), ("paymentrequired",)),
    Row("credit", "iFlytek Spark", (), (), ("code:11201",)),
    Row("credit", "Novita, PPIO, ModelScope, Cloudflare, Kimi's and other plans", (
        "(daily|today's|weekly|monthly) (free |)(quota|allocation|limit|usage)( is| has been| was|)"
        " (reached|exceeded|exhausted|used up|of|hit)",
        "(reached|exceeded|hit|used up|used all of|exhausted) (your|the|this|today's) (daily free|"
        "daily|weekly|monthly|plan's|today's|free|) ?(quota|allocation|usage|limit|cap)",
    ), ("notenoughbalance",)),
    Row("credit", "in English", (
        "credits? (is |are |has been |have been |)(exhausted|used up|depleted)",
        "no (remaining|more|available) credits", "(not|do not|don't) have enough "
        "(credits|credit|quota|balance|funds)",
        "please (recharge|top up|add funds|add credits)", "recharge your account",
        "(top up|add funds to|add credits to) your (account|balance|wallet)",
        "(subscription|plan|trial) (has |is |)(expired|ended)",
    )),
    Row("credit", "in Chinese", (
        "(余额|额度|配额|积分|点数|资源点|余量|预算|授权量|资源包|流量包|免费次数)(已经|已|)"
        "(不足|不够|用完|用尽|用光|耗尽|为0|为零)",
        "(次数|用量)(已经|已|)(用完|用尽|用光|耗尽)", "(额度|配额|预算)(已经|已)(用|超)",
        "(额度|配额)(超限|超额)", "(超出|超过|达到|达)(了|)"
        "(您的|账户|当前|每日|今日|本周|本月|每月|套餐|免费|)(的|)"
        "(配额|额度|用量上限|使用上限)",
        "(套餐|订阅|会员|授权|资源包|账户|服务)(已经|已|)(到期|过期|欠费)",
        "请(您|先|及时|尽快|前往|)(充值|续费)", "充值后(再|继续|重试|使用)",
        "(账户|账号|帐户|帐号|已|因)(已|)欠费", "欠费停",
    )),

    Row("context", "OpenAI, Azure, DeepSeek, Groq, Cerebras, vLLM", (
        "(maximum|max) context (length|window|size)( is| of|:)",
        "(exceeds|exceed|exceeded|available|than the)… context (length|window|size|limit)",
        "context (length|window|size|limit) (exceeds|exceeded|is exceeded|exceed|of <id>tokens|is "
        "<id>tokens|has been exceeded)",
        "maximum (prompt|model) length", "reduce the length of the (messages|prompt|input)",
        "(exceeds|exceed|exceeded)… maximum context",
    ), (
        "contextlengthexceeded", "contextlength", "contextwindow", "stringabovemaxlength",
    ), ("code:40303",)),
    Row("context", "Anthropic, Bedrock", (
        "(prompt|input|context|conversation|message|text|question|query|request) is too long",
        "(prompt|input) too long",
        "(prompts|inputs|messages) are too long", "exceed context limit", "too long for model",
    )),
    Row("context", "Cohere", ("too many tokens: size limit", "size limit exceeded by")),
    Row("context", "Google", (
        "exceeds the maximum number of tokens", "input token count… exceeds",
    )),
    Row("context", "DashScope", ("range of input length",)),
    Row("context", "Moonshot", ("exceeded model token limit",)),
    Row("context", "SiliconFlow", ("less than max_seq_len", "maximum sequence length"), (
        "maxseqlen",
    )),
    Row("context", "Volcengine ark", (
        "exceed max message tokens", "(exceed|exceeds|exceeded|than)… max input tokens",
    )),
    Row("context", "Zhipu", ("prompt exceeds max length",), (), ("code:1261",)),
    Row("context", "Baidu qianfan", (
        "prompt tokens too long", "max length of current question",
    ), ("tokenstoolong",), ("errorcode:336007", "errorcode:336103")),
    Row("context", "llama.cpp, Ollama, Mistral", (
        "too large for model", r"tokens \+ <id>must be",
    ), ("exceedcontextsize",)),
    Row("context", "GitHub Models", (), ("tokenslimitreached",)),
    Row("context", "iFlytek Spark", (), (), ("code:10907",)),
    Row("context", "in Chinese", (
        "(超出|超过|超)(了|)(模型|)(的|)(最大|)(上下文|输入|)(的|)(最大|)(长度|窗口)",
        "(超出|超过)(了|)(模型的|模型|)(上下文|最大token|最大输入|最大上下文)",
        "超过(了|)模型(的|)最大",
        "(token|tokens) ?(数量|数|总数|长度|)(超出|超过|超)(了|)(模型|最大|上下文|上限|限制|长)",
        "(输入|提示词|提示|上下文|消息|内容|文本|问题|对话|请求内容|prompt)(内容|长度|文本|)"
        "(过|超|太)长",
        "(输入|提示词|上下文|消息|对话|文本|内容)(内容|文本|)(长度|token数|tokens数)(已|)"
        "(超限|超出|超过)", "上下文(长度|窗口|)(超限|超出|超过)",
        "(输入|提示词)(token|tokens|token数|字数)(超限|超出|超过)",
        "字数(超出|超过)(了|)(最大|)限制",
    )),

    Row("moderated", "OpenAI, Azure, Moonshot", (
        "content management policy", "considered high risk", "flagged as potentially",
        "content (filter|filtering) (policy|triggered|blocked|result)",
        "(blocked|filtered|rejected|flagged|triggered)… "
        "(content filter|content filtering|safety system|moderation)",
        "(violate|violates|violated|violating|violation of|against)… (content|safety|usage) "
        "(safety |)(policy|policies|guidelines)",
        "(content|usage) (safety |)(policy|policies|guidelines) violation",
        "(violate|violates|violated) our (policy|policies)", "flagged… policy violation",
    ), (
        "contentfilter", "contentpolicy", "responsibleaipolicyviolation", "moderationblocked",
        "cyberpolicy",
    )),
    Row("moderated", "new-api", (
        "sensitive (words?|content|information) (detected|found)",
    ), ("sensitivewords",)),
    Row("moderated", "DeepSeek", ("content exists risk",)),
    Row("moderated", "DashScope", (
        "data inspection failed", "(contain|contains|detected)… inappropriate content",
    ), ("datainspection",)),
    Row("moderated", "Volcengine ark, Coze", (
        "(contain|contains|detected|include|includes)… sensitive (information|content|words|data)",
        "(content|information) is sensitive",
    ), ("sensitivecontent", "contentsecuritydetection", "riskdetection")),
    Row("moderated", "MiniMax", ("(input|output) new_sensitive",), ("newsensitive",), (
        "statuscode:1026", "statuscode:1027",
    )),
    Row("moderated", "Zhipu", (), (), ("code:1300", "code:1301")),
    Row("moderated", "Baidu qianfan", (
        "unsafe content", "(contain|contains|contained) prohibited content",
    ), ("prohibitedcontent",), (
        "errorcode:336104",
    )),
    Row("moderated", "StepFun", ("content you provided or machine output",), (
        "censorshipblocked",
    )),
    Row("moderated", "xAI", (), ("safetycheck",)),
    Row("moderated", "OpenRouter", ("input was flagged", "requires moderation")),
    Row("moderated", "iFlytek Spark", (), (), ("code:10013", "code:10014", "code:10019")),
    Row("moderated", "in Chinese", (
        "(涉及|包含|含有|检测到|命中|存在|触发|涉嫌)(了|到|)…(敏感|违禁|违规|不合规|不当|不良)"
        "(词|内容|信息|言论)", "(涉及|涉嫌)(敏感|违禁|违规|违法)",
        "(内容|输入|输出|文本|问题|提问|图片)(内容|)(涉嫌|存在|)(违规|不合规|违法|敏感|不合法)",
        "不安全或敏感", "审核(未|不|没有)通过", "未(能|)通过(内容|安全|)(安全|)(审核|检测)",
        "内容安全(检测|审核|审查)(不|未)通过",
        "违反(了|)(相关|国家|平台|内容|使用|)(法律|法规|政策|规定|规范)",
        "(触发|命中)(了|)(内容安全|内容审核)", "内容安全(策略|风险|拦截|限制)",
        "(被|触发)(了|)(内容|)(安全|)审核(拦截|拒绝)",
    )),

    Row("model", "OpenAI, new-api", (
        "does not exist or you do not have access", "model <id>not found", "unknown model",
        "unsupported model", "no such model", "model <id>does not exist", "model <id>not exist",
        "model <id>is not (available|supported)",
    ), ("modelnotfound", "modelnotsupported", "modelnotavailable")),
    Row("model", "LiteLLM", ("invalid model name",)),
    Row("model", "DeepSeek, DashScope", ("access to model denied",), (
        "modelaccessdenied", "unpurchased",
    )),
    Row("model", "SiliconFlow, xAI, Cerebras", (
        "does not exist or your team", "model (is |)disabled",
    ), (), ("code:20012", "code:30003")),
    Row("model", "MiniMax", ("plan not support model",), (), ("statuscode:2061",)),
    Row("model", "Tencent hunyuan", (), ("servicenotactivated",)),
    Row("model", "Moonshot", ("not found the model",), ("resourcenotfounderror",)),
    Row("model", "Volcengine ark", (), (
        "invalidendpointormodel", "modelnotopen", "servicenotopen",
    )),
    Row("model", "Zhipu", (), (), (
        "code:1211", "code:1212", "code:1220", "code:1221", "code:1222", "code:1311",
    )),
    Row("model", "OpenRouter", ("not a valid model", "no endpoints found", "no allowed providers")),
    Row("model", "Azure", ("api deployment for this resource",), ("deploymentnotfound",)),
    Row("model", "Google", ("is not found for api version",)),
    Row("model", "Groq", ("has been decommissioned",), ("modeldecommissioned",)),
    Row("model", "one-api, new-api", ("(无|没有)可用(的|)渠道", "no available channel")),
    Row("model", "Ollama, LM Studio", ("try pulling it first", "no models loaded")),
    Row("model", "in Chinese", (
        "(模型|model) ?<id>(不存在|未开通|已下线|已下架|下架|不可用|未找到|不支持)",
        "(未找到|找不到|不支持)(该|此|的|这个|)模型", "(无权|没有权限)(访问|使用)(该|此|)模型",
    )),
    Row("model", "Baidu qianfan", (), ("invalidmodel",), ("errorcode:3",)),

    Row("key", "OpenAI, xAI, Groq", (
        "(incorrect|invalid|wrong|expired) api[ -]key",
        "api[ -]key (is |has |)(not valid|invalid|incorrect|expired|disabled|revoked)",
    ), (
        "invalidapikey", "invalidauthorization", "incorrectapikey", "wrongapikey",
        "apikeyinvalid",
    )),
    Row("key", "Anthropic, OpenAI", (
        "(organization|account|key|user) (has been|is|was) "
        "(disabled|deactivated|banned|blocked|suspended)",
        "invalid subscription key",
    ), (
        "accountdeactivated", "invalidtoken", "tokenexpired", "invalidcredentials", "missingapikey",
        "authenticationfailed", "authenticationrequired",
    )),
    Row("key", "DeepSeek, Moonshot", ("authentication fails", "invalid authentication"), (
        "invalidauthentication",
    )),
    Row("key", "DashScope", ("apikey is invalid",)),
    Row("key", "Anthropic, ark", ("invalid x-api-key", "api key format is incorrect"), (
        "authenticationerror", "invalidaccountstatus",
    )),
    Row("key", "OpenRouter", ("no (auth|cookie auth) credentials",)),
    Row("key", "MiniMax", ("login fail",), (), ("statuscode:1004", "statuscode:2049")),
    Row("key", "Zhipu", (), (), (
        "code:1000", "code:1001", "code:1002", "code:1003", "code:1004",
    )),
    Row("key", "Baidu qianfan", (
        "access token (invalid|expired)", "no permission to (use|access|call) (the |this |)"
        "(model|api|service|data)",
    ), ("invalidiamtoken",), (
        "errorcode:6", "errorcode:13", "errorcode:14", "errorcode:15", "errorcode:100",
        "errorcode:110", "errorcode:111",
    )),
    Row("key", "Tencent hunyuan", (), ("authfailure",)),
    Row("key", "everybody", ("401 unauthorized",), ("unauthorized",)),
    Row("key", "in Chinese", (
        "(密钥|令牌|api ?key|apikey|token) ?(无效|错误|不正确|不存在|已过期|过期|已失效|失效|"
        "状态不可用|验证失败)",
        "(无效|错误|失效|过期)的 ?(密钥|令牌|api ?key|apikey|token)",
        "(身份验证|身份认证|鉴权|认证|授权)失败", "(用户|请求|账号|应用|接口)未授权",
        "(账号|账户|用户|令牌|密钥|组织)(已|已被|被)(封禁|禁用|停用|冻结)",
    )),
    Row("key", "iFlytek Spark", (), (), ("code:11200",)),

    Row("overloaded", "Anthropic, Moonshot, ark", (
        "(is|are|currently|temporarily|service|model|server|engine|system) overloaded",
    ), ("overloaded", "inflightbatchsizeexceeded")),
    Row("overloaded", "SiliconFlow", ("is really busy", "system is busy"), (), ("code:50505",)),
    Row("overloaded", "Baidu qianfan", ("server high load",), ("serverhighload",), (
        "errorcode:336100",
    )),
    Row("overloaded", "DeepSeek, xAI, Groq, Cerebras", (
        "server (is |)(too |)busy", "service is too busy", "(is|currently|are) (at|over) capacity",
        "(experiencing|due to|of|is in|currently) high (demand|traffic)",
        "(experiencing|due to)… high (demand|traffic)",
    ), ("toomanyrequestsqueue", "queueexceeded")),
    Row("overloaded", "in Chinese", (
        "负载已饱和", "(服务|服务器|系统|模型|引擎|资源|平台)(正|)(繁忙|过载)", "访问量过大",
        "算力不足",
        "负载(过高|较高|过大)",
    )),

    Row("rate", "MiniMax", (), (), (
        "statuscode:1002", "statuscode:1039", "statuscode:1041", "statuscode:2045",
    )),
    Row("rate", "Zhipu", (), (), (
        "code:1302", "code:1303", "code:1305", "code:1312", "code:1313",
    )),
    Row("rate", "Baidu qianfan", ("request limit reached",), (), (
        "errorcode:4", "errorcode:18", "errorcode:336501", "errorcode:336502",
    )),
    Row("rate", "iFlytek Spark", (), (), ("code:11202", "code:11203", "code:11210")),
    Row("rate", "Google", ("resource has been exhausted",), ("resourceexhausted",)),
    Row("rate", "Tencent hunyuan", (), ("limitexceeded",)),
    Row("rate", "everybody", (
        "rate[ -]limited", "request rate (is |)too high",
        "max concurrency (limit |)(is |)(reached|exceeded)",
        "rate[ -]?limits? (is |was |has been |)(exceeded|reached|hit|error|exceed)",
        "(exceed|exceeds|exceeded|reach|reached|hit|hits|over|due to|call)… rate[ -]?limit(s|ing|)",
        "(are|been|is|being|was|were) (being |)(rate[ -]?limited|throttled)",
        "too many requests", "concurrency limit (is |has been |)(exceeded|reached|hit)",
        "(exceed|exceeds|exceeded|reached|hit)… concurrency limit",
    ), ("ratelimit", "toomanyrequests", "throttled")),
    Row("rate", "in Chinese", (
        "过于频繁", "太频繁", "请求频繁",
        "(请求|访问|调用|操作|提问|发送)(次数|频率|量|速度|速率|)(已|)"
        "(过多|过快|太快|太多|过高|超限|超出限制|超过限制|受限|达到上限)",
        "(超出|超过|达到|触发|触及|已达)(了|到|)…(频率|速率|并发|并发数|qps|rpm|tpm)(的|)"
        "(限制|上限|)",
        "(频率|速率|并发|并发数|并发量|qps|rpm|tpm)(已|)(超限|超出|超过|达到上限|达上限|过高|受限)",
        "(触发|被)(了|)(限流|限速)", "(请求|接口|服务|平台)已(限流|限速)",
    )),

    Row("body", "Anthropic, nginx", (
        "request entity too large", "payload too large", "request body too large",
        "content too large",
    ), ("requesttoolarge",)),
)  # fmt: skip


_SYNTAX = (("…", r"[^.!?;:。！？；：\n]{0,40}?"), ("<id>", r"[\w./:@+\"=-]{0,80} ?"), ("(", "(?:"))


def pattern_of(phrases: tuple[str, ...]) -> re.Pattern[str] | None:
    """A pattern for any of `phrases` at term boundaries, which Chinese text lacks; None if there
    are no phrases."""
    if not phrases:
        return None
    any_of = "|".join(phrases)
    for mark, meaning in _SYNTAX:
        any_of = any_of.replace(mark, meaning)
    start, end = r"(?:(?<![\w-])|(?=[^\x00-\x7f]))", r"(?:s?(?!\w)|(?<=[^\x00-\x7f]))"
    return re.compile(f"{start}(?:{any_of}){end}", re.ASCII)


@cache
def patterns() -> tuple[re.Pattern[str] | None, ...]:
    """One pattern per row, compiled at the first failure: that takes tens of milliseconds."""
    return tuple(pattern_of(row.phrases) for row in ROWS)
