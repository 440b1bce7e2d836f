"""Parses the message of a failure: finds codes and a status in it, and removes names that it quotes
from the caller or the app.

A message often contains another client's error as text: `Error code: 429 - {'error': {…}}`.
"""

import re

_CODES = "code|type|status|reason|error_code|error_type|errorcode|errortype|status_code"
_MESSAGES = "message|msg|detail|description|error|error_msg|error_message|errmsg"
# A member of JSON or of Python's repr; nested strings have escaped quotes.
_MEMBER = re.compile(
    r"""(?P<quote>["'])(?P<name>[A-Za-z_]{2,20})(?P=quote)\s?:\s?"""
    r"""(?:"(?P<double>[^"\\]*+(?:\\.[^"\\]*+)*+)"|'(?P<single>[^'\\]*+(?:\\.[^'\\]*+)*+)'"""
    r"""|(?P<number>\d{1,9}))""",
    re.DOTALL,
)
_KIND_OF = {
    **dict.fromkeys(_CODES.split("|"), "code"),
    **dict.fromkeys(_MESSAGES.split("|"), "message"),
}
_MAX_DEPTH = 3


def inner(message: str, depth: int = 0) -> tuple[str, list[str]]:
    """(the message, including the message of an embedded error; its codes as `member:value`)."""
    messages, codes = [_MEMBER.sub(" ", message)], []
    for member in _MEMBER.finditer(message):
        name = member["name"].lower()
        value = member["double"] or member["single"] or member["number"] or ""
        kind = _KIND_OF.get(name)
        if kind == "code" and len(value) <= 100:
            codes.append(f"{name.replace('_', '')}:{value}")
        elif kind == "message" and depth < _MAX_DEPTH:
            more, its_codes = inner(value.replace('\\"', '"').replace("\\'", "'"), depth + 1)
            messages.append(more)
            codes += its_codes
    return "\n".join(messages), codes


_NAME = re.compile(
    r"""https?://\S{1,2000}|data:[\w/+.-]{1,50};\S{1,2000}"""
    r"""|(?<!\w)'[^'\n]{0,200}'(?!\w)|"[^"\n]{0,200}"|`[^`\n]{0,200}`"""
    r"""|“[^”\n]{0,200}”|‘[^’\n]{0,200}’|「[^」\n]{0,200}」|『[^』\n]{0,200}』|【[^】\n]{0,200}】"""
    r"""|《[^》\n]{0,200}》|\[[^\[\]\s]{1,80}\]|\{\{[^{}\n]{1,200}\}\}|\#[^#\n]{1,80}\#"""
    # a file, a node, a tool, a member
    r"""|[\w()-]{1,100}\.(?:png|jpe?g|gif|webp|pdf|docx?|xlsx?|pptx?|txt|csv|md|mp[34]|json|py)\b"""
    r"""|\bnode [^:：\n]{1,60}(?=[:：])|\btool [^:：\n]{1,60}?(?= invoke| error| failed|[:：])"""
    r"""|(?:节点|工具|变量|字段|参数|插件)\s[^\s:：,，。]{1,40}"""
    r"""|\b(?:parameters?|arguments?|supplied|variable|field|property|column|function):?\s"""
    r"""(?=\w{0,80}_)[\w.-]{1,80}""",
    re.IGNORECASE,
)


def without_names(message: str) -> str:
    """The message with `""` in place of quotations and of names of files, nodes and members.

    Quotes around the whole message are removed first, so that its text remains.
    """
    message = message.strip()
    if len(message) > 2 and message[0] in "\"'" and message.find(message[0], 1) == len(message) - 1:
        message = message[1:-1]
    return _NAME.sub('""', message)


_MAX_CODE = 40
_TOKEN = re.compile(r"(?<![\w./-])[A-Za-z][A-Za-z_.]{3,80}(?![\w/-])")
_FAILS = re.compile(
    r"(?:error|exception|exceeded|exhausted|quota|balance|not_?found|reached|overloaded|denied"
    r"|invalid|expired|required|detected|requests)$|^(?:insufficient|invalid)"
)
_END = re.compile(r"(?:error|exception|exceeded)$")


def codes_in(message: str) -> set[str]:
    """The codes that the message contains as tokens: `RateLimitError`, `insufficient_quota`.

    Names of fields rarely look like failures. A short message is a code as a whole.
    """
    message = without_names(message)
    alone = message.strip(" .!:-")
    found = {alone} if len(alone) <= _MAX_CODE else set()
    for token in _TOKEN.findall(message):
        is_name = "_" in token or token[1:] != token[1:].lower()
        if is_name and _FAILS.search(token.lower().rstrip(".")):
            found.add(token)
    out = set()
    for token in found:
        for part in (token, *token.split(".")):
            name = bare(part)
            out |= {name, _END.sub("", name)}
    return out - {""}


def bare(code: str) -> str:
    """A code in the format of the table of failures: lower case, without separators."""
    return code.lower().translate(_NO_SEPARATORS)


_NO_SEPARATORS = str.maketrans("", "", "_-. ")
_STATUS = re.compile(
    r"^(?:\[[\w.-]{1,40}\])?\W{0,3}([45]\d\d)"
    r"(?!\w| ?[条个次行]| ?(?:records?|rows?|items?|files?|results?|tokens?|ms|bytes|times)\b)"
    r"|\b(?:error code|status code|(?<!exit )status|http(?:/[\d.]{1,3})?(?: error| status)?"
    r"|code[:=]|状态码|错误码)[\s:=：]{1,3}([45]\d\d)(?!\d)"
    r"|\berror:? ([45]\d\d)(?=[:,.)]|$)"
    r"|\b(?:client|server) error '([45]\d\d) ",
    re.IGNORECASE,
)


def status_in(message: str) -> int:
    """The HTTP status that the message names as a status, else 0."""
    found = _STATUS.search(message)
    return int(found[found.lastindex or 0]) if found else 0
